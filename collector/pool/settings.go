package pool

import (
	"time"

	"ephemeral_port_exporter/collector/internal/portset"
)

// A PortRange is the ports from Low to High, both included.
type PortRange = portset.Range

// Settings are what the ephemeral ports of one network namespace depend on: its sysctls, see
// Documentation/networking/ip-sysctl.rst, and two constants of the kernel. They apply to IPv4 and IPv6.
type Settings struct {
	PortRange     PortRange   // ip_local_port_range
	ReservedPorts []PortRange // ip_local_reserved_ports, inside and outside PortRange

	AutobindReuse bool // ip_autobind_reuse: bind(ip, 0) also takes ports whose sockets all have SO_REUSEADDR, if it has that too
	// UnprivilegedPort is ip_unprivileged_port_start: the kernel refuses a PortRange that begins below it. 0 if the kernel
	// does not have it (before 4.11).
	UnprivilegedPort uint16

	// NodePorts are those of the services of Kubernetes, for which no socket listens. If empty, they are 30000-32767.
	NodePorts []PortRange

	// MayRedirect is set if there is a sign of rules that lead packets for a port elsewhere, so that it is in use
	// without a socket. Rules without connection tracking, and those of eBPF, can be there without a sign.
	MayRedirect bool

	TWReuse        int           // tcp_tw_reuse: 0 never, 1 always, 2 on loopback
	TWReuseDelay   time.Duration // tcp_tw_reuse_delay; 0 if the kernel does not have it (before 6.14)
	TWReuseLate    bool          // without tcp_tw_reuse_delay: connect() waits up to 2 s (before 4.19), or may, for all that is known
	ReuseFinWait2  Fact          // where tcp_tw_reuse applies, connect() takes over mini-sockets in FIN_WAIT2 too (before 6.12)
	Timestamps     int           // tcp_timestamps: 0 off
	FinTimeout     time.Duration // tcp_fin_timeout
	TimeWaitLength time.Duration // TCP_TIMEWAIT_LEN
	Tick           time.Duration // of timers: 1 s / CONFIG_HZ
}

// Capacity returns how many ports a pool has in a namespace without listeners.
func Capacity(s Settings) int {
	var usable portset.Map
	usable.AddUnreserved(s.PortRange, s.ReservedPorts)
	return usable.Size()
}

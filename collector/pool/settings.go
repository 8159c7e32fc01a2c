package pool

import "time"

// A PortRange is the ports from Low to High, both included.
type PortRange struct {
	Low, High uint16
}

// Size returns the number of ports, at least 1.
func (r PortRange) Size() int { return int(r.High) - int(r.Low) + 1 }

// Contains reports whether port is in the range.
func (r PortRange) Contains(port uint16) bool { return r.Low <= port && port <= r.High }

// Settings are the sysctls of one network namespace that decide about its ports,
// see Documentation/networking/ip-sysctl.rst. Those of TCP hold for IPv6 too.
type Settings struct {
	PortRange     PortRange   // ip_local_port_range
	ReservedPorts []PortRange // ip_local_reserved_ports, also outside PortRange

	TWReuse        int           // tcp_tw_reuse: 0 never, 1 always, 2 on loopback
	TWReuseDelay   time.Duration // tcp_tw_reuse_delay; 0 where the kernel, before 6.14, has none
	Timestamps     int           // tcp_timestamps: 0 off
	FinTimeout     time.Duration // tcp_fin_timeout
	TimeWaitLimit  int           // tcp_max_tw_buckets, in sockets
	TimeWaitLength time.Duration // TCP_TIMEWAIT_LEN, compiled in, told by a flag
}

// Capacity returns how many ports a pool has in a namespace without listeners.
func Capacity(s Settings) int {
	var usable portMap
	usable.addUnreserved(s)
	return usable.size()
}

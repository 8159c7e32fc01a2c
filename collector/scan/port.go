package scan

import (
	"net/netip"
	"time"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// A Port tells who has a TCP port of the exporter's own network namespace.
type Port struct {
	Time     time.Time // when that was so
	Number   uint16
	InRange  bool // of ip_local_port_range
	Reserved bool // in ip_local_reserved_ports

	// Holders are the listeners on the port, or else the connections that have it; at most MaxHolders. Sockets that are
	// bound, and neither listen nor are connected, are not seen.
	Holders []PortHolder
	More    int // further holders

	// Connections counts those of a port with a listener. They are most likely accepted: the page does not show the clients
	// of a host to all that can open it.
	Connections int
}

// MaxHolders is how many holders of a port are named.
const MaxHolders = 100

// A PortHolder is a socket that has a port.
type PortHolder struct {
	Listens       bool
	State         tcpstate.State // unless it listens
	Local, Remote netip.AddrPort
	Cgroup        cgroup.Group // of the process that made it; empty if that is not known, as of listeners
}

// Listener reports whether one of the holders listens.
func (p Port) Listener() bool { return len(p.Holders) > 0 && p.Holders[0].Listens }

package pool

import (
	"net/netip"
	"slices"

	"ephemeral_port_exporter/collector/internal/portset"
)

// A UDPFamily says which sockets share a pool of UDP ports: there is one for each kind of socket that
// gets its port by the first connect() or sendto(), for all destinations together.
type UDPFamily string

// The families.
const (
	UDPIPv4      UDPFamily = "ipv4"       // AF_INET
	UDPIPv6      UDPFamily = "ipv6"       // AF_INET6 with IPV6_V6ONLY
	UDPDualStack UDPFamily = "dual_stack" // AF_INET6 without it, which is the default
)

// UDPFamilies lists all of them.
var UDPFamilies = [...]UDPFamily{UDPIPv4, UDPIPv6, UDPDualStack}

// A UDPSocket is a UDP socket that has a port.
type UDPSocket struct {
	// Local is its own end. An AF_INET6 socket that uses IPv4 has an IPv4 address here, but if it
	// may use both families it has the IPv6 wildcard.
	Local netip.AddrPort

	V6Only    bool   // it does not use IPv4; false if that is not known
	Connected bool   // it has a peer
	Cgroup    uint64 // as in Socket
}

// conflictsWith reports whether a socket of the family that has no port yet cannot get the one of s.
// Addresses, devices, SO_REUSEADDR and SO_REUSEPORT of s change nothing: it conflicts if there is an
// address that both may receive on (inet_rcv_saddr_equal of net/ipv4/inet_connection_sock.c). Only
// sockets with these options on both sides share ports.
func (s *UDPSocket) conflictsWith(f UDPFamily) bool {
	switch f {
	case UDPIPv4:
		return !s.V6Only
	case UDPIPv6:
		return s.Local.Addr().Is6()
	default:
		return true
	}
}

// A UDPTable counts the UDP sockets of one network namespace.
type UDPTable struct {
	settings Settings
	usable   portset.Map // ports that the kernel may choose
	capacity int
	servers  portset.Map // ports of sockets without a peer
	pools    [len(UDPFamilies)]udpCounts
	sockets  int
}

// udpCounts are the sockets of one pool.
type udpCounts struct {
	held   portset.Map // also outside of the range
	owners ownerCounts
}

// NewUDPTable returns an empty UDPTable for a namespace with these settings, of which it uses the
// range and the reserved ports.
func NewUDPTable(s Settings) *UDPTable {
	t := &UDPTable{settings: s}
	t.usable.AddUnreserved(s.PortRange, s.ReservedPorts)
	t.capacity = t.usable.Size()
	return t
}

// Add counts a socket. A port counts once, for the first of its sockets. The caller may reuse s
// afterwards.
func (t *UDPTable) Add(s *UDPSocket) {
	t.sockets++
	port := s.Local.Port()
	if !s.Connected {
		t.servers.Add(port)
	}
	for i, family := range UDPFamilies {
		c := &t.pools[i]
		if !s.conflictsWith(family) || c.held.Has(port) {
			continue
		}
		c.held.Add(port)
		if s.Cgroup != 0 && t.usable.Has(port) {
			c.owners.Add(s.Cgroup)
		}
	}
}

// A UDPReport tells how the ephemeral ports of one network namespace are used by UDP.
type UDPReport struct {
	Settings      Settings // the range and the reserved ports
	CapacityPorts int      // in the range, not reserved
	Sockets       int      // that were added to the UDPTable, on any port
	Pools         [len(UDPFamilies)]UDPPool

	// ServerPorts are the ports of sockets without a peer, in the range and outside, in ascending order.
	ServerPorts []uint16

	// ListenerPorts are Report.ListenerPorts: they are in the same range. Without ListenersKnown, they are not known.
	ListenerPorts  []uint16
	ListenersKnown bool
}

// A UDPPool is the ports that one kind of socket can get.
type UDPPool struct {
	Family      UDPFamily
	Ports       int     // of CapacityPorts that it cannot get
	Utilization float64 // from 0 to 1; at 1, connect() or sendto() of a socket without a port fails

	// Owners are the control groups that hold most of the ports, at most MaxOwners, in descending
	// order.
	Owners []Owner

	// HeldPorts are all ports that it cannot get, in the range and outside, in ascending order.
	HeldPorts []uint16
}

// Report returns the report of the sockets that were added.
func (t *UDPTable) Report() UDPReport {
	r := UDPReport{Settings: t.settings, CapacityPorts: t.capacity, Sockets: t.sockets, ServerPorts: portsOf(&t.servers)}
	for i, family := range UDPFamilies {
		c := &t.pools[i]
		p := UDPPool{Family: family, Ports: t.usable.Common(&c.held), Owners: c.owners.largest(), HeldPorts: portsOf(&c.held)}
		p.Utilization = utilization(p.Ports, t.capacity)
		r.Pools[i] = p
	}
	return r
}

// portsOf returns the ports of a set in ascending order.
func portsOf(ports *portset.Map) []uint16 {
	return slices.AppendSeq(make([]uint16, 0, ports.Size()), ports.All())
}

// MaxUtilization returns the utilization of the pool that is used most.
func (r *UDPReport) MaxUtilization() float64 {
	return max(r.Pools[0].Utilization, r.Pools[1].Utilization, r.Pools[2].Utilization)
}

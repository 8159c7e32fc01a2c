package pool

import (
	"fmt"
	"net/netip"
	"strconv"

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
}

// A UDPPool is the ports that one kind of socket can get.
type UDPPool struct {
	Family      UDPFamily
	Ports       int     // of CapacityPorts that it cannot get
	Utilization float64 // from 0 to 1; at 1, connect() or sendto() of a socket without a port fails

	// Owners are the control groups that hold most of the ports, at most MaxOwners, in descending
	// order.
	Owners []Owner

	// Advice is nil unless the pool is in danger. In its Cures, Outlook.Ports is how many more
	// sockets get a port, and there is no Ceiling: a closed socket frees its port at once.
	Advice *Advice
}

// Report returns the report of the sockets that were added.
func (t *UDPTable) Report() UDPReport {
	r := UDPReport{Settings: t.settings, CapacityPorts: t.capacity, Sockets: t.sockets}
	for i, family := range UDPFamilies {
		c := &t.pools[i]
		p := UDPPool{Family: family, Ports: t.usable.Common(&c.held), Owners: c.owners.largest()}
		p.Utilization = utilization(p.Ports, t.capacity)
		if p.InDanger() {
			p.Advice = t.advise(&p, c)
		}
		r.Pools[i] = p
	}
	return r
}

// MaxUtilization returns the utilization of the pool that is used most.
func (r *UDPReport) MaxUtilization() float64 {
	return max(r.Pools[0].Utilization, r.Pools[1].Utilization, r.Pools[2].Utilization)
}

// udpDanger is the utilization from which a pool is in danger. The kernel searches from a random port
// on, so that up to 90% of a usual range, to find a free one takes microseconds.
const udpDanger = 0.8

// InDanger reports whether the ports run out, or may soon.
func (p *UDPPool) InDanger() bool { return p.Utilization >= udpDanger }

// advise returns what to do about a pool.
func (t *UDPTable) advise(p *UDPPool, c *udpCounts) *Advice {
	a := &Advice{Diagnosis: fmt.Sprintf("UDP sockets hold %d of %d ports, for all destinations together.", p.Ports, t.capacity)}
	now := t.capacity - p.Ports
	for _, cure := range []Cure{t.closeUDP(p), t.widenUDP(c), t.giveBackUDP(now, c)} {
		if cure.Now.Ports = now; cure.helps() {
			a.Cures = append(a.Cures, cure)
		}
	}
	return a
}

// closeUDP has the owner of many ports close its sockets.
func (t *UDPTable) closeUDP(p *UDPPool) Cure {
	if len(p.Owners) == 0 || mainShare*p.Owners[0].Ports < p.Ports {
		return Cure{}
	}
	n := p.Owners[0].Ports
	return Cure{
		Title:    "Close UDP sockets",
		Sentence: fmt.Sprintf("One control group holds %d of the ports. Restart it to free them, and let it use one socket for many destinations.", n), N: n,
		Then:      Outlook{Ports: t.capacity - p.Ports + n},
		Condition: "Its sockets are leaked, or can be fewer.",
	}
}

func (t *UDPTable) widenUDP(c *udpCounts) Cure {
	before, s := t.settings.PortRange, t.settings
	s.PortRange = PortRange{Low: min(before.Low, 1024), High: 65535}
	var usable, reserved portset.Map
	usable.AddUnreserved(s.PortRange, s.ReservedPorts)
	reserved.AddRanges(s.ReservedPorts)
	var servers []string
	for port := int(s.PortRange.Low); port <= int(s.PortRange.High); port++ {
		if p := uint16(port); t.servers.Has(p) && usable.Has(p) && !before.Contains(p) {
			servers = append(servers, strconv.Itoa(port))
			reserved.Add(p)
			usable.Remove(p) // also for the family that does not conflict with the server
		}
	}
	cure := Cure{
		Title:     "Widen the range",
		Sentence:  fmt.Sprintf("Sockets without a port can then get those of %d-%d.", s.PortRange.Low, s.PortRange.High),
		Then:      Outlook{Ports: usable.Size() - usable.Common(&c.held)},
		Command:   fmt.Sprintf("sysctl -w net.ipv4.ip_local_port_range=\"%d %d\"", s.PortRange.Low, s.PortRange.High),
		Condition: "Reserve all ports in there on which a program listens or may listen later, over TCP or UDP.",
	}
	if len(servers) > 0 {
		command, ok := reserveCommand(&reserved)
		if !ok {
			return Cure{}
		}
		cure.Sentence += " On these, UDP sockets wait for packets, so reserve them first: " + someOf(servers) + "."
		cure.Command = command + cure.Command[len("sysctl -w"):]
	}
	return cure
}

// giveBackUDP gives back the reserved ports that no socket holds.
func (t *UDPTable) giveBackUDP(now int, c *udpCounts) Cure {
	var kept portset.Map
	kept.AddRanges(t.settings.ReservedPorts)
	n := 0
	for port := int(t.settings.PortRange.Low); port <= int(t.settings.PortRange.High); port++ {
		if p := uint16(port); kept.Has(p) && !c.held.Has(p) && !t.servers.Has(p) {
			kept.Remove(p)
			n++
		}
	}
	command, ok := reserveCommand(&kept)
	if !ok {
		return Cure{}
	}
	return Cure{
		Title:    "Give back reserved ports",
		Sentence: fmt.Sprintf("%d ports of the range are reserved, and no UDP socket holds them.", n), N: n,
		Then:      Outlook{Ports: now + n},
		Command:   command,
		Condition: "No program needs them, also not over TCP.",
	}
}

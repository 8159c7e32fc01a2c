package pool

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// A Report says how the ephemeral ports of one network namespace are used.
type Report struct {
	Settings Settings

	ReservedPorts int // of the range, withheld by ip_local_reserved_ports
	BlockedPorts  int // of the range, withheld by listeners
	CapacityPorts int // that connect() can choose from

	// MaxUtilization is that of the worst destination, reported or not; 0 without
	// any, 1 where no destination can be connected to.
	MaxUtilization float64

	Destinations []Destination // those that hold most ports, in that order
	Sources      []Source      // those that hold most ports, in that order

	UnreportedDestinations int // left out of Destinations by the limits
	UnreportedPorts        int // that those hold

	Sockets  int // added to the Table
	TimeWait TimeWaitSeen
}

// TimeWaitSeen tells how long TIME_WAIT lasts, by those of the sockets that are in it.
type TimeWaitSeen struct {
	Sockets int           // on usable ports
	Longest time.Duration // the most that one of them still had to go
}

// A Destination is one pool of ports: what connect() calls from one source address
// to one destination compete for.
type Destination struct {
	Source  netip.Addr
	Address netip.AddrPort

	// Ports counts the ports held, by state in the order of States.
	Ports [len(States)]int

	Held        int     // the sum of Ports
	Reusable    int     // ports in TIME_WAIT that connect() may take over now
	Utilization float64 // from 0 to 1, where the next connect() fails

	Ceiling   float64 // new connections per second that the pool can sustain
	CloseRate float64 // connections per second that this host was first to close
}

// A Source is one local address.
type Source struct {
	Address     netip.Addr
	Ports       int     // distinct ports in use
	BindParity  int     // those of Ports with the parity that bind(ip, 0) fills first
	Capacity    int     // ports that bind(ip, 0) can choose from
	Utilization float64 // from 0 to 1, where the next bind(ip, 0) fails
}

// Report judges what was counted.
func (t *Table) Report(limits Limits) Report {
	r := Report{
		Settings:      t.settings,
		ReservedPorts: t.reserved,
		BlockedPorts:  len(t.blocked),
		CapacityPorts: t.capacity,
		Sockets:       t.sockets,
		TimeWait:      t.seen,
	}
	if t.capacity == 0 {
		r.MaxUtilization = 1
	}

	var candidates []Destination
	leaveOut := func(held int) {
		r.UnreportedDestinations++
		r.UnreportedPorts += held
	}
	for key, i := range t.pools {
		counts := &t.counts[i]
		held := counts.held()
		r.MaxUtilization = max(r.MaxUtilization, utilization(held-int(counts.reusable), t.capacity))
		if held < limits.MinPorts {
			leaveOut(held)
			continue
		}
		candidates = append(candidates, t.destination(key, counts))
	}
	slices.SortFunc(candidates, func(a, b Destination) int {
		return cmp.Or(cmp.Compare(b.Held, a.Held), a.Source.Compare(b.Source), a.Address.Compare(b.Address))
	})
	reported := min(limits.Most, len(candidates))
	for _, d := range candidates[reported:] {
		leaveOut(d.Held)
	}
	r.Destinations = candidates[:reported]

	r.Sources = make([]Source, 0, len(t.sources))
	for key, ports := range t.sources {
		r.Sources = append(r.Sources, Source{
			Address:    address(key.address, key.zone),
			Ports:      ports.size(),
			BindParity: ports.parityOf(t.settings.PortRange.Low + 1),
		})
	}
	slices.SortFunc(r.Sources, func(a, b Source) int {
		return cmp.Or(cmp.Compare(b.Ports, a.Ports), a.Address.Compare(b.Address))
	})
	r.Sources = r.Sources[:min(limits.Most, len(r.Sources))]
	for i := range r.Sources {
		src := &r.Sources[i]
		src.Capacity = t.sourceCapacity(src.Address.WithZone(""))
		src.Utilization = utilization(src.Ports, src.Capacity)
	}
	return r
}

// destination judges one pool.
func (t *Table) destination(key poolKey, counts *poolCounts) Destination {
	rule := t.rule(counts.loopback)
	d := Destination{
		Source:    address(key.source, key.zone),
		Address:   netip.AddrPortFrom(address(key.destination, key.zone), uint16(key.port)),
		Held:      counts.held(),
		Reusable:  int(counts.reusable),
		Ceiling:   perSecond(t.capacity, rule.hold()),
		CloseRate: perSecond(int(counts.closed), rule.closeWindow()),
	}
	for i, state := range States {
		d.Ports[i] = int(counts.states[state])
	}
	d.Utilization = utilization(d.Held-d.Reusable, t.capacity)
	return d
}

// address is that of a key. A link-local one has the index of its interface as zone, a
// form that RFC 4007 section 11.2 asks every implementation to know.
func address(b [16]byte, zone uint32) netip.Addr {
	a := netip.AddrFrom16(b).Unmap()
	if zone == 0 || !a.IsLinkLocalUnicast() {
		return a
	}
	return a.WithZone(strconv.FormatUint(uint64(zone), 10))
}

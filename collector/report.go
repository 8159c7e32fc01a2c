package collector

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"ephemeral_port_exporter/collector/sockdiag"
)

// A Report is what one collection found in one network namespace.
type Report struct {
	Settings Settings

	ReservedPorts int // of the range, withheld by ip_local_reserved_ports
	BlockedPorts  int // of the range, withheld by listeners
	CapacityPorts int // that connect() can choose from

	TimeWaitSockets   int    // in the namespace, on any port
	TimeWaitOverflows uint64 // TCPTimeWaitOverflow

	// Partial is set if the sockets were not looked at because there are too few of them
	// to matter. Then nothing below is known but Duration.
	Partial bool

	// MaxUtilization is that of the worst destination, reported or not; 0 without
	// any, 1 where no destination can be connected to.
	MaxUtilization float64

	Destinations []Destination // those that hold most ports, in that order
	Sources      []Source      // those that hold most ports, in that order

	UnreportedDestinations int // left out of Destinations by the limits
	UnreportedPorts        int // that those hold

	Sockets  int           // read from the kernel
	Duration time.Duration // that the collection took
}

// A Destination is one pool of ports: what connect() calls from one source address
// to one destination compete for.
type Destination struct {
	Source  netip.Addr
	Address netip.AddrPort

	// Ports counts the ports held, by state in the order of sockdiag.PortHolding.
	Ports [len(sockdiag.PortHolding)]int

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

// Limits bound the size of a Report.
type Limits struct {
	MinPorts int // a destination is reported if it holds as many ports
	Most     int // destinations reported, and sources
}

// report judges what was counted. What a tally does not know is left zero.
func (t *tally) report(s Settings, limits Limits) Report {
	r := Report{
		Settings:      s,
		ReservedPorts: t.reserved,
		BlockedPorts:  len(t.blocked),
		CapacityPorts: t.capacity,
		Sockets:       t.sockets,
	}
	if t.capacity == 0 {
		r.MaxUtilization = 1
	}

	var candidates []Destination
	leaveOut := func(held int) {
		r.UnreportedDestinations++
		r.UnreportedPorts += held
	}
	for p, counts := range t.pools {
		held := counts.held()
		r.MaxUtilization = max(r.MaxUtilization, utilization(held-counts.reusable, t.capacity))
		if held < limits.MinPorts {
			leaveOut(held)
			continue
		}
		candidates = append(candidates, t.destination(p, counts))
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
	for a, ports := range t.sources {
		r.Sources = append(r.Sources, Source{
			Address:    withZone(a.address, a.zone),
			Ports:      ports.size(),
			BindParity: ports.withParity(s.PortRange.Low + 1),
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
func (t *tally) destination(p pool, counts *poolCounts) Destination {
	rule := t.rule(counts.loopback)
	d := Destination{
		Source:    withZone(p.source, p.zone),
		Address:   netip.AddrPortFrom(withZone(p.destination.Addr(), p.zone), p.destination.Port()),
		Held:      counts.held(),
		Reusable:  counts.reusable,
		Ceiling:   perSecond(t.capacity, rule.hold()),
		CloseRate: perSecond(counts.closed, rule.closeWindow()),
	}
	for i, state := range sockdiag.PortHolding {
		d.Ports[i] = counts.states[state]
	}
	d.Utilization = utilization(d.Held-d.Reusable, t.capacity)
	return d
}

// withZone names the interface of a link-local address by its index, a form
// that RFC 4007 section 11.2 asks every implementation to know.
func withZone(a netip.Addr, zone uint32) netip.Addr {
	if zone == 0 || !a.IsLinkLocalUnicast() {
		return a
	}
	return a.WithZone(strconv.FormatUint(uint64(zone), 10))
}

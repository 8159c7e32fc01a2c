package snat

import (
	"cmp"
	"net/netip"
	"slices"

	"ephemeral_port_exporter/collector/internal/limit"
	"ephemeral_port_exporter/collector/internal/portset"
)

// A Report tells how the ports of source NAT are used in one network namespace.
type Report struct {
	Settings       Settings
	CapacityPorts  int     // that each pool has
	MaxUtilization float64 // of a pool, reported or not
	Pools          []Pool  // those in most danger, see byDanger, in descending order

	UnreportedPools int // not in Pools because of the limits
	UnreportedPorts int // held by these

	Flows int // that were added to the Table
}

// A Pool is the ports of one translated source address for one destination. Clients that are
// translated to this address compete for them.
type Pool struct {
	Protocol Protocol
	Source   netip.Addr // translated
	Address  netip.AddrPort

	Ports    [numStates]int // held, by State
	Held     int            // the sum of Ports
	Reusable int            // of flows that a new connection may take over

	// Utilization is (Held - Reusable) / CapacityPorts. At 1, no port is free: the first packet of a
	// connection is dropped, unless it can take over one of the reusable ports.
	Utilization float64

	// SearchFailure is the share of searches for a port that find none, although ports may be free: the
	// kernel does not try all of them. NAT then drops the packet. It searches if the rule says so
	// (random, fully-random), or if the client's own port is taken or not in the range. Where the size of
	// the range does not divide 65536, up to 0.1% more fail. Where reusable ports alone are left, fewer
	// may fail.
	SearchFailure float64

	// Ceiling is how many connections per second the pool sustains while those that are open now stay
	// open. It is infinite if closed ones are taken over, and NaN if their timeout is not known.
	Ceiling float64

	// Clients are the addresses before translation that hold most of the ports, at most MaxClients, in
	// descending order. That of an own socket is the translated address.
	Clients []Client
}

// MaxClients is how many clients of a pool are reported at most.
const MaxClients = 3

// A Client is an address that holds ports of a pool.
type Client struct {
	Address netip.Addr
	Ports   int
}

// Report returns the report of the flows that were added, bounded by the limits. Nothing must be added
// afterwards.
func (t *Table) Report(limits limit.Limits) Report {
	t.addOwn()
	r := Report{Settings: t.settings, CapacityPorts: t.settings.PortRange.Size(), Flows: t.flows}
	type candidate struct {
		Pool
		counts   *poolCounts
		searched bool // SearchFailure is set
	}
	var candidates []candidate
	for key, i := range t.pools {
		c := t.counts.At(int(i))
		p := t.pool(key, c)
		r.MaxUtilization = max(r.MaxUtilization, p.Utilization)
		if p.Held < limits.MinPorts {
			r.UnreportedPools++
			r.UnreportedPorts += p.Held
			continue
		}
		searched := p.Utilization >= searchedFrom
		if searched {
			p.SearchFailure = t.searchFailure(c)
		}
		candidates = append(candidates, candidate{p, c, searched})
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return byDanger(a.Pool, b.Pool) })
	type labels struct {
		protocol    Protocol
		source      netip.Addr
		destination netip.AddrPort
	}
	reported := map[labels]bool{}
	for _, c := range candidates {
		// Of pools that differ in nothing but the zone, the one in most danger is reported.
		l := labels{c.Protocol, c.Source, c.Address}
		if len(r.Pools) >= limits.Most || reported[l] {
			r.UnreportedPools++
			r.UnreportedPorts += c.Held
			continue
		}
		reported[l] = true
		if !c.searched {
			c.SearchFailure = t.searchFailure(c.counts)
		}
		for _, n := range c.counts.clients.Largest(MaxClients, netip.Addr.Compare) {
			c.Clients = append(c.Clients, Client{n.Key, n.Ports})
		}
		r.Pools = append(r.Pools, c.Pool)
	}
	return r
}

// searchedFrom is the utilization up to which less than 0.1% of searches fail, however the ports lie: each
// of five rounds finds no port in at most this share of cases. In a range of 8 ports or fewer that are all
// reusable, more can fail.
const searchedFrom = 0.25

// searchFailure returns Pool.SearchFailure.
func (t *Table) searchFailure(c *poolCounts) float64 {
	if c.fixed.Len()+c.reusable.Len() < min(maxTries, t.settings.PortRange.Size()) {
		return 0 // the first round finds a free one
	}
	var taken, reusable portset.Map
	for port := range t.lists.All(c.fixed) {
		taken.Add(port)
	}
	for port := range t.lists.All(c.reusable) {
		taken.Add(port)
		reusable.Add(port)
	}
	return searchFailure(t.settings.PortRange, &taken, &reusable)
}

// pool returns the report of one pool without SearchFailure and Clients.
func (t *Table) pool(key poolKey, c *poolCounts) Pool {
	p := Pool{
		Protocol: TCP,
		Source:   key.source(),
		Address:  netip.AddrPortFrom(netip.AddrFrom16(key.destination).Unmap(), key.port),
		Reusable: c.reusable.Len(),
	}
	if key.udp == 1 {
		p.Protocol = UDP
	}
	open := 0
	for state, n := range c.states {
		p.Ports[state] = int(n)
		p.Held += int(n)
		if State(state).Open() {
			open += int(n)
		}
	}
	capacity := t.settings.PortRange.Size()
	p.Utilization = min(float64(p.Held-p.Reusable)/float64(capacity), 1)
	left := capacity - open
	if p.Protocol == TCP && t.settings.TakesOver { // but those of own sockets are not taken over
		left = capacity - (p.Held - p.Reusable)
	}
	p.Ceiling = t.settings.Ceiling(p.Protocol, left)
	return p
}

// byDanger orders pools: those where most searches fail first, in percent, then the greatest
// utilization, then most ports, then by address.
func byDanger(a, b Pool) int {
	percent := func(p Pool) int { return int(100 * p.SearchFailure) }
	return cmp.Or(
		cmp.Compare(percent(b), percent(a)),
		cmp.Compare(b.Utilization, a.Utilization), cmp.Compare(b.Held, a.Held),
		a.Source.Compare(b.Source), a.Address.Compare(b.Address), cmp.Compare(a.Protocol, b.Protocol),
	)
}

// ShareLimit bounds several reports together, as that of package pool does.
func ShareLimit(reports []*Report, most int) {
	pools := func(r *Report) []Pool { return r.Pools }
	for i, n := range limit.Shares(reports, most, pools, byDanger) {
		r := reports[i]
		for _, p := range r.Pools[n:] {
			r.UnreportedPools++
			r.UnreportedPorts += p.Held
		}
		r.Pools = r.Pools[:n]
	}
}

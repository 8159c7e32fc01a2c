package snat

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"math"
	"net/netip"
	"slices"

	"ephemeral_port_exporter/collector/internal/limit"
	"ephemeral_port_exporter/collector/internal/portset"
)

// A Report tells how the ports of source NAT are used in one network namespace.
type Report struct {
	Settings       Settings
	CapacityPorts  int     // that each pool of the kernel has
	MaxUtilization float64 // of a pool, reported or not, without UnknownPools; NaN if there are none but these
	Pools          []Pool  // see keep, in the order of byDanger
	Others         []Pool  // those in most danger that are not reported, in the same order

	UnreportedPools          int     // not in Pools because of the limits, in Others or not
	UnreportedPorts          int     // held by these
	UnreportedMaxUtilization float64 // of these, as MaxUtilization; NaN if there are none
	UnknownPools             int     // whose utilization is not known, reported or not; without those below the limit of ports

	Flows   int // that were added to the Table
	Outside int // of those, the translated ones with a port outside Settings.PortRanges, or of Cilium outside its Ports

	// CiliumFrom is the lowest port of the flows of Cilium, if these show that its range begins above that of Settings.Cilium.
	// It is 0 otherwise. Nothing is known of the pools of Cilium then.
	CiliumFrom uint16
}

// A Pool is the ports of one translated source address for one destination. Clients that are
// translated to this address compete for them.
type Pool struct {
	Protocol Protocol
	Source   netip.Addr // translated
	Address  netip.AddrPort
	Cilium   bool // its ports are those of Cilium's datapath, and not of the kernel
	Capacity int  // ports that it has

	Ports    [numStates]int // held, by State
	Held     int            // the sum of Ports
	Outside  int            // further ones, outside Settings.PortRanges
	Reusable int            // of flows that a new connection may take over

	// Utilization is (Held - Reusable) / Capacity. At 1, no port is free: the first packet of a
	// connection is dropped, unless it can take over one of the reusable ports. It is NaN if it is not known,
	// as are SearchFailure and Ceiling: many flows are outside Settings.PortRanges, or there are FullBlocks.
	Utilization float64

	// FullBlocks are blocks of ports that are all taken. They lie as blocks of a rule do and not by chance, they have
	// most ports of the pool, NAT chose most of these, and packets are dropped: so the pool looks full, with a rule that
	// has these ports alone.
	FullBlocks []portset.Range

	// SearchFailure is the share of searches for a port that find none, although ports may be free: the
	// kernel does not try all of them. NAT then drops the packet. It searches if the rule says so
	// (random, fully-random), or if the client's own port is taken or not in the range. Where the size of
	// the range does not divide 65536, up to 0.1% more fail. Where reusable ports alone are left, fewer
	// may fail. Of Cilium, see Cilium.
	SearchFailure float64

	// Ceiling is how many connections per second the pool sustains while those that are open now stay
	// open. It is infinite if closed ones are taken over, and NaN if their timeout is not known.
	Ceiling float64

	// Clients are the addresses before translation that hold most of the ports, at most MaxClients, in
	// descending order. That of an own socket is the translated address.
	Clients []Client

	// turn is the place of the pool among those of one of its clients, the worst being 0: the first of these places.
	turn int
	lot  uint64 // orders pools of different clients at random
}

// MaxClients is how many clients of a pool are reported at most.
const MaxClients = 3

// A Client is an address that holds ports of a pool.
type Client struct {
	Address netip.Addr
	Ports   int
}

// Report returns the report of the flows that were added, bounded by the limits. limits.MinPorts leaves out no pool that has
// half of its ports in use. Nothing must be added afterwards.
func (t *Table) Report(limits limit.Limits) Report {
	t.addOwn()
	r := Report{Settings: t.settings, CapacityPorts: t.settings.Ports(), Flows: t.flows, Outside: t.outside, UnreportedMaxUtilization: math.NaN()}
	if t.cilium.contradicts(t.settings.Cilium) {
		r.CiliumFrom = t.cilium.lowest
	}
	var candidates []candidate // that may have series, and with twins the others too
	// These hold too few ports for series. There can be very many, so only those in most danger are kept.
	low := limit.Top[candidate]{Most: limit.Listed, Order: func(a, b candidate) int { return byDanger(&a.Pool, &b.Pool) }}
	var over []candidate // the first of those beyond the limit
	small := limit.Top[smallPool]{Most: limit.Listed, Order: t.compareSmall}
	anyKnown := false
	for n, c := range t.all() {
		p := t.pool(n, c)
		if p.Held+p.Outside < min(limits.Small(), p.half()) {
			if p.Known() {
				anyKnown = true
				r.MaxUtilization = max(r.MaxUtilization, p.Utilization)
				small.Add(smallPool{p.Utilization, p.Held + p.Outside, n})
			}
			r.leaveOut(&p)
			continue
		}
		// Below, few searches fail in one range. Of several, one can be full.
		searched := p.Known() && (p.Utilization >= searchedFrom || len(t.settings.PortRanges) > 1)
		if p.Cilium {
			searched = p.Known() && p.Utilization >= dangerousFailure
		}
		if searched {
			p.SearchFailure = t.searchFailure(&p, c)
		}
		if t.settings.Drops && !p.Cilium && p.Utilization < searchedFrom && p.SearchFailure == 0 {
			if p.FullBlocks = fullBlocks(t.taken(c), int(c.kept)); p.FullBlocks != nil {
				p.unknown()
			}
		}
		if p.Known() {
			anyKnown = true
			r.MaxUtilization = max(r.MaxUtilization, p.Utilization)
		} else {
			r.UnknownPools++
		}
		next := candidate{p, c, searched}
		if !t.twins && !next.hasSeries(limits) {
			r.leaveOut(&p)
			low.Add(next)
			continue
		}
		candidates = append(candidates, next)
	}
	if t.len() > 0 && !anyKnown {
		r.MaxUtilization = math.NaN()
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return byDanger(&a.Pool, &b.Pool) })
	candidates = slices.DeleteFunc(r.leaveOutTwins(candidates), func(c candidate) bool {
		if c.hasSeries(limits) {
			return false
		}
		r.leaveOut(&c.Pool)
		low.Add(c)
		return true
	})
	t.setTurns(candidates)
	pools := make([]*Pool, len(candidates))
	for i := range candidates {
		pools[i] = &candidates[i].Pool
		if limits.Seed != (maphash.Seed{}) {
			pools[i].lot = maphash.Comparable(limits.Seed, pools[i].labels())
		}
	}
	kept := keep([][]*Pool{pools}, limits.Most)
	for i := range candidates {
		c := &candidates[i]
		if !kept[&c.Pool] {
			r.leaveOut(&c.Pool)
			if len(over) < limit.Listed {
				over = append(over, *c)
			}
			continue
		}
		r.Pools = append(r.Pools, t.complete(c))
	}
	others := slices.Concat(low.Items, over)
	for _, p := range small.Items {
		c := t.at(p.number)
		others = append(others, candidate{t.pool(p.number, c), c, false})
	}
	slices.SortFunc(others, low.Order)
	for i := range others[:min(len(others), limit.Listed)] {
		r.Others = append(r.Others, t.complete(&others[i]))
	}
	return r
}

// complete returns the pool of a candidate with SearchFailure and Clients.
func (t *Table) complete(c *candidate) Pool {
	p := c.Pool
	if !c.searched && p.Known() {
		p.SearchFailure = t.searchFailure(&p, c.counts)
	}
	byAddress := func(a, b uint32) int { return t.client(a).Compare(t.client(b)) }
	for _, n := range c.counts.clients.Largest(MaxClients, byAddress) {
		p.Clients = append(p.Clients, Client{t.client(n.Key), n.Ports})
	}
	return p
}

// Listed returns Pools and Others.
func (r *Report) Listed() []Pool { return slices.Concat(r.Pools, r.Others) }

// A smallPool is a pool that is one of Others only if it is in most danger.
type smallPool struct {
	utilization float64
	held        int // with those outside
	number      int
}

// compareSmall orders small pools as byDanger, but for equal ones by key, which takes less time: there can be very many.
func (t *Table) compareSmall(a, b smallPool) int {
	if c := cmp.Or(cmp.Compare(b.utilization, a.utilization), cmp.Compare(b.held, a.held)); c != 0 {
		return c
	}
	if ipv4 := &t.ipv4.counts; max(a.number, b.number) < ipv4.Len() {
		x, y := ipv4.At(a.number).Key, ipv4.At(b.number).Key
		return slices.Compare(x[:], y[:])
	}
	x, y := t.key(a.number), t.key(b.number)
	return cmp.Or(
		bytes.Compare(x.translated[:], y.translated[:]), bytes.Compare(x.destination[:], y.destination[:]),
		cmp.Compare(x.port, y.port), cmp.Compare(x.zone, y.zone), cmp.Compare(x.kind, y.kind),
	)
}

// A candidate is a pool that may be reported.
type candidate struct {
	Pool
	counts   *poolCounts
	searched bool // SearchFailure is set
}

// hasSeries reports whether a candidate has series if there is room for it.
func (c *candidate) hasSeries(limits limit.Limits) bool {
	return c.Held+c.Outside >= min(limits.Series(c.Capacity), c.half()) || c.rank() == 0
}

// labels identify a pool for readers of the report.
type labels struct {
	protocol    Protocol
	source      netip.Addr
	destination netip.AddrPort
}

func (p *Pool) labels() labels { return labels{p.Protocol, p.Source, p.Address} }

// leaveOutTwins returns the candidates, which are in the order of byDanger, without those that have the labels of an earlier one: they differ
// in the zone, or in who translates.
func (r *Report) leaveOutTwins(candidates []candidate) []candidate {
	seen := make(map[labels]bool, len(candidates))
	return slices.DeleteFunc(candidates, func(c candidate) bool {
		l := c.labels()
		if seen[l] {
			r.leaveOut(&c.Pool)
			return true
		}
		seen[l] = true
		return false
	})
}

// leaveOut counts a pool that is not reported.
func (r *Report) leaveOut(p *Pool) {
	r.UnreportedPools++
	r.UnreportedPorts += p.Held
	if p.Known() && !(p.Utilization <= r.UnreportedMaxUtilization) {
		r.UnreportedMaxUtilization = p.Utilization
	}
}

// searchedFrom is the utilization up to which less than 0.1% of searches fail, however the ports lie: each
// of five rounds finds no port in at most this share of cases. In a range of 8 ports or fewer that are all
// reusable, more can fail.
const searchedFrom = 0.25

// searchFailure returns Pool.SearchFailure.
func (t *Table) searchFailure(p *Pool, c *poolCounts) float64 {
	if p.Cilium {
		return t.settings.Cilium.searchFailure(t.taken(c))
	}
	ranges := t.settings.PortRanges
	least := maxTries
	for _, r := range ranges {
		least = min(least, r.Size())
	}
	if c.fixed.Len()+c.reusable.Len() < least {
		return 0 // the first round finds a free one
	}
	taken := t.taken(c)
	var reusable portset.Map
	for port := range t.lists.All(c.reusable) {
		reusable.Add(port)
	}
	return meanFailure(ranges, taken, &reusable)
}

// taken returns the ports of a pool that are not free.
func (t *Table) taken(c *poolCounts) *portset.Map {
	var taken portset.Map
	for port := range t.lists.All(c.fixed) {
		taken.Add(port)
	}
	for port := range t.lists.All(c.reusable) {
		taken.Add(port)
	}
	return &taken
}

// pool returns the report of one pool without SearchFailure and Clients.
func (t *Table) pool(n int, c *poolCounts) Pool {
	key := t.key(n)
	p := Pool{
		Protocol: TCP,
		Source:   key.source(),
		Address:  netip.AddrPortFrom(netip.AddrFrom16(key.destination).Unmap(), key.port),
		Reusable: c.reusable.Len(),
		Outside:  int(c.outside),
		Capacity: t.settings.Ports(),
	}
	if key.kind&udpKind != 0 {
		p.Protocol = UDP
	}
	if key.kind&ciliumKind != 0 {
		p.Cilium, p.Capacity = true, t.settings.Cilium.Ports.Size()
	}
	open := 0
	for state, n := range c.states {
		p.Ports[state] = int(n)
		p.Held += int(n)
		if State(state).Open() {
			open += int(n)
		}
	}
	if manyOutside*p.Outside > p.Held+p.Outside || p.Cilium && t.cilium.contradicts(t.settings.Cilium) {
		p.unknown()
		return p
	}
	p.Utilization = min(float64(p.Held-p.Reusable)/float64(p.Capacity), 1)
	if p.Cilium {
		p.Ceiling = math.NaN() // its agent collects closed connections at times that depend on how many there are
		return p
	}
	left := p.Capacity - open
	if p.Protocol == TCP && t.settings.TakesOver { // but those of own sockets are not taken over
		left = p.Capacity - (p.Held - p.Reusable)
	}
	p.Ceiling = t.settings.Ceiling(p.Protocol, left)
	return p
}

// half returns how many of its ports make a pool dangerous.
func (p *Pool) half() int { return int(dangerousUtilization * float64(p.Capacity)) }

// manyOutside is 1 / 10%: with more flows outside the ranges, most of which are then wrong, nothing is known of a pool.
// Fewer are left of another range, or are of another rule.
const manyOutside = 10

// unknown says that it is not known how full a pool is.
func (p *Pool) unknown() {
	p.Utilization, p.SearchFailure, p.Ceiling = math.NaN(), math.NaN(), math.NaN()
}

// Known reports whether it is known how full a pool is.
func (p *Pool) Known() bool { return !math.IsNaN(p.Utilization) }

// A pool is in danger from one of these on, as package advice has it.
const (
	dangerousUtilization = 0.5
	dangerousFailure     = 0.01
)

// rank returns the place of a pool in the order of byDanger.
func (p *Pool) rank() int {
	switch {
	case p.Utilization >= dangerousUtilization || p.SearchFailure >= dangerousFailure:
		return 0
	case !p.Known():
		return 1
	default:
		return 2
	}
}

// byDanger orders pools: those in danger first, then those of which nothing is known, then the others. So no number of
// unknown pools takes the places of those in danger. Then come those where most searches fail, in percent, then the
// greatest utilization, then most ports, then by address.
func byDanger(a, b *Pool) int {
	percent := func(p *Pool) int {
		if !p.Known() {
			return 0
		}
		return int(100 * p.SearchFailure)
	}
	return cmp.Or(
		cmp.Compare(a.rank(), b.rank()),
		cmp.Compare(percent(b), percent(a)),
		cmp.Compare(b.Utilization, a.Utilization), cmp.Compare(b.Held+b.Outside, a.Held+a.Outside),
		a.Source.Compare(b.Source), a.Address.Compare(b.Address), cmp.Compare(a.Protocol, b.Protocol),
	)
}

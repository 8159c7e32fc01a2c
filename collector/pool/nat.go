package pool

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/internal/limit"
	"ephemeral_port_exporter/collector/internal/portset"
)

// NATSettings are what the ports of source NAT depend on.
type NATSettings struct {
	// PortRange are the ports that NAT chooses from: that of the rule. Without one in the rule, it is
	// 1024-65535 for clients whose own port is 1024 or above. Clients with a lower port get a lower
	// one, from a pool that is not counted (nf_nat_l4proto_unique_tuple of net/netfilter/nf_nat_core.c).
	PortRange PortRange

	// TakesOver says that a new TCP connection may get the port of a flow in TIME_WAIT, CLOSE or
	// SYN_SENT2: since Linux 6.5, nf_nat_used_tuple_harder. Where that is not known, it is false: ports
	// then seem to be held that are not.
	TakesOver bool

	// After these times without a packet, a port is free again: that of a closed TCP connection, and
	// that of an exchange over UDP. They are 0 if not known.
	TCPTimeWait time.Duration // nf_conntrack_tcp_timeout_time_wait
	UDP         time.Duration // nf_conntrack_udp_timeout
}

// A NATTable counts the flows of one network namespace by the pool of source NAT that they hold a
// port of. Its memory grows with the number of pools, by 2 bytes for each flow of source NAT, and by 48 for
// each flow of an own socket.
type NATTable struct {
	settings NATSettings
	pools    map[natKey]int32 // index into counts
	counts   portset.Blocks[natCounts]
	own      portset.Blocks[ownFlow] // not counted yet
	lists    portset.Lists
	flows    int
}

// A natKey identifies a pool: the ports of a translated address for one destination. It has no
// pointers and no padding, because a map is searched for it for each flow.
type natKey struct {
	translated, destination [16]byte // IPv6 or IPv4-mapped
	port, zone              uint16
	udp                     uint32 // 0 or 1
}

// natCounts are the flows of one pool.
type natCounts struct {
	states          [natStates]uint32
	fixed, reusable portset.List // their ports
	clients         portset.Counts[netip.Addr]
}

// An ownFlow is a flow of an own socket. It counts if source NAT has the pool too: own sockets alone get their
// ports by connect(), and they can have any number of destinations.
type ownFlow struct {
	key   natKey
	port  uint16
	state NATState
}

// NewNATTable returns an empty NATTable.
func NewNATTable(s NATSettings) *NATTable {
	return &NATTable{settings: s, pools: make(map[natKey]int32)}
}

// Add counts a flow. The caller may reuse f afterwards.
func (t *NATTable) Add(f *NATFlow) {
	t.flows++
	port := f.Translated.Port()
	if !t.settings.PortRange.Contains(port) {
		return
	}
	key := newNATKey(f)
	if !f.SNAT {
		t.own.Add(ownFlow{key, port, f.State})
		return
	}
	i, ok := t.pools[key]
	if !ok {
		i = int32(t.counts.Len())
		t.pools[key] = i
		t.counts.Add(natCounts{})
	}
	c := t.counts.At(int(i))
	c.states[f.State]++
	c.clients.Add(f.Client)
	list := &c.fixed
	if t.settings.TakesOver && f.State.TakenOver() {
		list = &c.reusable
	}
	t.lists.Add(list, port)
}

// addOwn counts the flows of own sockets in the pools of source NAT.
func (t *NATTable) addOwn() {
	for i := range t.own.Len() {
		f := t.own.At(i)
		if pool, ok := t.pools[f.key]; ok {
			c := t.counts.At(int(pool))
			c.states[f.state]++
			c.clients.Add(f.key.source())
			t.lists.Add(&c.fixed, f.port)
		}
	}
	t.own = portset.Blocks[ownFlow]{}
}

// newNATKey returns the key of a flow's pool.
func newNATKey(f *NATFlow) natKey {
	key := natKey{
		translated: f.Translated.Addr().As16(), destination: f.Destination.Addr().As16(),
		port: f.Destination.Port(), zone: f.Zone,
	}
	if f.Protocol == UDP {
		key.udp = 1
	}
	return key
}

// source returns the translated address.
func (k natKey) source() netip.Addr { return netip.AddrFrom16(k.translated).Unmap() }

// A NATReport tells how the ports of source NAT are used in one network namespace.
type NATReport struct {
	Settings       NATSettings
	CapacityPorts  int       // that each pool has
	MaxUtilization float64   // of a pool, reported or not
	Pools          []NATPool // those in most danger, see natByDanger, in descending order

	UnreportedPools int // not in Pools because of the limits
	UnreportedPorts int // held by these

	Flows int // that were added to the NATTable
}

// A NATPool is the ports of one translated source address for one destination. Clients that are
// translated to this address compete for them.
type NATPool struct {
	Protocol Protocol
	Source   netip.Addr // translated
	Address  netip.AddrPort

	Ports    [natStates]int // held, by NATState
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

	// Clients are the addresses before translation that hold most of the ports, at most MaxOwners, in
	// descending order. That of an own socket is the translated address.
	Clients []NATClient
}

// A NATClient is an address that holds ports of a pool.
type NATClient struct {
	Address netip.Addr
	Ports   int
}

// Report returns the report of the flows that were added, bounded by the limits. Nothing must be added
// afterwards.
func (t *NATTable) Report(limits Limits) NATReport {
	t.addOwn()
	r := NATReport{Settings: t.settings, CapacityPorts: t.settings.PortRange.Size(), Flows: t.flows}
	type candidate struct {
		NATPool
		counts   *natCounts
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
		searched := p.Utilization >= natSearched
		if searched {
			p.SearchFailure = t.searchFailure(c)
		}
		candidates = append(candidates, candidate{p, c, searched})
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return natByDanger(a.NATPool, b.NATPool) })
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
		for _, n := range c.counts.clients.Largest(MaxOwners, netip.Addr.Compare) {
			c.Clients = append(c.Clients, NATClient{n.Key, n.Ports})
		}
		r.Pools = append(r.Pools, c.NATPool)
	}
	return r
}

// natSearched is the utilization up to which less than 0.1% of searches fail, however the ports lie: each
// of five rounds finds no port in at most this share of cases. In a range of 8 ports or fewer that are all
// reusable, more can fail.
const natSearched = 0.25

// searchFailure returns NATPool.SearchFailure.
func (t *NATTable) searchFailure(c *natCounts) float64 {
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
func (t *NATTable) pool(key natKey, c *natCounts) NATPool {
	p := NATPool{
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
		if NATState(state).Open() {
			open += int(n)
		}
	}
	capacity := t.settings.PortRange.Size()
	p.Utilization = utilization(p.Held-p.Reusable, capacity)
	left := capacity - open
	if p.Protocol == TCP && t.settings.TakesOver { // but those of own sockets are not taken over
		left = capacity - (p.Held - p.Reusable)
	}
	p.Ceiling = t.settings.Ceiling(p.Protocol, left)
	return p
}

// Ceiling returns how many flows per second get one of some ports that are not in use for longer.
func (s NATSettings) Ceiling(p Protocol, ports int) float64 {
	hold := s.TCPTimeWait
	if p == UDP {
		hold = s.UDP
	}
	switch {
	case ports <= 0:
		return 0
	case p == TCP && s.TakesOver:
		return math.Inf(1)
	case hold == 0:
		return math.NaN()
	default:
		return float64(ports) / hold.Seconds()
	}
}

// natByDanger orders pools: those where most searches fail first, in percent, then the greatest
// utilization, then most ports, then by address.
func natByDanger(a, b NATPool) int {
	percent := func(p NATPool) int { return int(100 * p.SearchFailure) }
	return cmp.Or(
		cmp.Compare(percent(b), percent(a)),
		cmp.Compare(b.Utilization, a.Utilization), cmp.Compare(b.Held, a.Held),
		a.Source.Compare(b.Source), a.Address.Compare(b.Address), cmp.Compare(a.Protocol, b.Protocol),
	)
}

// ShareNATLimit bounds several reports together, as ShareLimit does.
func ShareNATLimit(reports []*NATReport, most int) {
	pools := func(r *NATReport) []NATPool { return r.Pools }
	for i, n := range limit.Shares(reports, most, pools, natByDanger) {
		r := reports[i]
		for _, p := range r.Pools[n:] {
			r.UnreportedPools++
			r.UnreportedPorts += p.Held
		}
		r.Pools = r.Pools[:n]
	}
}

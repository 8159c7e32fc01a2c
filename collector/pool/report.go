package pool

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"ephemeral_port_exporter/collector/internal/limit"
	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// A Report tells how the ephemeral ports of one network namespace are used.
type Report struct {
	Settings Settings

	ReservedPorts int // in the range, reserved by ip_local_reserved_ports
	BlockedPorts  int // in the range, not reserved, blocked by listeners
	CapacityPorts int // in the range, connect() can choose from these

	// BoundPorts are those of CapacityPorts that connect() cannot choose after all, because
	// some socket is bound to them. If they were inferred, up to BoundUnknown more may be bound:
	// how their clients choose was not seen. Without BoundKnown, nothing is known of BoundPorts.
	BoundPorts   int
	BoundUnknown int
	BoundKnown   bool
	BoundExact   bool // known from the kernel; else inferred from which ports were new, see Infer

	// BoundOwners are the control groups of the sockets in pools whose ports are mostly bound: those with most
	// sockets, in descending order. Nobody owns a mini-socket.
	BoundOwners []Owner

	// ListenerPorts are the ports with a listener, in the range and outside, in ascending order.
	ListenerPorts []uint16

	// UDPServerPorts are UDPReport.ServerPorts: they are in the same range. Without UDPServersKnown, they are not known.
	UDPServerPorts  []uint16
	UDPServersKnown bool

	// MaxUtilization is the highest utilization of a destination, reported or not, or without
	// any sockets. It is 1 if CapacityPorts is 0.
	MaxUtilization float64

	// MaxPossibleUtilization is the highest Destination.PossibleUtilization, of the same destinations.
	MaxPossibleUtilization float64

	// MaxSourceUtilization is the highest utilization of a source, reported or not; 0 without
	// sources.
	MaxSourceUtilization float64

	// Destinations are those in most danger, see byDanger, in descending order: first those that are reported, then the
	// others that are listed.
	Destinations []Destination
	Sources      []Source // the same of sources, see sourceByDanger

	UnreportedDestinations int              // not reported because of the limits, listed in Destinations or not
	UnreportedPorts        [len(States)]int // held by unreported destinations, by state in the order of States
	UnreportedSources      int              // not in Sources because of the limits

	Sockets  int // that were added to the Table
	TimeWait TimeWaitSeen
}

// TimeWaitSeen says how long the sockets in TIME_WAIT on usable ports still had to go.
type TimeWaitSeen struct {
	Longest time.Duration

	// Steady is set if there was a socket for each whole second from 0 up to Longest. Then the
	// host closed connections all the time, and Longest is how long TIME_WAIT lasts.
	Steady bool
}

// Pressed reports whether a pool is on the way to danger: then it is worth reading more of the namespace.
func (r *Report) Pressed() bool {
	return max(r.MaxUtilization, r.MaxSourceUtilization) >= 0.25 || slices.ContainsFunc(r.Destinations, func(d Destination) bool {
		return 2*d.CloseRate >= d.Ceiling || !math.IsInf(d.Exhaustion, 1)
	})
}

// A Destination is one pool of ports: connect() calls from one source address to one
// destination compete for it.
type Destination struct {
	Source  netip.Addr
	Address netip.AddrPort

	// Unreported is set if the limits give it no series: it is only listed.
	Unreported bool

	// Ports counts the ports held, by state in the order of States.
	Ports [len(States)]int

	Held        int     // the sum of Ports
	Reusable    int     // ports of closed connections that connect() may take over now
	Utilization float64 // from 0 to 1; at 1 the next connect() fails

	// PossibleUtilization is what Utilization is if all ports are bound of which that is not known, and if no
	// closed connection used TCP timestamps of which that is not known: the truth is between the two.
	PossibleUtilization float64

	// ReusableUnknown counts the ports that connect() may take over or not: those in FIN_WAIT2 on some kernels
	// before 6.12, where it is not known of this one, see Settings.ReuseFinWait2; and those in TIME_WAIT
	// of a destination that Table.Doubt is about. Utilization takes them for held: it can be too high by these.
	ReusableUnknown int

	// HalfClosed counts the ports in FIN_WAIT2 of connections that a process still holds: it has shut down its direction,
	// and the peer not the other. tcp_fin_timeout does not end these.
	HalfClosed int

	// BoundByOthers counts the ports that this pool does not hold, and that connect() cannot
	// choose because some socket is bound to them. They are part of Utilization.
	BoundByOthers int

	// MayBeBound counts further ports that would be unavailable if all that may be bound were, and MayBeHeld those that
	// count as Reusable, of connections that may not have used TCP timestamps. They are part of PossibleUtilization.
	MayBeBound, MayBeHeld int

	// Timestamps says whether the peer uses TCP timestamps (RFC 7323): otherwise its TIME_WAIT
	// is never reusable. It is Unknown on loopback, where nobody needed to know, and where connections differ.
	Timestamps Fact

	// TimestampsShare is which share of the connections that were asked lately use TCP timestamps, if some do and some do not: there
	// are several servers behind the address. Else it is 0.
	TimestampsShare float64

	// Owners are the control groups that hold most of the ports, at most MaxOwners, in descending
	// order. Nobody owns a mini-socket.
	Owners []Owner

	// CloseRate is the number of connections per second that this host closes first. Only these
	// hold their ports after they are closed.
	CloseRate float64

	// PeakCloseRate is the highest of CloseRate and the rates of each shorter time until now, of a second or more in which 20
	// were closed: the load may have begun in between.
	PeakCloseRate float64

	// Ceiling is the CloseRate that the pool sustains while the connections that are open now
	// stay open. At 1 × Ceiling the ports run out.
	Ceiling float64

	// Ceiling is (CapacityPorts - BoundByOthers - Open) / Hold: Open counts the ports of connections
	// that it takes to stay open, and Hold is for how many seconds a closed connection holds its
	// port. Unanswered is the share of closed connections that hold it in FIN_WAIT2, because the
	// peer does not close.
	Open       int
	Hold       float64
	Unanswered float64

	// Loopback is set if tcp_tw_reuse = 2 applies too.
	Loopback bool

	// Exhaustion is the number of seconds until Utilization is 1 if this host goes on at the
	// rate of the last seconds and as many connections as now stay open. It is infinite if
	// the ports then suffice.
	Exhaustion float64

	// SureExhaustion is a forecast at a rate that has lasted for as long as it looks ahead: never earlier than Exhaustion.
	// It is infinite if there is no rate like that: then Exhaustion is about a burst, or about a rate that has only begun to rise.
	SureExhaustion float64
}

// A Source is one local address.
type Source struct {
	Address     netip.Addr
	Ports       int     // distinct ports in use
	Bound       int     // ports that are bound, as far as that is known
	MayBound    int     // further ports that may be bound
	Capacity    int     // ports that bind(ip, 0) can choose from
	Utilization float64 // from 0 to 1; at 1 the next bind(ip, 0) fails, with Settings.AutobindReuse perhaps
}

// BindsFirst reports whether most ports of the source are bound, as far as that is known: its clients call bind() before connect(),
// and share one pool for all destinations.
func (s *Source) BindsFirst() bool { return 2*s.Bound > s.Ports }

// Report returns the report of the sockets that were added, bounded by the limits.
func (t *Table) Report(limits Limits) Report {
	r := Report{
		Settings:      t.settings,
		ReservedPorts: t.reserved,
		BlockedPorts:  len(t.blocked.ports),
		CapacityPorts: t.capacity,
		BoundPorts:    t.bound.Size(),
		BoundKnown:    t.boundKnown || t.inferred,
		BoundExact:    t.boundKnown,
		BoundUnknown:  t.doubtful.Size(),
		BoundOwners:   t.boundOwners(),
		ListenerPorts: t.listening.All(),
		Sockets:       t.sockets,
		TimeWait:      t.seen.report(),

		MaxUtilization:         utilization(t.bound.Size(), t.capacity),
		MaxPossibleUtilization: utilization(t.bound.Size()+t.doubtful.Size(), t.capacity),
	}

	r.Destinations = t.listed(&r, limits)

	// bind(source, 0) can choose all ports but those denied to the source.
	unreserved := t.capacity + len(t.blocked.ports)
	denied := t.blocked.denied()
	sources := limit.Top[Source]{Most: limits.Most, Order: sourceByDanger}
	for i := range t.sources.Len() {
		key, ports := t.sources.At(i).Key, t.sources.At(i).Value
		src := Source{
			Address:  keyAddr(key.address, key.zone),
			Ports:    ports.Size(),
			Bound:    ports.Common(&t.bound),
			MayBound: ports.Common(&t.doubtful),
			Capacity: unreserved - denied(netip.AddrFrom16(key.address).Unmap()),
		}
		src.Utilization = utilization(src.Ports, src.Capacity)
		r.MaxSourceUtilization = max(r.MaxSourceUtilization, src.Utilization)
		sources.Add(src)
	}
	r.Sources = slices.Clip(sources.Items)
	r.UnreportedSources = t.sources.Len() - len(r.Sources)
	return r
}

// A rank is the place of a pool in the order of byDanger.
type rank struct {
	used, held int32 // used: not more than the capacity
	pool       int32
}

// compare orders pools as byDanger orders their destinations.
func (t *Table) compare(a, b rank) int {
	if c := cmp.Or(cmp.Compare(b.used, a.used), cmp.Compare(b.held, a.held)); c != 0 {
		return c
	}
	return t.pools.compare(a.pool, b.pool)
}

// listed returns Destinations. It sets in r what is known of all destinations together, and counts those that are not reported.
//
// It ranks all pools, and makes Destinations only of those that it returns: there can be very many.
func (t *Table) listed(r *Report, limits Limits) []Destination {
	reported := limit.Top[rank]{Most: limits.Most, Order: t.compare}
	others := limit.Top[rank]{Most: limits.Most + limit.Listed, Order: t.compare}
	small := limit.Top[rank]{Most: limit.Listed, Order: t.compare}
	for n := range t.pools.all() {
		c := t.countsOf(n, &t.room)
		used := c.held - int(c.reusable) + t.boundByOthers(c)
		r.MaxUtilization = max(r.MaxUtilization, utilization(used, t.capacity))
		bound, timeWait := t.mayBeUsed(c)
		r.MaxPossibleUtilization = max(r.MaxPossibleUtilization, utilization(used+bound+timeWait, t.capacity))
		r.leaveOut(c.ports())
		pool := rank{int32(min(used, t.capacity)), int32(c.held), n}
		switch {
		case c.held < limits.Small():
			small.Add(pool)
		case c.held >= limits.Series(t.capacity) || limits.MinPorts == 0 && c.states[tcpstate.SynSent] >= ManySynSent:
			if left, ok := reported.Add(pool); ok {
				others.Add(left)
			}
		default:
			others.Add(pool)
		}
	}

	// A small pool is listed only if it is one of those in most danger.
	first := slices.Concat(reported.Items, others.Items, small.Items)
	slices.SortFunc(first, t.compare)
	for _, pool := range first[:min(len(first), limit.Listed)] {
		if int(pool.held) < limits.Small() {
			others.Add(pool)
		}
	}

	rest := others.Items[:min(len(others.Items), limit.Rest(limits.Most, len(reported.Items)))]
	destinations := make([]Destination, 0, len(reported.Items)+len(rest))
	for i, pool := range slices.Concat(reported.Items, rest) {
		c := t.countsOf(pool.pool, &t.room)
		d := t.destination(c)
		if d.Unreported = i >= len(reported.Items); !d.Unreported {
			r.takeIn(d.Ports)
		}
		t.setLoad(&d, c)
		d.Owners = t.ownersOf(pool.pool).largest()
		destinations = append(destinations, d)
	}
	return destinations
}

// ManySynSent is the number of ports in SYN_SENT from which on they are many, however large the range is.
const ManySynSent = 100

// destination returns the report of one pool without the fields of setLoad and Owners.
func (t *Table) destination(counts *poolCounts) Destination {
	key := t.pools.key(counts.pool)
	d := Destination{
		Source:   key.sourceAddr(),
		Address:  key.destinationAddr(),
		Held:     counts.held,
		Reusable: int(counts.reusable),

		ReusableUnknown: int(counts.unsure),
		HalfClosed:      int(counts.halfClosed),

		Timestamps:      counts.answers.fact(),
		TimestampsShare: counts.answers.share(),
		Loopback:        counts.loopback,
		BoundByOthers:   t.boundByOthers(counts),
	}
	d.Ports = counts.ports()
	used := d.Held - d.Reusable + d.BoundByOthers
	d.Utilization = utilization(used, t.capacity)
	d.MayBeBound, d.MayBeHeld = t.mayBeUsed(counts)
	d.PossibleUtilization = utilization(used+d.MayBeBound+d.MayBeHeld, t.capacity)
	return d
}

// setLoad sets CloseRate, Ceiling with its parts, Exhaustion and SureExhaustion.
func (t *Table) setLoad(d *Destination, counts *poolCounts) {
	rule := t.rule(counts.loopback)
	l := newLoad(rule, counts, t.phase.seconds())
	ports := t.capacity - d.BoundByOthers
	d.CloseRate, d.PeakCloseRate = l.closeRate(), l.peakRate()
	closed := int(counts.states[tcpstate.TimeWait]) + int(counts.finWait2) + int(math.Round(l.unansweredPorts))
	d.Open = max(d.Held-closed, 0)
	hold := rule.hold(counts.answers.fact())
	if counts.answers.differ() && !counts.doubted && !t.boundKnown && rule.reusable {
		l.mix(counts.answers.share())
		hold = l.flows[takenOver].hold
	}
	if 2*int(counts.bound) > d.Held || counts.doubted {
		hold = rule.times[expired].hold
	}
	d.Hold, d.Unanswered = l.hold(hold)
	d.Ceiling = Ceiling(ports, d.Open, d.Hold)
	d.Exhaustion, d.SureExhaustion = l.forecasts(d.Held-d.Reusable, ports)
}

// boundByOthers returns how many ports are bound and not held by the pool. A dump can contain a
// socket of the pool twice.
func (t *Table) boundByOthers(counts *poolCounts) int {
	return max(t.bound.Size()-int(counts.bound), 0)
}

// mayBeUsed returns Destination.MayBeBound and MayBeHeld.
func (t *Table) mayBeUsed(counts *poolCounts) (bound, held int) {
	bound = max(t.doubtful.Size()-int(counts.mayBound), 0) + int(counts.mayHold)
	early := counts.early
	switch {
	case counts.loopback || t.boundKnown:
	case counts.answers.differ(),
		counts.openEarlier && counts.answers.fact() == Unknown: // nobody could be asked whether the peer uses timestamps
		early = counts.reusable
	}
	return bound, min(int(early), int(counts.reusable-counts.mayHold))
}

// keyAddr returns the address that a key holds. A link-local address gets the index of its
// interface as zone: every implementation supports this form (RFC 4007 section 11.2).
func keyAddr(b [16]byte, zone uint32) netip.Addr {
	a := netip.AddrFrom16(b).Unmap()
	if zone == 0 || !a.IsLinkLocalUnicast() {
		return a
	}
	return a.WithZone(strconv.FormatUint(uint64(zone), 10))
}

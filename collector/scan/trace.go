//go:build linux

package scan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/trace"
)

// seriesTime is how long a listed pool has no event until it is listed no more.
const seriesTime = 15 * time.Minute

// recentTime returns how long ago the recent events of a pool are at least: the most that a port is in TIME_WAIT. Then they have all closes
// that left a port there. Timers of the kernel are late by an eighth at most, see timerLateness of package pool.
func recentTime(timeWaitLength time.Duration) time.Duration { return timeWaitLength + timeWaitLength/8 }

// A counter counts events in pools of ports: a trace.Table.
type counter interface {
	Counts(now time.Time) (counts []trace.Count, rest trace.Rest, err error)
	Reclaim(now time.Time) error
	Utilization() float64
}

// A tracer adds up what a trace.Probe counts: failed connects, failed binds and closes where the kernel can.
type tracer struct {
	failures    *tracedList
	closes      *tracedList // nil if they are not counted
	countsBinds bool
	missedRuns  func() (n uint64, ok bool, err error)

	netns   func(cookie uint64) string // the label of a network namespace
	cgroups *cgroup.Groups             // nil if the host has no cgroup2 file system

	periods periods
}

// periods are the times that recent events are added up for, one after the other. They are few, however many scans there are.
type periods struct {
	first  int         // the number of the first one
	begins []time.Time // the last one goes on
	recent time.Duration
}

// periodTime is how long a period is at least.
const periodTime = 4 * time.Second

// current returns the number of the last one.
func (p *periods) current() int { return p.first + len(p.begins) - 1 }

// forget forgets those that are over for longer than recent events are.
func (p *periods) forget(now time.Time) {
	for len(p.begins) > 1 && now.Sub(p.begins[1]) >= p.recent {
		p.begins = p.begins[1:]
		p.first++
	}
}

// begin begins another one.
func (p *periods) begin(now time.Time) {
	if now.Sub(p.begins[len(p.begins)-1]) >= periodTime {
		p.begins = append(p.begins, now)
	}
}

// A tracedList adds up what a counter counts, in as many pools as may have series. Each event
// counts once: in a pool with a series, or as unattributed. A pool that is listed no more leaves its
// events as expired. So none of these numbers falls, except that a pool may end.
//
// Labels that are known only later, because a search for control groups takes several scans, say, are given to
// what was counted in the last minutes too. What is older keeps its labels: under new ones, it would look like new events.
//
// If the list is full, each tenant keeps an equal part of it, and so does each ancestor of a tenant
// (trace.Count). A new pool of a tenant that has fewer than another takes the place of a pool of that one.
//
// Besides, it lists pools without a series that the page shows, with their recent events only.
type tracedList struct {
	counter counter
	most    int // with a series
	shown   int // without

	listed                   map[tracedPool]*tracedSeries
	connects, binds, closing unlisted
}

// mostShown is how many pools with closes are listed without a series: some control groups for each of the destinations
// that the page shows.
const mostShown = 64

// unlisted are events that are in no series.
type unlisted struct{ unattributed, expired uint64 }

// unlisted returns those of a call.
func (l *tracedList) unlisted(c trace.Call) *unlisted {
	switch c {
	case trace.Connect:
		return &l.connects
	case trace.Close:
		return &l.closing
	default:
		return &l.binds
	}
}

// A tracedPool has the labels of a listed pool.
type tracedPool struct {
	call        trace.Call
	netns       string
	cgroup      cgroup.Group
	source      netip.Addr
	destination netip.AddrPort // none of a bind
}

// A tracedSeries is what is counted in a listed pool.
type tracedSeries struct {
	first     trace.Count // what it was listed for
	party     party
	hasSeries bool
	events    uint64    // since it has a series
	latest    time.Time // when the last event was read
	last      Process

	periods map[int]uint64 // events of each of the periods, by its number
}

// recent returns the events of all periods.
func (s *tracedSeries) recent() (n uint64) {
	for _, events := range s.periods {
		n += events
	}
	return n
}

// A standing is what is to become of the events of a pool.
type standing int

const (
	unattributed standing = iota
	shown                 // listed without a series
	reported              // listed with a series
)

// A party is an ancestor of a tenant, with all control groups below.
type party struct {
	tenant   uint64
	ancestor string // its path
}

func newTracer(probe *trace.Probe, most int, recent time.Duration, netns func(cookie uint64) string, cgroups *cgroup.Groups) *tracer {
	t := &tracer{
		failures: newTracedList(probe.Failures, most, 0), countsBinds: probe.NoBinds == nil, missedRuns: probe.MissedRuns,
		netns: netns, cgroups: cgroups, periods: periods{begins: []time.Time{time.Now()}, recent: recent},
	}
	if probe.NoCloses == nil {
		t.closes = newTracedList(probe.Closes, most, mostShown)
	}
	return t
}

func newTracedList(c counter, most, shown int) *tracedList {
	return &tracedList{counter: c, most: most, shown: shown, listed: map[tracedPool]*tracedSeries{}}
}

// collect returns what was counted since the Probe was attached. It searches for control groups until
// the deadline. namespaces are those of the same scan.
func (t *tracer) collect(namespaces []Namespace, now, deadline time.Time) Trace {
	t.periods.forget(now)
	result := Trace{BindsCounted: t.countsBinds, ClosesCounted: t.closes != nil, Window: now.Sub(t.periods.begins[0])}
	lists := []*tracedList{t.failures}
	standings := []func(tracedPool) standing{func(tracedPool) standing { return reported }}
	if t.closes != nil {
		lists = append(lists, t.closes)
		standings = append(standings, reportedIn(namespaces))
	}
	counts := make([][]trace.Count, len(lists))
	for i, l := range lists {
		var err error
		if counts[i], err = l.read(now, t.periods.recent); err != nil && result.Err == nil {
			result.Err = err
		}
	}
	labels, cgroupsErr := t.findLabels(lists, slices.Concat(counts...), deadline)
	for i, l := range lists {
		l.relabel(labels, now.Add(-relabelAge))
		l.add(counts[i], labels, standings[i], now, &t.periods)
	}
	t.periods.begin(now)
	if result.Err != nil {
		return Trace{Err: result.Err}
	}
	result.CgroupsErr = cgroupsErr
	t.failures.report(&result)
	result.ReclaimErr = t.failures.counter.Reclaim(now)
	result.TableUtilization = t.failures.counter.Utilization()
	if t.closes != nil {
		t.closes.report(&result)
		result.ReclaimErr = cmp.Or(result.ReclaimErr, t.closes.counter.Reclaim(now))
		result.ClosesTableUtilization = t.closes.counter.Utilization()
	}
	result.MissedRuns, result.MissedRunsKnown, result.MissedRunsErr = t.missedRuns()
	return result
}

// reportedIn returns what is to become of closes: a pool that has series in this scan has some for its closes.
func reportedIn(namespaces []Namespace) func(tracedPool) standing {
	known := map[tracedPool]standing{}
	for i := range namespaces {
		n := &namespaces[i]
		for j := range n.TCP.Report.Destinations {
			d := &n.TCP.Report.Destinations[j]
			is := reported
			if d.Unreported {
				is = shown
			}
			// Kernels that do not tell the namespace of closes have them in any one.
			for _, netns := range []string{n.Name, ""} {
				p := tracedPool{netns: netns, source: d.Source.WithZone(""), destination: netip.AddrPortFrom(d.Address.Addr().WithZone(""), d.Address.Port())}
				known[p] = max(known[p], is)
			}
		}
	}
	return func(p tracedPool) standing {
		return known[tracedPool{netns: p.netns, source: p.source, destination: p.destination}]
	}
}

// read reads the counter, and removes pools from the list.
func (l *tracedList) read(now time.Time, recent time.Duration) ([]trace.Count, error) {
	counts, rest, err := l.counter.Counts(now)
	l.expire(now, recent)
	l.connects.unattributed += rest.Connects
	l.binds.unattributed += rest.Binds
	l.closing.unattributed += rest.Closes
	return counts, err
}

// report adds the listed pools and the sums to the result.
func (l *tracedList) report(result *Trace) {
	for p, s := range l.listed {
		switch p.call {
		case trace.Connect:
			result.Pools = append(result.Pools, FailedPool{
				Netns: p.netns, Cgroup: p.cgroup, Source: p.source, Destination: p.destination, Failures: s.events, Recent: s.recent(), Last: s.last,
			})
		case trace.Close:
			result.Closes = append(result.Closes, ClosedPool{
				Netns: p.netns, Cgroup: p.cgroup, Source: p.source, Destination: p.destination, Closes: s.events, Recent: s.recent(), Last: s.last,
			})
		default:
			result.Binds = append(result.Binds, FailedBind{
				Netns: p.netns, Cgroup: p.cgroup, Source: p.source, UDP: p.call == trace.BindUDP, Failures: s.events, Last: s.last,
			})
		}
	}
	result.Unattributed += l.connects.unattributed
	result.Expired += l.connects.expired
	result.BindsUnattributed += l.binds.unattributed
	result.BindsExpired += l.binds.expired
	result.ClosesUnattributed += l.closing.unattributed
	result.ClosesExpired += l.closing.expired
}

// expire removes pools without events for seriesTime from the list. One without a series is kept while it has recent events.
func (l *tracedList) expire(now time.Time, recent time.Duration) {
	for p, s := range l.listed {
		if age := now.Sub(s.latest); age >= seriesTime || !s.hasSeries && age >= recent {
			l.remove(p)
		}
	}
}

// remove removes a pool from the list.
func (l *tracedList) remove(p tracedPool) {
	l.unlisted(p.call).expired += l.listed[p].events
	delete(l.listed, p)
}

// add adds new events to the pools. Pools that are reported, and of these those with most events, come first where not all can be
// listed.
func (l *tracedList) add(counts []trace.Count, labels labels, standingOf func(tracedPool) standing, now time.Time, periods *periods) {
	type labelled struct {
		trace.Count
		pool     tracedPool
		party    party
		standing standing
	}
	all := make([]labelled, len(counts))
	for i, c := range counts {
		p, party := labels(c)
		all[i] = labelled{c, p, party, standingOf(p)}
	}
	slices.SortFunc(all, func(a, b labelled) int {
		return cmp.Or(cmp.Compare(b.standing, a.standing), cmp.Compare(b.Events, a.Events),
			a.Source.Compare(b.Source), a.Destination.Compare(b.Destination), cmp.Compare(a.Call, b.Call))
	})
	parties, shownPools := newParties(l.listed)
	for _, c := range all {
		s := l.listed[c.pool]
		if (s == nil || !s.hasSeries) && c.standing == reported && l.makeRoom(parties, c.party) {
			if s == nil {
				s = &tracedSeries{first: c.Count, party: c.party, periods: map[int]uint64{}}
				l.listed[c.pool] = s
			} else {
				shownPools--
			}
			s.hasSeries = true
			parties.add(c.party, 1)
		}
		if s == nil && c.standing != unattributed && shownPools < l.shown {
			s = &tracedSeries{first: c.Count, party: c.party, periods: map[int]uint64{}}
			l.listed[c.pool] = s
			shownPools++
		}
		if s == nil || !s.hasSeries {
			l.unlisted(c.Call).unattributed += c.Events
		} else {
			s.events += c.Events
		}
		if s != nil {
			s.latest, s.last = now, Process(c.Last)
			s.periods[periods.current()] += c.Events
		}
	}
	for _, s := range l.listed {
		maps.DeleteFunc(s.periods, func(period int, _ uint64) bool { return period < periods.first })
	}
}

// relabelAge is how old events may be to get other labels.
const relabelAge = 3 * time.Minute

// relabel gives listed pools that had events since a time the labels that are known now. Those that have the same ones then, as of a
// service that was started anew, become one.
func (l *tracedList) relabel(labels labels, since time.Time) {
	before := l.listed
	l.listed = make(map[tracedPool]*tracedSeries, len(before))
	for p, s := range before {
		if s.latest.After(since) {
			p, s.party = labels(s.first)
		}
		if other := l.listed[p]; other != nil {
			if other.latest.After(s.latest) {
				s, other = other, s
			}
			s.hasSeries = s.hasSeries || other.hasSeries
			s.events += other.events
			for period, n := range other.periods {
				s.periods[period] += n
			}
		}
		l.listed[p] = s
	}
}

// makeRoom reports whether another pool of a party may have a series. If the list is full, it first
// removes one of the tenant or ancestor with most pools.
func (l *tracedList) makeRoom(parties parties, of party) bool {
	if parties.all() < l.most {
		return true
	}
	largest := parties.largest(of)
	if largest == of {
		return false
	}
	var oldest tracedPool
	var least *tracedSeries
	for p, s := range l.listed {
		if s.hasSeries && s.party == largest && (least == nil || cmp.Or(s.latest.Compare(least.latest), cmp.Compare(s.events, least.events)) < 0) {
			oldest, least = p, s
		}
	}
	l.remove(oldest)
	parties.add(largest, -1)
	return true
}

// parties are the numbers of listed pools with a series, by tenant and party.
type parties map[uint64]map[party]int

// newParties counts the listed pools, and those without a series.
func newParties(listed map[tracedPool]*tracedSeries) (p parties, others int) {
	p = parties{}
	for _, s := range listed {
		if s.hasSeries {
			p.add(s.party, 1)
		} else {
			others++
		}
	}
	return p, others
}

// all returns how many pools all tenants have.
func (p parties) all() int {
	n := 0
	for tenant := range p {
		n += p.pools(tenant)
	}
	return n
}

// add adds n pools to a party.
func (p parties) add(to party, n int) {
	if p[to.tenant] == nil {
		p[to.tenant] = map[party]int{}
	}
	p[to.tenant][to] += n
}

// pools returns how many pools a tenant has.
func (p parties) pools(tenant uint64) int {
	n := 0
	for _, ofParty := range p[tenant] {
		n += ofParty
	}
	return n
}

// largest returns the party that has to give up a pool for another: the largest one of the largest
// tenant, or of the same tenant if that is one of the largest. It returns the other itself if
// nobody would still have as many pools as that one then. Of equal ones, it is always the same.
func (p parties) largest(other party) party {
	from := other.tenant
	for tenant := range p {
		n, most := p.pools(tenant), p.pools(from)
		if n > p.pools(other.tenant)+1 && (n > most || n == most && tenant < from) {
			from = tenant
		}
	}
	least := 0
	if from == other.tenant {
		least = p[from][other] + 1
	}
	largest := other
	for of, n := range p[from] {
		if n > least || n == least && largest != other && of.ancestor < largest.ancestor {
			largest, least = of, n
		}
	}
	return largest
}

// labels returns the labels of a count and its party.
type labels func(trace.Count) (tracedPool, party)

// findLabels returns the labels of counts and of listed pools. The root is "/" also where there is no cgroup2 file system.
// The error says why some control groups have no path.
func (t *tracer) findLabels(lists []*tracedList, counts []trace.Count, deadline time.Time) (labels, error) {
	var ids []uint64
	add := func(c trace.Count) {
		if c.Ancestor != 0 {
			ids = append(ids, c.Cgroup, c.Ancestor)
		}
	}
	for _, c := range counts {
		add(c)
	}
	ended := map[uint64]string{} // labels of namespaces that may have ended since
	for _, l := range lists {
		for p, s := range l.listed {
			add(s.first) // so that its path is remembered
			if p.netns != cookieLabel(s.first.Namespace) {
				ended[s.first.Namespace] = p.netns
			}
		}
	}
	found, err := t.cgroups.Find(ids, deadline)
	found[0] = cgroup.Group{Path: "/"}
	return func(c trace.Count) (tracedPool, party) {
		own := c.Cgroup
		if c.Ancestor == 0 {
			own = 0
		}
		netns := t.netns(c.Namespace)
		if label, ok := ended[c.Namespace]; ok && netns == cookieLabel(c.Namespace) {
			netns = label
		}
		return tracedPool{c.Call, netns, found[own], c.Source, c.Destination}, party{c.Tenant, found[c.Ancestor].Path}
	}, err
}

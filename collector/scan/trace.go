//go:build linux

package scan

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/trace"
)

// seriesTime is how long nothing fails in a listed pool until the pool is listed no more.
const seriesTime = 15 * time.Minute

// A failureProbe counts failed connects, and failed binds where the kernel can: a trace.Probe.
type failureProbe interface {
	Counts(now time.Time) (counts []trace.Count, rest trace.Rest, err error)
	Reclaim(now time.Time) error
	Utilization() float64
	MissedRuns() (n uint64, ok bool, err error)
}

// tracer adds up what a Probe counts, in as many pools as may have series. Each failure
// counts once: in a listed pool, or as unattributed. A pool that is listed no more leaves its
// failures as expired. So none of these counters falls, except that a pool may end.
//
// Labels that are known only later, because a search for control groups takes several scans, say, are given to
// what was counted in the last minutes too. What is older keeps its labels: under new ones, it would look like new failures.
//
// If the list is full, each tenant keeps an equal part of it, and so does each ancestor of a tenant
// (trace.Count). A new pool of a tenant that has fewer than another takes the place of a pool of that one.
type tracer struct {
	probe   failureProbe
	most    int
	netns   func(cookie uint64) string // the label of a network namespace
	cgroups *cgroup.Groups             // nil if the host has no cgroup2 file system

	listed      map[failedPool]*failedSeries
	connects    unlisted
	binds       unlisted
	countsBinds bool
}

// unlisted are failures that are in no listed pool.
type unlisted struct{ unattributed, expired uint64 }

// unlisted returns those of a call.
func (t *tracer) unlisted(c trace.Call) *unlisted {
	if c == trace.Connect {
		return &t.connects
	}
	return &t.binds
}

// A failedPool has the labels of a listed pool.
type failedPool struct {
	call        trace.Call
	netns       string
	cgroup      cgroup.Group
	source      netip.Addr
	destination netip.AddrPort // none of a bind
}

// A failedSeries is what is counted in a listed pool.
type failedSeries struct {
	first    trace.Count // what it was listed for
	party    party
	failures uint64
	failed   time.Time // when the last failure was read
}

// A party is an ancestor of a tenant, with all control groups below.
type party struct {
	tenant   uint64
	ancestor string // its path
}

func newTracer(probe failureProbe, countsBinds bool, most int, netns func(cookie uint64) string, cgroups *cgroup.Groups) *tracer {
	return &tracer{probe: probe, countsBinds: countsBinds, most: most, netns: netns, cgroups: cgroups, listed: map[failedPool]*failedSeries{}}
}

// collect returns the failures since the Probe was attached. It searches for control groups until
// the deadline.
func (t *tracer) collect(now, deadline time.Time) Trace {
	counts, rest, err := t.probe.Counts(now)
	t.expire(now)
	t.connects.unattributed += rest.Connects
	t.binds.unattributed += rest.Binds
	cgroupsErr := t.add(counts, now, deadline)
	if err != nil {
		return Trace{Err: err}
	}
	result := Trace{
		Unattributed: t.connects.unattributed, Expired: t.connects.expired,
		BindsCounted: t.countsBinds, BindsUnattributed: t.binds.unattributed, BindsExpired: t.binds.expired,
		CgroupsErr: cgroupsErr,
	}
	for p, s := range t.listed {
		if p.call == trace.Connect {
			result.Pools = append(result.Pools, FailedPool{
				Netns: p.netns, Cgroup: p.cgroup, Source: p.source, Destination: p.destination, Failures: s.failures,
			})
		} else {
			result.Binds = append(result.Binds, FailedBind{
				Netns: p.netns, Cgroup: p.cgroup, Source: p.source, UDP: p.call == trace.BindUDP, Failures: s.failures,
			})
		}
	}
	result.ReclaimErr = t.probe.Reclaim(now)
	result.TableUtilization = t.probe.Utilization()
	result.MissedRuns, result.MissedRunsKnown, result.MissedRunsErr = t.probe.MissedRuns()
	return result
}

// expire removes pools without failures for seriesTime from the list.
func (t *tracer) expire(now time.Time) {
	for p, s := range t.listed {
		if now.Sub(s.failed) >= seriesTime {
			t.remove(p)
		}
	}
}

// remove removes a pool from the list.
func (t *tracer) remove(p failedPool) {
	t.unlisted(p.call).expired += t.listed[p].failures
	delete(t.listed, p)
}

// add adds new failures to the pools. Pools with most failures come first where not all can be
// listed. The error says why some control groups have no path.
func (t *tracer) add(counts []trace.Count, now, deadline time.Time) error {
	slices.SortFunc(counts, func(a, b trace.Count) int {
		return cmp.Or(cmp.Compare(b.Failures, a.Failures), a.Source.Compare(b.Source), a.Destination.Compare(b.Destination), cmp.Compare(a.Call, b.Call))
	})
	labels, err := t.findLabels(counts, deadline)
	t.relabel(labels, now.Add(-relabelAge))
	parties := newParties(t.listed)
	for _, c := range counts {
		p, party := labels(c)
		s := t.listed[p]
		if s == nil {
			s = &failedSeries{first: c, party: party}
			if !t.makeRoom(parties, party) {
				t.unlisted(c.Call).unattributed += c.Failures
				continue
			}
			t.listed[p] = s
			parties.add(party, 1)
		}
		s.failures += c.Failures
		s.failed = now
	}
	return err
}

// relabelAge is how old failures may be to get other labels.
const relabelAge = 3 * time.Minute

// relabel gives listed pools that had failures since a time the labels that are known now. Those that have the same ones then, as of a
// service that was started anew, become one.
func (t *tracer) relabel(labels func(trace.Count) (failedPool, party), since time.Time) {
	before := t.listed
	t.listed = make(map[failedPool]*failedSeries, len(before))
	for p, s := range before {
		if s.failed.After(since) {
			p, s.party = labels(s.first)
		}
		if other := t.listed[p]; other != nil {
			if other.failed.After(s.failed) {
				s, other = other, s
			}
			s.failures += other.failures
		}
		t.listed[p] = s
	}
}

// makeRoom reports whether another pool of a party may be listed. If the list is full, it first
// removes one of the tenant or ancestor with most pools.
func (t *tracer) makeRoom(parties parties, of party) bool {
	if len(t.listed) < t.most {
		return true
	}
	largest := parties.largest(of)
	if largest == of {
		return false
	}
	var oldest failedPool
	var least *failedSeries
	for p, s := range t.listed {
		if s.party == largest && (least == nil || cmp.Or(s.failed.Compare(least.failed), cmp.Compare(s.failures, least.failures)) < 0) {
			oldest, least = p, s
		}
	}
	t.remove(oldest)
	parties.add(largest, -1)
	return true
}

// parties are the numbers of listed pools, by tenant and party.
type parties map[uint64]map[party]int

// newParties counts the listed pools.
func newParties(listed map[failedPool]*failedSeries) parties {
	p := parties{}
	for _, s := range listed {
		p.add(s.party, 1)
	}
	return p
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
// nobody would still have as many pools as that one then.
func (p parties) largest(other party) party {
	from := other.tenant
	for tenant := range p {
		if n := p.pools(tenant); n > p.pools(other.tenant)+1 && n > p.pools(from) {
			from = tenant
		}
	}
	least := 0
	if from == other.tenant {
		least = p[from][other] + 1
	}
	largest := other
	for of, n := range p[from] {
		if n > least {
			largest, least = of, n
		}
	}
	return largest
}

// findLabels returns a function to the labels of a count and its party. The root is "/" also where there is no cgroup2 file system.
// The error says why some control groups have no path.
func (t *tracer) findLabels(counts []trace.Count, deadline time.Time) (labels func(trace.Count) (failedPool, party), err error) {
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
	for p, s := range t.listed {
		add(s.first) // so that its path is remembered
		if p.netns != cookieLabel(s.first.Namespace) {
			ended[s.first.Namespace] = p.netns
		}
	}
	found, err := t.cgroups.Find(ids, deadline)
	found[0] = cgroup.Group{Path: "/"}
	return func(c trace.Count) (failedPool, party) {
		own := c.Cgroup
		if c.Ancestor == 0 {
			own = 0
		}
		netns := t.netns(c.Namespace)
		if label, ok := ended[c.Namespace]; ok && netns == cookieLabel(c.Namespace) {
			netns = label
		}
		return failedPool{c.Call, netns, found[own], c.Source, c.Destination}, party{c.Tenant, found[c.Ancestor].Path}
	}, err
}

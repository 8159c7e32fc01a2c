//go:build linux

package scan

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/trace"
)

// A fakeProbe has counts that a test sets.
type fakeProbe struct {
	counts     []trace.Count
	rest       trace.Rest
	err        error
	reclaimErr error
	missed     bool
	missedErr  error
}

func (f *fakeProbe) Counts(time.Time) ([]trace.Count, trace.Rest, error) {
	counts, rest := f.counts, f.rest
	f.counts, f.rest = nil, trace.Rest{}
	return counts, rest, f.err
}
func (f *fakeProbe) Reclaim(time.Time) error           { return f.reclaimErr }
func (f *fakeProbe) Utilization() float64              { return 0.25 }
func (f *fakeProbe) MissedRuns() (uint64, bool, error) { return 7, f.missed, f.missedErr }

// fail adds failures of a tenant to 10.0.0.N, in the control group "cgroup-GROUP". Its ancestor has
// the number of its last digit: 0 is the root.
func (f *fakeProbe) fail(tenant, group uint64, n byte, failures uint64) {
	f.counts = append(f.counts, trace.Count{
		Call:        trace.Connect,
		Source:      netip.MustParseAddr("198.51.100.1"),
		Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 443),
		Namespace:   tenant, Cgroup: group, Ancestor: group % 10, Tenant: tenant,
		Events: failures,
	})
}

func newFakeFailures(f *fakeProbe, most int) *tracer {
	return newFakeTracer(f, nil, most, func(cookie uint64) string { return fmt.Sprint("ns", cookie) }, nil)
}

// newFakeTracer returns a tracer that began to count at the zero time. It counts no closes if they are nil.
func newFakeTracer(failures, closes *fakeProbe, most int, netns func(cookie uint64) string, cgroups *cgroup.Groups) *tracer {
	t := &tracer{
		failures: newTracedList(failures, most, 0), countsBinds: true, missedRuns: failures.MissedRuns,
		netns: netns, cgroups: cgroups, periods: periods{begins: []time.Time{{}}, recent: recentTime(time.Minute)},
	}
	if closes != nil {
		t.closes = newTracedList(closes, most, mostShown)
	}
	return t
}

// listed returns the pools in the form "netns/cgroup:N=failures", sorted.
func listed(f Trace) string {
	var pools []string
	for _, p := range f.Pools {
		ip := p.Destination.Addr().As4()
		pools = append(pools, fmt.Sprintf("%s%s:%d=%d", p.Netns, strings.TrimPrefix(p.Cgroup.Path, "cgroup-"), ip[3], p.Failures))
	}
	slices.Sort(pools)
	return strings.Join(pools, " ")
}

// total is the number of all failures.
func (c Trace) total() uint64 {
	n := c.Unattributed + c.Expired
	for _, p := range c.Pools {
		n += p.Failures
	}
	return n
}

// TestTrace checks that the number of pools is limited, that every failure counts once,
// and that no tenant or control group takes the place of others.
func TestTrace(t *testing.T) {
	type failure struct {
		tenant, group uint64
		destination   byte
		failures      uint64
	}
	type scan struct {
		after    time.Duration // since the scan before
		rest     uint64
		failures []failure
		listed   string
		others   uint64
		expired  uint64
	}
	const minute = time.Minute
	tests := []struct {
		name  string
		most  int
		scans []scan
	}{
		{"none", 2, []scan{{0, 0, nil, "", 0, 0}}},
		{"all", 2, []scan{{0, 0, []failure{{1, 0, 1, 5}, {1, 0, 2, 3}}, "ns1/:1=5 ns1/:2=3", 0, 0}}},
		{"added up", 2, []scan{
			{0, 1, []failure{{1, 0, 1, 5}}, "ns1/:1=5", 1, 0},
			{0, 0, nil, "ns1/:1=5", 1, 0},
			{0, 2, []failure{{1, 0, 1, 3}}, "ns1/:1=8", 3, 0},
		}},
		{"the largest", 2, []scan{{0, 4, []failure{{1, 0, 1, 5}, {1, 0, 2, 3}, {1, 0, 3, 9}}, "ns1/:1=5 ns1/:3=9", 7, 0}}},
		{"limit 0", 0, []scan{{0, 4, []failure{{1, 0, 1, 5}, {2, 0, 1, 3}}, "", 12, 0}}},
		{"no place", 2, []scan{
			{0, 0, []failure{{1, 0, 1, 5}, {1, 0, 2, 3}}, "ns1/:1=5 ns1/:2=3", 0, 0},
			{0, 0, []failure{{1, 0, 3, 100}}, "ns1/:1=5 ns1/:2=3", 100, 0},
			// What was unattributed remains so.
			{15 * minute, 0, []failure{{1, 0, 3, 1}}, "ns1/:3=1", 100, 8},
		}},
		{"expired", 2, []scan{
			{0, 0, []failure{{1, 0, 1, 5}, {1, 0, 2, 3}}, "ns1/:1=5 ns1/:2=3", 0, 0},
			{14 * minute, 0, []failure{{1, 0, 2, 1}}, "ns1/:1=5 ns1/:2=4", 0, 0},
			{minute, 0, nil, "ns1/:2=4", 0, 5},
			{minute, 0, []failure{{1, 0, 1, 2}}, "ns1/:1=2 ns1/:2=4", 0, 5},
			{14 * minute, 0, nil, "ns1/:1=2", 0, 9},
		}},
		{"same addresses", 3, []scan{
			{0, 0, []failure{{1, 0, 1, 5}, {2, 0, 1, 4}, {2, 8, 1, 3}}, "ns1/:1=5 ns2/:1=4 ns28:1=3", 0, 0},
		}},
		{"another tenant", 4, []scan{
			{0, 0, []failure{{1, 0, 1, 5}, {1, 0, 2, 6}, {1, 0, 3, 7}, {1, 0, 4, 8}}, "ns1/:1=5 ns1/:2=6 ns1/:3=7 ns1/:4=8", 0, 0},
			{1, 0, []failure{{1, 0, 2, 1}, {1, 0, 3, 1}, {1, 0, 4, 1}}, "ns1/:1=5 ns1/:2=7 ns1/:3=8 ns1/:4=9", 0, 0},
			// Of the larger one, the pool goes in which none failed for longest.
			{1, 0, []failure{{1, 0, 3, 1}, {1, 0, 4, 1}, {2, 0, 9, 1}}, "ns1/:2=7 ns1/:3=9 ns1/:4=10 ns2/:9=1", 0, 5},
			{1, 0, []failure{{2, 0, 8, 1}}, "ns1/:3=9 ns1/:4=10 ns2/:8=1 ns2/:9=1", 0, 12},
			// Both have their half.
			{1, 0, []failure{{1, 0, 5, 1}, {2, 0, 7, 1}}, "ns1/:3=9 ns1/:4=10 ns2/:8=1 ns2/:9=1", 2, 12},
		}},
		{"another control group", 4, []scan{
			{0, 0, []failure{{1, 6, 1, 5}, {1, 6, 2, 6}, {1, 6, 3, 7}, {1, 6, 4, 8}}, "ns16:1=5 ns16:2=6 ns16:3=7 ns16:4=8", 0, 0},
			{1, 0, []failure{{1, 6, 2, 1}, {1, 6, 3, 1}, {1, 6, 4, 1}, {1, 7, 9, 1}}, "ns16:2=7 ns16:3=8 ns16:4=9 ns17:9=1", 0, 5},
			{1, 0, []failure{{1, 6, 5, 9}}, "ns16:2=7 ns16:3=8 ns16:4=9 ns17:9=1", 9, 5},
		}},
		{"same ancestor", 4, []scan{
			// Each of these control groups has one pool, but all are below one.
			{0, 0, []failure{{1, 16, 1, 5}, {1, 26, 1, 6}, {1, 36, 1, 7}, {1, 46, 1, 8}}, "ns116:1=5 ns126:1=6 ns136:1=7 ns146:1=8", 0, 0},
			{1, 0, []failure{{1, 56, 1, 9}}, "ns116:1=5 ns126:1=6 ns136:1=7 ns146:1=8", 9, 0},
			{1, 0, []failure{{1, 7, 1, 1}, {1, 17, 1, 1}}, "ns117:1=1 ns136:1=7 ns146:1=8 ns17:1=1", 9, 11},
			{1, 0, []failure{{1, 66, 1, 9}}, "ns117:1=1 ns136:1=7 ns146:1=8 ns17:1=1", 18, 11},
		}},
		{"at the same time", 2, []scan{
			{0, 0, []failure{{1, 0, 1, 50}, {1, 0, 2, 60}, {1, 0, 3, 70}, {1, 0, 4, 80}, {2, 0, 9, 1}}, "ns1/:4=80 ns2/:9=1", 110, 70},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var f fakeProbe
			c := newFakeFailures(&f, tt.most)
			now := time.Now()
			var all uint64
			for i, s := range tt.scans {
				now = now.Add(s.after)
				f.rest.Connects = s.rest
				all += s.rest
				for _, fail := range s.failures {
					f.fail(fail.tenant, fail.group, fail.destination, fail.failures)
					all += fail.failures
				}
				got := c.collect(nil, now, now)
				if listed(got) != s.listed || got.Unattributed != s.others || got.Expired != s.expired {
					t.Errorf("scan %d: got %s, unattributed %d, expired %d, want %s, %d, %d",
						i, listed(got), got.Unattributed, got.Expired, s.listed, s.others, s.expired)
				}
				if got.total() != all {
					t.Errorf("scan %d: %d failures in all, want %d", i, got.total(), all)
				}
			}
		})
	}
}

// TestBindFailures checks that binds and connects have sums of their own, and share the limit.
func TestBindFailures(t *testing.T) {
	var f fakeProbe
	bind := func(call trace.Call, source string, failures uint64) {
		f.counts = append(f.counts, trace.Count{Call: call, Source: netip.MustParseAddr(source), Namespace: 1, Tenant: 1, Events: failures})
	}
	c := newFakeFailures(&f, 3)
	now := time.Now()
	f.fail(1, 0, 1, 10)
	bind(trace.BindTCP, "198.51.100.1", 8)
	bind(trace.BindUDP, "198.51.100.1", 7)
	bind(trace.BindUDP, "::", 6) // no place
	f.rest = trace.Rest{Connects: 1, Binds: 2}
	binds := func(got Trace) string {
		var all []string
		for _, b := range got.Binds {
			all = append(all, fmt.Sprintf("%s %s %v=%d", b.Netns, b.Protocol(), b.Source, b.Failures))
		}
		slices.Sort(all)
		return strings.Join(all, ", ")
	}
	got := c.collect(nil, now, now)
	if want := "ns1 tcp 198.51.100.1=8, ns1 udp 198.51.100.1=7"; binds(got) != want || listed(got) != "ns1/:1=10" {
		t.Errorf("connects %s, binds %s", listed(got), binds(got))
	}
	if !got.BindsCounted || got.Unattributed != 1 || got.BindsUnattributed != 8 || got.Expired != 0 || got.BindsExpired != 0 {
		t.Errorf("sums: %+v", got)
	}
	now = now.Add(14 * time.Minute)
	bind(trace.BindUDP, "198.51.100.1", 1)
	c.collect(nil, now, now)
	now = now.Add(time.Minute)
	if got = c.collect(nil, now, now); binds(got) != "ns1 udp 198.51.100.1=8" || got.Expired != 10 || got.BindsExpired != 8 {
		t.Errorf("after 15 minutes: binds %s, %+v", binds(got), got)
	}
}

// TestTraceCloses checks which closes are listed, with a series and without one, and that each counts once.
func TestTraceCloses(t *testing.T) {
	var f, of fakeProbe
	c := newFakeTracer(&f, &of, 2, func(cookie uint64) string { return fmt.Sprint("ns", cookie) }, nil)
	source := netip.MustParseAddr("198.51.100.1")
	closed := func(tenant, group uint64, n byte, closes uint64) {
		of.counts = append(of.counts, trace.Count{
			Call: trace.Close, Source: source, Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 443),
			Namespace: tenant, Cgroup: group, Ancestor: group % 10, Tenant: tenant, Events: closes, Last: trace.Process{Command: "job", PID: int(closes)},
		})
	}
	// The pools that ns1 and ns2 have. Pools with a number of 100 or more have no series.
	report := func(pools ...byte) (namespaces []Namespace) {
		for _, name := range []string{"ns1", "ns2"} {
			n := Namespace{Name: name}
			for _, number := range pools {
				n.TCP.Report.Destinations = append(n.TCP.Report.Destinations, pool.Destination{
					Source: source, Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, number}), 443), Unreported: number >= 100,
				})
			}
			namespaces = append(namespaces, n)
		}
		return namespaces
	}
	now, all := time.Time{}, uint64(0)
	scan := func(name string, after time.Duration, namespaces []Namespace, want string, unattributed, expired uint64) Trace {
		t.Helper()
		for _, c := range of.counts {
			all += c.Events
		}
		all += of.rest.Closes
		now = now.Add(after)
		got := c.collect(namespaces, now, now)
		var pools []string
		sum := got.ClosesUnattributed + got.ClosesExpired
		for _, p := range got.Closes {
			ip := p.Destination.Addr().As4()
			pools = append(pools, fmt.Sprintf("%s%s:%d=%d,%d by %d", p.Netns, strings.TrimPrefix(p.Cgroup.Path, "cgroup-"), ip[3], p.Closes, p.Recent, p.Last.PID))
			sum += p.Closes
		}
		slices.Sort(pools)
		if got := strings.Join(pools, " "); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
		if !got.ClosesCounted || got.ClosesUnattributed != unattributed || got.ClosesExpired != expired || sum != all {
			t.Errorf("%s: unattributed %d, expired %d, sum %d, want %d, %d, %d", name, got.ClosesUnattributed, got.ClosesExpired, sum, unattributed, expired, all)
		}
		return got
	}
	const seconds = time.Second
	closed(1, 16, 1, 5)
	closed(1, 0, 9, 7)
	of.rest.Closes = 2
	scan("one is reported", 15*seconds, report(1), "ns116:1=5,5 by 5", 9, 0)
	closed(1, 16, 1, 3)
	scan("no more", 15*seconds, nil, "ns116:1=8,8 by 3", 9, 0)
	closed(1, 6, 1, 4)
	closed(1, 0, 100, 6)
	closed(1, 0, 9, 1)
	scan("another control group, and one without a series", 15*seconds, report(1, 100), "ns1/:100=0,6 by 6 ns116:1=8,8 by 3 ns16:1=4,4 by 4", 16, 0)
	closed(2, 0, 1, 1)
	got := scan("another tenant", 15*seconds, report(1, 100), "ns1/:100=0,6 by 6 ns16:1=4,4 by 4 ns2/:1=1,1 by 1", 16, 8)
	if got.Window != 60*seconds {
		t.Errorf("a window of %v, want 60 s", got.Window)
	}
	closed(1, 6, 1, 10)
	if got = scan("the first are old", 15*seconds, report(1, 100), "ns1/:100=0,6 by 6 ns16:1=14,14 by 10 ns2/:1=1,1 by 1", 16, 8); got.Window != 75*seconds {
		t.Errorf("a window of %v, want 75 s", got.Window)
	}
	closed(1, 6, 1, 1)
	scan("older", 45*seconds, nil, "ns16:1=15,11 by 1 ns2/:1=1,1 by 1", 16, 8)
	scan("75 s later", 75*seconds, nil, "ns16:1=15,0 by 1 ns2/:1=1,0 by 1", 16, 8)
	scan("15 minutes later", 14*time.Minute, nil, "", 16, 24)
	for i := range byte(200) {
		closed(1, 0, 100+i%100, 1)
	}
	if got = c.collect(report(100, 101, 102, 103, 104), now, now); len(got.Closes) != 5 {
		t.Errorf("%d pools without a series, want 5", len(got.Closes))
	}
}

// TestTracePeriods checks that recent events are of no less time than a port can be in TIME_WAIT, and of little more, however many scans
// there are.
func TestTracePeriods(t *testing.T) {
	const longest = 65 * time.Second // TIME_WAIT with CONFIG_HZ=100
	for _, every := range []time.Duration{100 * time.Millisecond, time.Second, 5 * time.Second, 15 * time.Second, 59900 * time.Millisecond, time.Minute} {
		var f fakeProbe
		c := newFakeFailures(&f, 1)
		now, least, most := time.Time{}, time.Hour, time.Duration(0)
		for range 5 * time.Minute / every {
			now = now.Add(every)
			f.fail(1, 0, 1, 1)
			got := c.collect(nil, now, now)
			if n := uint64(got.Window / every); got.Pools[0].Recent != n {
				t.Fatalf("every %v: %d recent events in %v, want %d", every, got.Pools[0].Recent, got.Window, n)
			}
			if now.Sub(time.Time{}) > 2*time.Minute {
				least, most = min(least, got.Window), max(most, got.Window)
			}
		}
		if least < longest || most > longest+3*time.Second+max(every, periodTime+every) {
			t.Errorf("every %v: windows of %v to %v", every, least, most)
		}
		if n := len(c.periods.begins); n > 20 {
			t.Errorf("every %v: %d periods", every, n)
		}
		for _, s := range c.failures.listed {
			if n := len(s.periods); n > 20 {
				t.Errorf("every %v: %d periods of a pool", every, n)
			}
		}
	}
}

// TestTraceManyTenants checks that a new tenant is listed while others flood the list.
func TestTraceManyTenants(t *testing.T) {
	const most, flooders = 256, 200
	var f fakeProbe
	c := newFakeFailures(&f, most)
	now := time.Now()
	for scan := range 5 {
		for tenant := range uint64(flooders) {
			for n := range byte(20) {
				f.fail(1000+tenant, 0, n+byte(scan)*20, 1000)
			}
		}
		if scan == 3 {
			f.fail(1, 0, 1, 1)
		}
		now = now.Add(time.Second)
		got := c.collect(nil, now, now)
		if len(got.Pools) != most {
			t.Fatalf("scan %d: %d pools, want %d", scan, len(got.Pools), most)
		}
		if victim := strings.Contains(listed(got), "ns1/:1=1 "); victim != (scan >= 3) {
			t.Errorf("scan %d: victim listed: %v", scan, victim)
		}
	}
}

// TestTraceUnread checks that an error gives no counts and is logged, and that what was
// read before it is not lost.
func TestTraceUnread(t *testing.T) {
	unread := errors.New("out of order")
	tests := []struct {
		name  string
		probe fakeProbe
		err   error
		log   string
	}{
		{"counts", fakeProbe{err: unread}, unread, "What is traced cannot be read"},
		{"missed runs", fakeProbe{missedErr: unread}, nil, "not known whether the kernel skips"},
		{"slots", fakeProbe{reclaimErr: unread}, nil, "slots cannot be freed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			cfg := testConfig()
			cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
			s := newScanner(t, cfg)
			f := tt.probe
			f.fail(1, 0, 1, 5)
			s.tracer = newFakeFailures(&f, 2)
			log.Reset()
			got := s.Scan(t.Context()).Trace
			if got == nil || !errors.Is(got.Err, tt.err) || (got.total() == 0) != (tt.err != nil) {
				t.Errorf("got %+v", got)
			}
			if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, tt.log) || !strings.Contains(got, "out of order") {
				t.Errorf("log: got %q", got)
			}
			f.err, f.missedErr = nil, nil
			if got := s.Scan(t.Context()).Trace; listed(*got) != "ns1/:1=5" {
				t.Errorf("then got %+v", got)
			}
		})
	}
}

// TestTraceLabels checks that pools have the labels that other metrics use.
func TestTraceLabels(t *testing.T) {
	const self = 7
	s := newScanner(t, testConfig())
	s.known = map[uint64]*knownNamespace{8: {label: "blue"}, 9: {}}
	for cookie, want := range map[uint64]string{self: Self, 8: "blue", 9: "netns-9", 10: "netns-10", 0: ""} {
		if got := s.labelOf(cookie, self); got != want {
			t.Errorf("cookie %d: %q, want %q", cookie, got, want)
		}
	}
	if got := s.labelOf(0, 0); got != "" {
		t.Errorf("no cookies: %q", got)
	}
}

// TestTraceLateLabels has failures before their labels are known: of a control group that a search does not reach in time, and of a
// network namespace that is not discovered yet. They get the labels in the next scan, and no failure is lost, counted twice, or in two series.
func TestTraceLateLabels(t *testing.T) {
	tree := newCgroupTree(t)
	dir := tree.mount + tree.root + "/batch.service"
	groups, err := cgroup.Open(tree.mount)
	if err != nil {
		t.Fatal(err)
	}
	const known = "blue"
	netns := cookieLabel(7)
	var f fakeProbe
	c := newFakeTracer(&f, nil, 10, func(uint64) string { return netns }, groups)
	now, all := time.Now(), uint64(0)
	scan := func(name string, id, failures uint64, in time.Duration, want ...string) {
		t.Helper()
		if failures > 0 {
			f.fail(7, id, 1, failures)
			f.counts[0].Ancestor = id
			all += failures
		}
		now = now.Add(time.Minute)
		got := c.collect(nil, now, time.Now().Add(in))
		var pools []string
		for _, p := range got.Pools {
			pools = append(pools, fmt.Sprintf("%s %s %d", p.Netns, strings.TrimPrefix(p.Cgroup.Path, tree.root), p.Failures))
		}
		slices.Sort(pools)
		if diff := cmp.Diff(want, pools); diff != "" || got.total() != all || got.Expired != 0 {
			t.Errorf("%s: %d failures, want %d, %d expired, pools (-want +got):\n%s", name, got.total(), all, got.Expired, diff)
		}
		snapshot := Snapshot{Namespaces: make([]Namespace, 1), Trace: &got}
		if late := in <= 0; snapshot.CutShort() != late || (snapshot.MissingPaths() != nil) != late {
			t.Errorf("%s: cut short: %v, control groups: %v", name, snapshot.CutShort(), snapshot.MissingPaths())
		}
	}
	id := netnstest.NewCgroup(t, dir)
	scan("no time", id, 3, -time.Second, fmt.Sprintf("netns-7 cgroup-%d 3", id))
	scan("then", 0, 0, time.Minute, "netns-7 /batch.service 3")
	netns = known
	scan("discovered", id, 2, time.Minute, "blue /batch.service 5")
	netns = cookieLabel(7)
	scan("ended", id, 1, time.Minute, "blue /batch.service 6")
	netnstest.RemoveCgroup(t, dir)
	again := netnstest.NewCgroup(t, dir)
	scan("started anew, no time", again, 4, -time.Second, "blue /batch.service 6", fmt.Sprintf("blue cgroup-%d 4", again))
	scan("then", 0, 0, time.Minute, "blue /batch.service 10")
	netnstest.RemoveCgroup(t, dir)
	scan("removed", again, 1, time.Minute, "blue /batch.service 11")
	late := netnstest.NewCgroup(t, dir)
	unnamed := fmt.Sprintf("blue cgroup-%d 2", late)
	scan("started anew, no time again", late, 2, -time.Second, "blue /batch.service 11", unnamed)
	now = now.Add(relabelAge)
	scan("too late for other labels", 0, 0, time.Minute, "blue /batch.service 11", unnamed)
	now = now.Add(seriesTime - relabelAge - 4*time.Minute)
	scan("not expired", 0, 0, time.Minute, "blue /batch.service 11", unnamed)
}

// A poolFailures adds up what a Probe counts in each pool.
type poolFailures map[netip.AddrPort]map[netip.Addr]uint64

// of returns the failures of a client's pool.
func (f poolFailures) of(t *testing.T, probe *trace.Probe, c oracleClient) uint64 {
	t.Helper()
	counts, _, err := probe.Failures.Counts(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range counts {
		if f[n.Destination] == nil {
			f[n.Destination] = map[netip.Addr]uint64{}
		}
		f[n.Destination][n.Source] += n.Events
	}
	return f[c.Destination][c.source]
}

// TestOracleTrace compares utilization with failures: below 1, no connect() fails; at 1,
// each connect() fails.
func TestOracleTrace(t *testing.T) {
	netnstest.LockTraces(t)
	probe, err := trace.Attach()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { probe.Close() })
	failures := poolFailures{}

	// No other test uses this destination: a Probe sees the whole host.
	const port = "7201"
	v4 := clientTo("198.51.100.1", "198.51.100.7:"+port)
	v6 := clientTo("2001:db8::1", "[2001:db8::7]:"+port)
	loopback := clientTo("127.0.0.1", "127.0.0.9:"+port)
	tests := []struct {
		name     string
		c        oracleClient
		reserved string
		listen   string
		timeWait string // what is in TIME_WAIT at the start
		granted  int
	}{
		{name: "IPv4", c: v4, granted: 20},
		{name: "IPv6", c: v6.bind(netnstest.BindNoPort), granted: 20},
		{name: "mapped", c: v4.mapped(), granted: 20},
		{name: "bound", c: v4.bind(netnstest.BindNoPort), granted: 20},
		{name: "reserved", c: v4, reserved: "40002,40010-40013", granted: 15},
		{name: "listener", c: v4, listen: "127.0.9.9:40004", granted: 19},
		{name: "none", c: v4, reserved: "40000-40019", granted: 0},
		{name: "TIME_WAIT", c: v4, timeWait: "stays", granted: 13},
		{name: "reusable TIME_WAIT", c: loopback, timeWait: "reusable", granted: 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40019")
			netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", tt.reserved)
			if tt.listen != "" {
				netnstest.Listen(t, tt.listen, false)
			}
			if tt.timeWait != "" {
				begin := setReuse(t, 2)
				netnstest.TimeWait(t, tt.c.Client, netnstest.Listen(t, tt.c.Destination.String(), false), 7)
				if tt.timeWait == "reusable" {
					begin()
				}
			}

			granted := 0
			want := failures.of(t, probe, tt.c)
			for range 30 {
				r := collect(t)
				d, _ := destinationOf(r, tt.c.source, tt.c.Destination)
				exhausted := d.Utilization == 1 || r.CapacityPorts == 0
				fd, err := tt.c.Connect()
				switch {
				case err == nil:
					t.Cleanup(func() { netnstest.CloseRepaired(fd) })
					granted++
				case !errors.Is(err, unix.EADDRNOTAVAIL):
					t.Fatalf("connect(): %v", err)
				}
				if failed := err != nil; failed != exhausted {
					t.Errorf("after %d ports, exhausted %v, but connect(): %v", granted, exhausted, err)
				}
				if exhausted {
					want++
				}
				if got := failures.of(t, probe, tt.c); got != want {
					t.Fatalf("after %d ports, exhausted %v: counted %d failures, want %d", granted, exhausted, got, want)
				}
			}
			if granted != tt.granted {
				t.Errorf("%d ports were granted, want %d", granted, tt.granted)
			}
		})
	}
}

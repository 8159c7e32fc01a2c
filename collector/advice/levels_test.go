package advice

import (
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
)

// TestReachedTCP checks each threshold, and the value before it.
func TestReachedTCP(t *testing.T) {
	type change func(d *pool.Destination)
	in := func(state tcpstate.State, ports int) change {
		return func(d *pool.Destination) { d.Ports[slices.Index(pool.States[:], state)] = ports }
	}
	used := func(u float64) change { return func(d *pool.Destination) { d.Utilization = u } }
	possibly := func(u float64) change { return func(d *pool.Destination) { d.PossibleUtilization = u } }
	held := func(ports int) change { return func(d *pool.Destination) { d.Held = ports } }
	load := func(rate, ceiling float64) change {
		return func(d *pool.Destination) { d.CloseRate, d.Ceiling = rate, ceiling }
	}
	in10min := func(seconds float64) change {
		return func(d *pool.Destination) { d.Exhaustion, d.SureExhaustion = seconds, seconds }
	}
	tests := []struct {
		name    string
		changes []change
		failing bool
		level   Level
		alerts  []string
	}{
		{name: "nothing", level: Calm},
		{name: "under half", changes: []change{used(0.499), load(79, 100), in10min(600), in(tcpstate.CloseWait, 199)}, level: Calm},
		{name: "under a fifth without an answer", changes: []change{in(tcpstate.SynSent, 199), held(400)}, level: Calm},
		{name: "open connections may rise", changes: []change{used(0.35), held(325)}, level: Calm, alerts: []string{"EphemeralPortsOpenConnectionsRise"}},
		{name: "open connections are few", changes: []change{used(0.35), held(324)}, level: Calm},
		{name: "open connections, and little in use", changes: []change{used(0.299), held(900)}, level: Calm},
		{name: "open connections and another threshold", changes: []change{used(0.5), held(500)}, level: Warning, alerts: []string{"EphemeralPortsHalfUsed"}},
		{name: "half", changes: []change{used(0.5)}, level: Warning, alerts: []string{"EphemeralPortsHalfUsed"}},
		{name: "under 80%", changes: []change{used(0.799)}, level: Warning, alerts: []string{"EphemeralPortsHalfUsed"}},
		{name: "80%", changes: []change{used(0.8)}, level: Critical, alerts: []string{"EphemeralPortsNearlyExhausted"}},
		{name: "under 98%", changes: []change{used(0.979)}, level: Critical, alerts: []string{"EphemeralPortsNearlyExhausted"}},
		{name: "98%", changes: []change{used(0.98)}, level: Exhausted, alerts: []string{"EphemeralPortsExhausted"}},
		{name: "closes near the ceiling", changes: []change{load(80, 100)}, level: Warning},
		{name: "under 90% of the ceiling", changes: []change{load(89.9, 100)}, level: Warning},
		{name: "closes at the ceiling", changes: []change{load(90, 100)}, level: Critical, alerts: []string{"EphemeralPortsRateNearCeiling"}},
		{name: "open on every port", changes: []change{load(1, 0)}, level: Calm},
		{name: "minutes left", changes: []change{in10min(599)}, level: Critical, alerts: []string{"EphemeralPortsExhaustionPredicted"}},
		{name: "minutes left, or a burst", changes: []change{func(d *pool.Destination) { d.Exhaustion = 599 }}, level: Warning},
		{name: "failing", failing: true, level: Warning, alerts: []string{"EphemeralPortsConnectFailing"}},
		{name: "possibly half", changes: []change{possibly(0.5)}, level: Warning},
		{name: "possibly under 80%", changes: []change{used(0.499), possibly(0.799)}, level: Warning},
		{name: "possibly 80%", changes: []change{used(0.799), possibly(0.8)}, level: Unknown, alerts: []string{"EphemeralPortsPossiblyExhausted", "EphemeralPortsHalfUsed"}},
		{name: "possibly all, certainly 80%", changes: []change{used(0.8), possibly(1)}, level: Critical, alerts: []string{"EphemeralPortsNearlyExhausted"}},
		{name: "a leak", changes: []change{in(tcpstate.CloseWait, 200)}, level: Warning, alerts: []string{"EphemeralPortsCloseWait"}},
		{name: "no answer", changes: []change{in(tcpstate.SynSent, 200)}, level: Warning, alerts: []string{"EphemeralPortsSynSent"}},
		{name: "most without an answer", changes: []change{in(tcpstate.SynSent, 100), held(200)}, level: Warning, alerts: []string{"EphemeralPortsSynSent"}},
		{name: "less than half without an answer", changes: []change{in(tcpstate.SynSent, 100), held(201)}, level: Calm},
		{name: "few without an answer", changes: []change{in(tcpstate.SynSent, 99), held(99)}, level: Calm},
		{name: "closed ones are no answer", changes: []change{in(tcpstate.SynSent, 100), in(tcpstate.TimeWait, 5000), held(5200)}, level: Warning, alerts: []string{"EphemeralPortsSynSent"}},
		{
			name: "all", changes: []change{used(0.8), load(100, 100), in10min(10), in(tcpstate.CloseWait, 400), in(tcpstate.SynSent, 400)}, failing: true, level: Critical,
			alerts: []string{
				"EphemeralPortsNearlyExhausted", "EphemeralPortsRateNearCeiling", "EphemeralPortsExhaustionPredicted",
				"EphemeralPortsConnectFailing", "EphemeralPortsCloseWait", "EphemeralPortsSynSent",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := pool.Destination{Ceiling: 100, Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1)}
			for _, change := range tt.changes {
				change(&d)
			}
			check(t, ReachedTCP(&pool.Report{CapacityPorts: 1000}, &d, tt.failing), tt.level, tt.alerts...)
		})
	}
	t.Run("no ports", func(t *testing.T) {
		d := pool.Destination{Utilization: 1, Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1)}
		check(t, ReachedTCP(&pool.Report{}, &d, false), Exhausted, "EphemeralPortsExhausted")
	})
}

// check compares what is reached.
func check(t *testing.T, got Reached, level Level, alerts ...string) {
	t.Helper()
	if got.Level() != level {
		t.Errorf("level: got %v, want %v", got.Level(), level)
	}
	if diff := cmp.Diff(alerts, got.Alerts()); diff != "" {
		t.Errorf("alerts (-want +got):\n%s", diff)
	}
}

// TestReached checks the thresholds of all other kinds, and the values before them.
func TestReached(t *testing.T) {
	unreported := func(worst float64, reported ...float64) Reached {
		r := pool.Report{MaxUtilization: worst}
		for _, u := range reported {
			r.Destinations = append(r.Destinations, pool.Destination{Utilization: u})
		}
		return ReachedUnreported(&r)
	}
	bound := func(ports int) Reached {
		return ReachedBound(&pool.Report{CapacityPorts: 100, BoundPorts: ports, BoundKnown: true})
	}
	source := func(u float64) Reached { return ReachedSource(&pool.Report{}, &pool.Source{Utilization: u}) }
	shared := func(u float64) Reached {
		return ReachedSource(&pool.Report{Settings: pool.Settings{AutobindReuse: true}}, &pool.Source{Utilization: u})
	}
	udp := func(u float64) Reached { return ReachedUDP(&pool.UDPPool{Utilization: u}) }
	nat := func(u, failure float64) Reached {
		return ReachedSNAT(&snat.Pool{Utilization: u, SearchFailure: failure})
	}
	tests := []struct {
		name   string
		got    Reached
		level  Level
		alerts []string
	}{
		{"unreported, under half", unreported(0.499), Calm, nil},
		{"unreported, half", unreported(0.5, 0.4, 0.1), Warning, nil},
		{"unreported, 80%", unreported(0.8, 0.79), Critical, []string{"EphemeralPortsWorstUnreported"}},
		{"unreported, possibly 80%", ReachedUnreported(&pool.Report{MaxUtilization: 0.1, MaxPossibleUtilization: 0.8}), Unknown, []string{"EphemeralPortsPossiblyExhausted"}},
		{"possibly 80%, reported", ReachedUnreported(&pool.Report{MaxPossibleUtilization: 0.9, Destinations: []pool.Destination{{PossibleUtilization: 0.8, Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1)}}}), Calm, nil},
		{"nothing held, half may be bound", ReachedPossiblyBound(&pool.Report{CapacityPorts: 100, BoundPorts: 30, BoundUnknown: 20}), Warning, nil},
		{"nothing held, less may be bound", ReachedPossiblyBound(&pool.Report{CapacityPorts: 100, BoundPorts: 30, BoundUnknown: 19}), Calm, nil},
		{"half bound, and no more", ReachedPossiblyBound(&pool.Report{CapacityPorts: 100, BoundPorts: 50, BoundKnown: true}), Calm, nil},
		{"the worst is reported", unreported(0.8, 0.8), Calm, nil},
		{"all lack bound ports", ReachedUnreported(&pool.Report{CapacityPorts: 100, BoundPorts: 80, BoundKnown: true, MaxUtilization: 0.85}), Calm, nil},
		{"all lack bound ports, one has more", ReachedUnreported(&pool.Report{CapacityPorts: 100, BoundPorts: 79, BoundKnown: true, MaxUtilization: 0.8}), Critical, []string{"EphemeralPortsWorstUnreported"}},
		{"bound, under half", bound(49), Calm, nil},
		{"bound, half", bound(50), Warning, []string{"EphemeralPortsHalfBound"}},
		{"bound, 80%", bound(80), Critical, []string{"EphemeralPortsNearlyAllBound"}},
		{"bound, 98%", bound(98), Exhausted, []string{"EphemeralPortsAllBound"}},
		{"bound, not known", ReachedBound(&pool.Report{CapacityPorts: 100, BoundPorts: 100}), Calm, nil},
		{"bound, no capacity", ReachedBound(&pool.Report{BoundKnown: true}), Calm, nil},
		{"source, under half", source(0.499), Calm, nil},
		{"source, half", source(0.5), Warning, nil},
		{"source, 80%", source(0.8), Critical, []string{"EphemeralPortsSourceNearlyExhausted"}},
		{"source that may share, under 80%", shared(0.799), Calm, nil},
		{"source that may share, 80%", shared(1), Warning, nil},
		{"UDP, under 80%", udp(0.799), Calm, nil},
		{"UDP, 80%", udp(0.8), Critical, []string{"EphemeralPortsUDPNearlyExhausted"}},
		{"UDP, 98%", udp(0.98), Exhausted, []string{"EphemeralPortsUDPExhausted"}},
		{"source NAT, calm", nat(0.499, 0.0099), Calm, nil},
		{"source NAT, half", nat(0.5, 0), Warning, []string{"EphemeralPortsSNATHalfUsed"}},
		{"source NAT, 80%", nat(0.8, 0), Critical, []string{"EphemeralPortsSNATNearlyExhausted"}},
		{"source NAT, 98%", nat(0.98, 0.01), Exhausted, []string{"EphemeralPortsSNATExhausted", "EphemeralPortsSNATNearlyExhausted"}},
		{"source NAT, searches fail", nat(0.44, 0.01), Critical, []string{"EphemeralPortsSNATNearlyExhausted"}},
		{"source NAT, many searches fail", nat(0.6, 0.1), Exhausted, []string{"EphemeralPortsSNATExhausted", "EphemeralPortsSNATHalfUsed"}},
		{"source NAT, not known", nat(math.NaN(), math.NaN()), Unknown, []string{"EphemeralPortsSNATPortRange"}},
		{"source NAT, both", nat(0.99, 0.9), Exhausted, []string{"EphemeralPortsSNATExhausted"}},
		{"flows, under 90%", ReachedConntrack(0.899), Calm, nil},
		{"TIME_WAIT, under half", ReachedTimeWait(TimeWaitSockets{Sockets: 499, Limit: 1000, Overflows: 7}), Calm, nil},
		{"TIME_WAIT, half", ReachedTimeWait(TimeWaitSockets{Sockets: 500, Limit: 1000, Overflows: 7}), Warning, []string{"EphemeralPortsTimeWaitOverflow"}},
		{"TIME_WAIT, none skipped it", ReachedTimeWait(TimeWaitSockets{Sockets: 1000, Limit: 1000}), Calm, nil},
		{"TIME_WAIT, none skipped it lately", ReachedTimeWait(TimeWaitSockets{Sockets: 1000, Limit: 1000, Overflows: 7, Window: time.Second}), Calm, nil},
		{"TIME_WAIT, one skipped it lately", ReachedTimeWait(TimeWaitSockets{Limit: 1000, Overflows: 7, Recent: 1, Window: time.Second}), Warning, []string{"EphemeralPortsTimeWaitOverflow"}},
		{"flows, 90%", ReachedConntrack(0.9), Critical, []string{"EphemeralPortsConntrackNearlyFull"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { check(t, tt.got, tt.level, tt.alerts...) })
	}
}

// TestQuestions checks that package pool asks peers again for what advice depends on from the utilization on at which a
// destination is in danger.
func TestQuestions(t *testing.T) {
	settings := pool.Settings{PortRange: pool.PortRange{Low: 40000, High: 40099}, Timestamps: 1, TimeWaitLength: time.Minute}
	var known pool.Knowledge
	for _, held := range []int{1, 49, 50} {
		table := pool.NewTable(settings)
		table.Recall(known, 0)
		for i := range held {
			table.Add(&pool.Socket{
				State:  tcpstate.Established,
				Local:  netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(40000+i)),
				Remote: netip.MustParseAddrPort("10.0.0.2:443"),
			})
		}
		limits := pool.Limits{MinPorts: 1, Most: 1}
		questions := table.Questions(limits)
		if held == 1 {
			known.Answer(questions[0], true, 0, time.Minute)
			continue
		}
		r := table.Report(limits)
		if danger := ReachedTCP(&r, &r.Destinations[0], false).Level() > Calm; danger != (len(questions) > 0) || (held == 50) != danger {
			t.Errorf("%d of 100 ports held: %d questions, danger %v", held, len(questions), danger)
		}
	}
}

// TestLevelString has the names that JSON, metrics of others and the page use.
func TestLevelString(t *testing.T) {
	for level, want := range map[Level]string{Calm: "calm", Warning: "warning", Critical: "critical", Exhausted: "exhausted", Unknown: "unknown"} {
		if got := level.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

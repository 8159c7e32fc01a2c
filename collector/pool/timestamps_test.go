package pool

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"

	"github.com/google/go-cmp/cmp"
)

// TestQuestions checks which connections are asked about.
func TestQuestions(t *testing.T) {
	reuse := reusing(hundredPorts, time.Second)
	off, never, onLoopback := reuse, reuse, reuse
	off.Timestamps, never.TWReuse, onLoopback.TWReuse = 0, 0, 2
	destination := func(i int) string { return fmt.Sprintf("10.0.1.%d:80", i) }
	pools := func(state tcpstate.State, held ...int) (sockets []Socket) {
		for i, n := range held {
			for port := range n {
				sockets = append(sockets, socket(state, fmt.Sprintf("10.0.0.1:%d", 40000+port), destination(i)))
			}
		}
		return sockets
	}
	on := func(s []Socket, source, destination string) []Socket {
		for i := range s {
			s[i].Local = netip.AddrPortFrom(netip.MustParseAddr(source), s[i].Local.Port())
			s[i].Remote = netip.MustParseAddrPort(destination)
		}
		return s
	}
	bound := func(n int) (sockets []Socket) {
		for port := range n {
			s := socket(tcpstate.TimeWait, fmt.Sprintf("10.0.0.2:%d", 40099-port), "10.0.2.1:80")
			s.Bound = Yes
			sockets = append(sockets, s)
		}
		return sockets
	}
	for _, tt := range []struct {
		name       string
		settings   Settings
		limits     Limits
		knownBound bool
		sockets    []Socket
		want       []string
	}{
		{"nothing is open", reuse, everything, false, pools(tcpstate.TimeWait, 60), nil},
		{"not answered yet", reuse, everything, false, append(pools(tcpstate.SynSent, 60), pools(tcpstate.SynRecv, 60)...), nil},
		{"loopback", reuse, everything, false, on(pools(tcpstate.Established, 60), "127.0.0.1", "127.0.0.1:80"), nil},
		{"the reader knows", reuse, everything, true, pools(tcpstate.Established, 60), nil},
		{"most ports first", reuse, everything, false, pools(tcpstate.Established, 1, 3, 2), []string{destination(1), destination(2), destination(0)}},
		{"as many", reuse, everything, false, pools(tcpstate.Established, 1, 1, 1), []string{destination(0), destination(1), destination(2)}},
		{"not reported", reuse, Limits{MinPorts: 3, Most: 9}, false, pools(tcpstate.Established, 2, 3), []string{destination(1)}},
		{"too many", reuse, Limits{Most: 1}, false, pools(tcpstate.Established, 2, 3), []string{destination(1)}},
		{"none", reuse, Limits{}, false, pools(tcpstate.Established, 2, 3), nil},
		{"tcp_tw_reuse without tcp_timestamps", off, everything, false, pools(tcpstate.Established, 60), nil},
		{"advice might be tcp_tw_reuse", never, everything, false, pools(tcpstate.Established, 49, 50), []string{destination(1)}},
		{"advice might be to extend tcp_tw_reuse", onLoopback, everything, false, pools(tcpstate.Established, 49, 50), []string{destination(1)}},
		{"advice, with ports that are bound", never, everything, false, append(bound(40), pools(tcpstate.Established, 9, 10)...), []string{destination(1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := NewTable(tt.settings)
			if tt.knownBound {
				table.KnowBound()
			}
			for i := range tt.sockets {
				tt.sockets[i].Interface = 7
				table.Add(&tt.sockets[i])
			}
			var got []string
			for _, q := range table.Questions(tt.limits) {
				got = append(got, q.Remote.String())
				if q.Interface != 7 || q.Local.Addr() != netip.MustParseAddr("10.0.0.1") || !hundredPorts.PortRange.Contains(q.Local.Port()) {
					t.Errorf("asked about %v on interface %d", q.Local, q.Interface)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestAnswer checks what an answer changes: what this Table reports, what the next one counts, and whether this
// one has to count again.
func TestAnswer(t *testing.T) {
	for _, tt := range []struct {
		before     Fact
		reuse      int
		timestamps bool
		changed    bool
	}{
		{Unknown, 1, true, false}, // as the sysctl says
		{Unknown, 1, false, true},
		{Yes, 1, true, false},
		{Yes, 1, false, true},
		{No, 1, true, true},
		{No, 1, false, false},
		{Unknown, 0, false, false}, // nothing is reusable
		{No, 0, true, false},
	} {
		t.Run(fmt.Sprint(tt.before, tt.reuse, tt.timestamps), func(t *testing.T) {
			s := reusing(hundredPorts, time.Second)
			s.TWReuse = tt.reuse
			var k Knowledge
			peer := netip.MustParseAddrPort("10.0.1.1:80")
			if tt.before != Unknown {
				k.timestamps = map[netip.AddrPort]Fact{peer: tt.before}
			}
			add := func() *Table {
				table := NewTable(s)
				table.Recall(k, 0)
				for port := range 60 {
					s := socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", 40000+port), peer.String())
					if port > 0 {
						s.State, s.Mini, s.Expires = tcpstate.TimeWait, true, 30*time.Second
					}
					table.Add(&s)
				}
				return table
			}
			table := add()
			questions := table.Questions(everything)
			if len(questions) != 1 {
				t.Fatalf("%d questions", len(questions))
			}
			if got := k.Answer(questions[0], tt.timestamps); got != tt.changed {
				t.Errorf("changed %v, want %v", got, tt.changed)
			}
			want, reusable := No, 0
			if tt.timestamps {
				want, reusable = Yes, 59*tt.reuse
			}
			if got := table.Report(everything).Destinations[0].Timestamps; got != want {
				t.Errorf("timestamps %v, want %v", got, want)
			}
			if d := add().Report(everything).Destinations[0]; d.Timestamps != want || d.Reusable != reusable {
				t.Errorf("next: timestamps %v, %d reusable, want %v, %d", d.Timestamps, d.Reusable, want, reusable)
			}
		})
	}
}

// TestDoubtBound checks that ports that clients have bound are not among those that connect() may take over, also
// where it is not known whether it does.
func TestDoubtBound(t *testing.T) {
	table := NewTable(reusing(hundredPorts, time.Second))
	for port := range 30 {
		s := socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", 40000+port), "10.0.1.1:80")
		if port > 0 {
			s.State, s.Mini, s.Expires = tcpstate.TimeWait, true, 50*time.Second
		}
		table.Add(&s)
	}
	table.Doubt(table.Questions(everything)[0])
	for port := range uint16(10) {
		table.bound.Add(40001 + 2*port) // of bind parity
	}
	table.countBound()
	d := table.Report(everything).Destinations[0]
	if d.Reusable != 0 || d.ReusableUnknown != 19 || d.Utilization != 0.3 {
		t.Errorf("%d reusable ports and %d that may be, utilization %v, want 0, 19, 0.3", d.Reusable, d.ReusableUnknown, d.Utilization)
	}
}

// TestDoubt checks that a question without an answer is as bad as the worst answer, unless it was answered before.
func TestDoubt(t *testing.T) {
	for _, delay := range []time.Duration{time.Second, 0} { // with tcp_tw_reuse_delay and without
		for _, before := range []Fact{Unknown, No, Yes} {
			t.Run(fmt.Sprint(delay, before), func(t *testing.T) {
				report := func(before Fact, doubt bool) Destination {
					s := reusing(hundredPorts, delay)
					peer := netip.MustParseAddrPort("10.0.1.1:80")
					table := NewTable(s)
					table.Recall(Knowledge{timestamps: map[netip.AddrPort]Fact{peer: before}}, 0)
					for port := range 80 {
						s := socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", 40000+port), peer.String())
						s.Seen = 1000*time.Second + 500*time.Millisecond
						if port > 0 {
							s.State, s.Mini, s.Expires = tcpstate.TimeWait, true, time.Minute-time.Duration(port)*20*time.Millisecond
						}
						table.Add(&s)
					}
					questions := table.Questions(everything)
					if len(questions) != 1 {
						t.Fatalf("%d questions", len(questions))
					}
					if doubt {
						table.Doubt(questions[0])
					}
					return table.Report(everything).Destinations[0]
				}
				got, known, worst := report(before, true), report(before, false), report(No, false)
				if before != Unknown {
					if got.Utilization != known.Utilization || got.Hold != known.Hold || got.ReusableUnknown != 0 {
						t.Errorf("got %+v, want what was known before: %+v", got, known)
					}
					return
				}
				if known.Reusable == 0 || got.Reusable != 0 || got.ReusableUnknown != known.Reusable || got.Timestamps != Unknown {
					t.Errorf("%d reusable ports and %d that may be, timestamps %v, want 0 and %d, unknown", got.Reusable, got.ReusableUnknown, got.Timestamps, known.Reusable)
				}
				if got.Utilization != worst.Utilization || got.Hold != worst.Hold || got.Ceiling > worst.Ceiling || got.Exhaustion > worst.Exhaustion {
					t.Errorf("utilization %v, hold %v, ceiling %v, exhaustion %v, want no better than without timestamps: %v, %v, %v, %v",
						got.Utilization, got.Hold, got.Ceiling, got.Exhaustion, worst.Utilization, worst.Hold, worst.Ceiling, worst.Exhaustion)
				}
			})
		}
	}
}

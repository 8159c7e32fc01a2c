package pool

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
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
		{"few pools, which are listed", reuse, Limits{MinPorts: 3, Most: 9}, false, pools(tcpstate.Established, 2, 3), []string{destination(1), destination(0)}},
		{"small ones of many", reuse, Limits{MinPorts: 3, Most: 9}, false, pools(tcpstate.Established, append(slices.Repeat([]int{2}, 20), 3)...), []string{destination(20)}},
		{"too many", reuse, Limits{MinPorts: 1, Most: 1}, false, pools(tcpstate.Established, 2, 3), []string{destination(1)}},
		{"none", reuse, Limits{}, false, pools(tcpstate.Established, 2, 3), nil},
		{"tcp_tw_reuse without tcp_timestamps", off, everything, false, pools(tcpstate.Established, 60), nil},
		{"advice might be tcp_tw_reuse", never, everything, false, pools(tcpstate.Established, 49, 50), []string{destination(1)}},
		{"advice might be to extend tcp_tw_reuse", onLoopback, everything, false, pools(tcpstate.Established, 49, 50), []string{destination(1)}},
		{"advice, with ports that are bound", never, everything, false, append(bound(40), pools(tcpstate.Established, 9, 10)...), []string{destination(1)}},
		{"not answered, far from danger", never, everything, false, pools(tcpstate.Established, 1, 50), []string{destination(1), destination(0)}},
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
			for i := range table.counts.Len() {
				if strings.HasPrefix(tt.name, "advice") { // all have answered before
					table.counts.At(i).answers.add(true)
				}
			}
			var got []string
			for _, q := range table.Questions(tt.limits) {
				if !q.further { // see TestQuestionsEach
					got = append(got, q.Remote.String())
				}
				if early := strings.HasPrefix(tt.name, "not answered, far") && q.Remote.String() == destination(0); q.Matters() == early {
					t.Errorf("the answer of %v matters now: %v", q.Remote, q.Matters())
				}
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

// peerOf returns a peer with one answer, of an hour ago, from the view of TestAnswer; none if it is Unknown.
func peerOf(fact Fact) (p peer) {
	if fact != Unknown {
		p.add(fact == Yes, time.Hour-time.Second, time.Minute)
	}
	return p
}

// TestPeer checks what several answers say together.
func TestPeer(t *testing.T) {
	const life = 2 * time.Minute
	type answer struct {
		with bool
		n    int
		at   time.Duration
	}
	for _, tt := range []struct {
		name    string
		answers []answer
		fact    Fact
		share   float64
	}{
		{"none", nil, Unknown, 0},
		{"all with", []answer{{true, 100, time.Hour}}, Yes, 0},
		{"all without", []answer{{false, 100, time.Hour}}, No, 0},
		{"one without", []answer{{true, 3, time.Hour}, {false, 1, time.Hour}}, Unknown, 0.75},
		{"one with", []answer{{true, 1, time.Hour}, {false, 3, time.Hour}}, Unknown, 0.25},
		{"one without, long ago", []answer{{false, 1, time.Hour}, {true, 5, time.Hour + life}, {true, 1, time.Hour + life + 1}}, Yes, 0},
		{"one without, just not long ago", []answer{{false, 1, time.Hour}, {true, 4, time.Hour + life}}, Unknown, 0.8},
		{"one without of many", []answer{{false, 1, time.Hour}, {true, 1000, time.Hour}}, Unknown, 62. / 63},
	} {
		var a peer
		for _, answer := range tt.answers {
			for range answer.n {
				a.add(answer.with, answer.at, life)
			}
		}
		if a.fact() != tt.fact || a.differ() != (tt.share > 0) || !near(a.share(), tt.share, 0.02) {
			t.Errorf("%s: timestamps %v, share %v, want %v, %v", tt.name, a.fact(), a.share(), tt.fact, tt.share)
		}
	}
}

// TestQuestionsEach asks several connections of each pool, others at the next scan, and no more in all than a report bears.
func TestQuestionsEach(t *testing.T) {
	h := newHost(t)
	h.settings = reusing(hundredPorts, time.Second)
	for i := range 20 {
		h.connect("10.0.0.1", fmt.Sprintf("10.0.1.%d:80", i), 20)
	}
	questions := func(most int) []Question {
		table := NewTable(h.settings)
		table.Recall(h.known, 0)
		for i := range h.sockets {
			table.Add(&h.sockets[i])
		}
		return table.Questions(Limits{Most: most})
	}
	ask := func(most int) (asked map[netip.AddrPort]map[uint16]bool, n int) {
		asked = map[netip.AddrPort]map[uint16]bool{}
		for i, q := range questions(most) {
			if asked[q.Remote] == nil {
				asked[q.Remote] = map[uint16]bool{}
			}
			if q.further != (len(asked[q.Remote]) > 0) || q.further && i < min(most, 20) {
				t.Errorf("question %d of %v: further %v", i, q.Remote, q.further)
			}
			asked[q.Remote][q.Local.Port()] = true
			n++
		}
		return asked, n
	}
	for _, tt := range []struct{ most, pools, questions int }{
		{0, 0, 0}, {1, 1, 2}, {20, 20, 40}, {50, 20, 100}, {1000, 20, 20 * questionsEach},
	} {
		asked, n := ask(tt.most)
		different := 0
		for _, ports := range asked {
			different += len(ports)
		}
		if len(asked) != tt.pools || n != tt.questions || different != n {
			t.Errorf("most %d: %d questions about %d connections of %d pools, want %d of %d", tt.most, n, different, len(asked), tt.questions, tt.pools)
		}
	}
	turns := map[netip.AddrPort]bool{}
	for range 9 {
		asked, _ := ask(4)
		for address := range asked {
			turns[address] = true
		}
		h.scan()
	}
	if len(turns) != 20 {
		t.Errorf("in 9 scans of 4 pools, %d of 20 were asked", len(turns))
	}
	seen := map[uint16]bool{}
	for range 20 {
		asked, _ := ask(1000)
		for port := range asked[netip.MustParseAddrPort("10.0.1.1:80")] {
			seen[port] = true
		}
		h.scan()
	}
	if len(seen) != 20 {
		t.Errorf("in 20 scans, %d of 20 connections were asked", len(seen))
	}
}

// TestHoldDiffer has a peer of which half of the connections use timestamps: half of them hold their ports for long.
func TestHoldDiffer(t *testing.T) {
	settings, address := reusing(hundredPorts, time.Second), netip.MustParseAddrPort("10.0.1.1:80")
	for _, young := range []int{0, 10} {
		said := peerOf(Yes)
		said.add(false, time.Hour, time.Minute)
		table := NewTable(settings)
		table.Recall(Knowledge{peers: map[netip.AddrPort]peer{address: said}}, 0)
		for port := range 20 + young {
			s := socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", 40000+port), address.String())
			if port >= 20 {
				s.State, s.Mini, s.Expires = tcpstate.TimeWait, true, time.Minute-time.Duration(port-19)*50*time.Millisecond
			}
			table.Add(&s)
		}
		if d := table.Report(everything).Destinations[0]; !near(d.Hold, (1.+60)/2, 0.5) || !near(d.Ceiling, 80/30.5, 0.3) {
			t.Errorf("%d closes: a port is held for %v s, ceiling %v, want about 30.5 s, 2.6", young, d.Hold, d.Ceiling)
		}
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
		want       Fact
	}{
		{Unknown, 1, true, false, Yes}, // as the sysctl says
		{Unknown, 1, false, true, No},
		{Yes, 1, true, false, Yes},
		{Yes, 1, false, false, Unknown}, // they differ: both are possible
		{No, 1, true, true, Unknown},
		{No, 1, false, false, No},
		{Unknown, 0, false, false, No}, // nothing is reusable
		{No, 0, true, false, Unknown},
	} {
		t.Run(fmt.Sprint(tt.before, tt.reuse, tt.timestamps), func(t *testing.T) {
			s := reusing(hundredPorts, time.Second)
			s.TWReuse = tt.reuse
			var k Knowledge
			address := netip.MustParseAddrPort("10.0.1.1:80")
			if tt.before != Unknown {
				k.peers = map[netip.AddrPort]peer{address: peerOf(tt.before)}
			}
			add := func() *Table {
				table := NewTable(s)
				table.Recall(k, 0)
				for port := range 60 {
					s := socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", 40000+port), address.String())
					if port > 0 {
						s.State, s.Mini, s.Expires, s.Seen = tcpstate.TimeWait, true, 30*time.Second, time.Hour
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
			k.Answer(questions[0], tt.timestamps, time.Hour, time.Minute)
			if got := k.Contradicts(questions[0]); got != tt.changed {
				t.Errorf("changed %v, want %v", got, tt.changed)
			}
			reusable, mayBeHeld := 59*tt.reuse, 0
			switch tt.want {
			case No:
				reusable = 0
			case Unknown:
				mayBeHeld = reusable
			}
			if got := table.Report(everything).Destinations[0].Timestamps; got != tt.want {
				t.Errorf("timestamps %v, want %v", got, tt.want)
			}
			if d := add().Report(everything).Destinations[0]; d.Timestamps != tt.want || d.Reusable != reusable || d.MayBeHeld != mayBeHeld || (d.TimestampsShare == 0.5) != (tt.want == Unknown) {
				t.Errorf("next: timestamps %v, share %v, %d reusable, %d may be held, want %v, %d, %d", d.Timestamps, d.TimestampsShare, d.Reusable, d.MayBeHeld, tt.want, reusable, mayBeHeld)
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
					address := netip.MustParseAddrPort("10.0.1.1:80")
					table := NewTable(s)
					table.Recall(Knowledge{peers: map[netip.AddrPort]peer{address: peerOf(before)}}, 0)
					for port := range 80 {
						s := socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", 40000+port), address.String())
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

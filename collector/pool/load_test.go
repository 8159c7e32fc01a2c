package pool

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// A simulation is a pool of which the kernel frees ports by the rules, at the latest moment.
type simulation struct {
	settings Settings
	open     int // connections that stay open

	takenOver bool // connections that are closed in this second have taken over ports of earlier ones

	// Each connection was closed at a time, in seconds from the start. Its peer closed after a
	// further time; +Inf if never.
	closed, answered []float64
}

// thousandPorts has TIME_WAIT of 62.048 s.
var thousandPorts = Settings{
	PortRange: PortRange{Low: 40000, High: 40999}, TimeWaitLength: time.Minute, FinTimeout: time.Minute, Tick: 4 * time.Millisecond,
}

// reusing returns settings with which connect() takes over ports after that delay.
func reusing(s Settings, delay time.Duration) Settings {
	s.TWReuse, s.Timestamps, s.TWReuseDelay = 1, 1, delay
	return s
}

// close closes connections at a steady rate from one time to another.
func (s *simulation) close(from, to, perSecond, answered float64) {
	for i := range int(math.Round((to - from) * perSecond)) {
		s.closed = append(s.closed, from+float64(i)/perSecond)
		s.answered = append(s.answered, answered)
	}
}

// at returns the sockets at a time.
func (s *simulation) at(now float64) []Socket {
	rule := s.settings.timeWaitRule(false)
	var sockets []Socket
	add := func(state tcpstate.State, life, age time.Duration) {
		sockets = append(sockets, Socket{
			State: state, Mini: life > 0, Expires: max(life-age, 0), Seen: time.Hour + time.Duration(now*float64(time.Second)),
			Local:  netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), s.settings.PortRange.Low+uint16(len(sockets)%s.settings.PortRange.Size())),
			Remote: netip.MustParseAddrPort("10.0.0.2:80"),
		})
	}
	for range s.open {
		add(tcpstate.Established, 0, 0)
	}
	for i, closed := range s.closed {
		age := time.Duration((now - closed) * float64(time.Second))
		answer := time.Duration(min(s.answered[i], 1e6) * float64(time.Second))
		unanswered, expired := rule.times[unanswered], rule.times[expired]
		switch {
		case s.takenOver && closed < math.Floor(now) && i < len(s.closed)-s.settings.PortRange.Size():
		case age < 0:
		case age < answer:
			if age < unanswered.hold {
				add(tcpstate.FinWait2, unanswered.life, age)
			}
		case age-answer < expired.hold:
			add(tcpstate.TimeWait, expired.life, age-answer)
		}
	}
	return sockets
}

// report returns what the exporter says of the pool at a time.
func (s *simulation) report(t *testing.T, now float64) Destination {
	t.Helper()
	r := tableOf(s.settings, nil, s.at(now)...).Report(everything)
	if len(r.Destinations) != 1 {
		t.Fatalf("%d destinations, want 1", len(r.Destinations))
	}
	return r.Destinations[0]
}

// exhausted returns when the first connection found no port, to half a second.
func (s *simulation) exhausted(from, to float64) float64 {
	for now := from; now < to; now += 0.5 {
		if d := tableOf(s.settings, nil, s.at(now)...).Report(everything); len(d.Destinations) > 0 && d.Destinations[0].Utilization >= 1 {
			return now
		}
	}
	return math.Inf(1)
}

func near(got, want, tolerance float64) bool { return got == want || math.Abs(got-want) <= tolerance }

// TestCeilingFigures checks the ceilings of idle pools, which are well-known figures.
func TestCeilingFigures(t *testing.T) {
	tests := []struct {
		settings  Settings
		open      int
		want      float64
		listeners []Listener
	}{
		{Settings{PortRange: PortRange{Low: 32768, High: 60999}, TimeWaitLength: time.Minute}, 0, 470.53, nil}, // without lateness
		{Settings{PortRange: PortRange{Low: 32768, High: 60999}, TimeWaitLength: time.Minute, Tick: 4 * time.Millisecond}, 0, 455.00, nil},
		{Settings{PortRange: PortRange{Low: 32768, High: 60999}, TimeWaitLength: time.Minute, Tick: 10 * time.Millisecond}, 0, 433.54, nil},
		{Settings{PortRange: PortRange{Low: 32768, High: 60999}, TimeWaitLength: 2 * time.Minute}, 0, 235.27, nil},
		{reusing(Settings{PortRange: PortRange{Low: 32768, High: 60999}, TimeWaitLength: time.Minute, Tick: 4 * time.Millisecond}, time.Second), 0, 28232, nil},
		{thousandPorts, 500, 500 / 62.048, nil},
		{thousandPorts, 1000, 0, nil},
		{tenPorts, 11, 0, nil}, // a dump that contains a socket twice
		{Settings{PortRange: PortRange{Low: 40000, High: 40000}, TimeWaitLength: time.Minute}, 0, 0, []Listener{listener("0.0.0.0:40000")}},
	}
	for _, tt := range tests {
		table := tableOf(tt.settings, tt.listeners)
		l := newLoad(table.rule(false), new(poolCounts), 0)
		hold, _ := l.hold(table.rule(false).hold(Unknown))
		if got := Ceiling(table.capacity, tt.open, hold); math.Abs(got-tt.want) > 0.01 {
			t.Errorf("%+v, %d open: got %v, want %v", tt.settings, tt.open, got, tt.want)
		}
	}
}

// TestCeiling checks that the close rate is right, and that it reaches the ceiling where the ports
// run out.
func TestCeiling(t *testing.T) {
	never := math.Inf(1)
	tests := []struct {
		name     string
		settings Settings
		open     int
		answered float64 // seconds in FIN_WAIT2
		hold     float64 // for how long a connection holds its port
	}{
		{"TIME_WAIT", thousandPorts, 0, 0, 62.048},
		{"open connections", thousandPorts, 400, 0, 62.048},
		{"reuse", reusing(thousandPorts, time.Second), 0, 0, 1},
		{"reuse, open connections", reusing(thousandPorts, time.Second), 400, 0, 1},
		{"reuse after 20 s", reusing(thousandPorts, 20*time.Second), 400, 0, 20},
		{"peers that close after 1 s", thousandPorts, 0, 1, 63.048},
		{"peers that close after 20 s", thousandPorts, 0, 20, 82.048},
		{"peers that close after 20 s, reuse", reusing(thousandPorts, time.Second), 0, 20, 21},
		{"peers that never close", thousandPorts, 0, never, 62.048},
		{"peers that never close, reuse", reusing(thousandPorts, time.Second), 100, never, 62.048},
	}
	for _, tt := range tests {
		limit := float64(1000-tt.open) / tt.hold
		for _, share := range []float64{0.5, 0.9, 0.98} {
			s := simulation{settings: tt.settings, open: tt.open}
			s.close(150, 300, share*limit, tt.answered)
			d := s.report(t, 299)
			if !near(d.CloseRate, share*limit, 0.2+0.02*limit) {
				t.Errorf("%s at %v: close rate %v, want %v", tt.name, share, d.CloseRate, share*limit)
			}
			want := share
			if !math.IsInf(tt.answered, 1) { // FIN_WAIT2 counts as open
				open := share * limit * tt.answered
				want = share * limit * (tt.hold - tt.answered) / (float64(1000-tt.open) - open)
			}
			if load := d.CloseRate / d.Ceiling; !near(load, want, 0.03) {
				t.Errorf("%s at %v: load %v, want %v", tt.name, share, load, want)
			}
			if !math.IsInf(d.Exhaustion, 1) || d.Utilization > share+float64(tt.open)/1000+0.01 {
				t.Errorf("%s at %v: exhausted in %v s, utilization %v", tt.name, share, d.Exhaustion, d.Utilization)
			}
		}
	}
}

// TestCloseRateWholeSeconds checks the rate, and that it reaches the ceiling where the ports run out, for scrapes
// at any time of the second. Ports of the last second that have been taken over are missing.
func TestCloseRateWholeSeconds(t *testing.T) {
	for _, settings := range []Settings{thousandPorts, {PortRange: PortRange{Low: 40000, High: 49999}, TimeWaitLength: time.Minute}} {
		settings = reusing(settings, 0)
		size := float64(settings.PortRange.Size())
		for _, share := range []float64{0.02, 0.5, 0.9, 0.99} {
			for second := 0.005; second < 1; second += 0.11 {
				now := 2 + second
				s := simulation{settings: settings, takenOver: true}
				s.close(0, now, share*size, 0)
				d := s.report(t, now)
				// Few are counted early in a second, and of those before it some are missing.
				slack := 0.02
				if share*size*second < minRecent && second < 0.5 {
					slack = 0.02 + 2*share*second
				}
				if load := d.CloseRate / d.Ceiling; load > share+0.02 || load < share*(1-slack)-0.005 {
					t.Errorf("%v ports, at %v after %.3f s: load %.3f", size, share, second, load)
				}
				if d.Utilization > share*second+0.01 || d.Utilization < share*second-0.01 || !math.IsInf(d.Exhaustion, 1) {
					t.Errorf("%v ports, at %v after %.3f s: utilization %v, exhausted in %v s", size, share, second, d.Utilization, d.Exhaustion)
				}
			}
		}
	}
}

// TestCloseRateBursts has a burst of 150 closes at the start of each second, a load of 0.15. Scrapes soon after
// it do not take it for the rate of the whole second.
func TestCloseRateBursts(t *testing.T) {
	for second := 0.02; second < 1; second += 0.02 {
		s := simulation{settings: reusing(thousandPorts, 0)}
		for start := range 3 {
			s.close(float64(start), float64(start)+0.02, 150/0.02, 0)
		}
		d := s.report(t, 2+second)
		if load := d.CloseRate / d.Ceiling; load < 0.14 || load > 0.46 || !math.IsInf(d.Exhaustion, 1) {
			t.Errorf("%.2f s after a burst: load %.3f, exhausted in %v s", second, load, d.Exhaustion)
		}
	}
}

// TestExhaustionWholeSeconds checks that the forecast knows when the second ends.
func TestExhaustionWholeSeconds(t *testing.T) {
	never := math.Inf(1)
	tests := []struct {
		name          string
		open          int
		rate          float64
		from, to, now float64
		want          float64
	}{
		{"below the ceiling", 0, 990, 3, 3.6, 3.6, never},
		{"above the ceiling, in this second", 0, 1250, 3, 3.6, 3.6, 0.2},
		{"exhausted", 0, 2000, 3, 3.6, 3.6, 0},
		{"a burst in the last second, as many in the next one", 0, 2600, 2.6, 2.99, 3.05, 0.95 + 1000./1014},
		{"open connections", 600, 500, 3, 3.6, 3.6, 0.2},
		{"open connections, below the ceiling", 600, 390, 3, 3.6, 3.6, never},
	}
	for _, tt := range tests {
		s := simulation{settings: reusing(thousandPorts, 0), open: tt.open}
		s.close(tt.from, tt.to, tt.rate, 0)
		if got := s.report(t, tt.now).Exhaustion; !near(got, tt.want, 0.05) {
			t.Errorf("%s: exhausted in %v s, want %v", tt.name, got, tt.want)
		}
	}
}

// TestCloseRateStart checks that connections count from the first seconds on, whatever their peers
// do, and once. While the first come to TIME_WAIT, half of them can be missing.
func TestCloseRateStart(t *testing.T) {
	for _, reuse := range []bool{false, true} {
		settings := thousandPorts
		if reuse {
			settings = reusing(settings, 15*time.Second)
		}
		for _, answered := range []float64{0, 0.1, 5, 20, 45, math.Inf(1)} {
			s := simulation{settings: settings}
			s.close(0, 300, 10, answered)
			for now := 10.; now < 200; now += 3.7 {
				least := 9.7
				if answered < now && now < answered+15 {
					least = 4.7
				}
				if rate := s.report(t, now).CloseRate; rate < least || rate > 10.3 {
					t.Errorf("reuse %v, peers that close after %v s: close rate %v after %v s, want 10", reuse, answered, rate, now)
				}
			}
		}
	}
}

// TestPeakCloseRate checks that a load that has just begun shows, and few connections by chance do not.
func TestPeakCloseRate(t *testing.T) {
	for _, tt := range []struct {
		name                    string
		settings                Settings
		from, perSecond         float64
		closeRate, peak, within float64
	}{
		{"a minute", thousandPorts, 40, 10, 10, 10, 1},
		{"two seconds", thousandPorts, 98, 50, 10, 50, 5},
		{"two seconds, few", thousandPorts, 98, 5, 1, 1, 0.1},
		{"half a second", thousandPorts, 99.5, 200, 10, 100, 5},
		{"reuse after 20 s", reusing(thousandPorts, 20*time.Second), 98, 50, 10, 50, 5},
		{"reuse after 1 s", reusing(thousandPorts, time.Second), 98, 50, 50, 50, 2},
	} {
		s := simulation{settings: tt.settings}
		s.close(tt.from, 100, tt.perSecond, 0)
		if d := s.report(t, 100); !near(d.CloseRate, tt.closeRate, tt.within) || !near(d.PeakCloseRate, tt.peak, tt.within) {
			t.Errorf("%s: close rate %v, peak %v, want %v, %v", tt.name, d.CloseRate, d.PeakCloseRate, tt.closeRate, tt.peak)
		}
	}
}

// TestCloseRateMixed has peers of two kinds. Those that never close count together with the others
// as soon as the first FIN_WAIT2 ends.
func TestCloseRateMixed(t *testing.T) {
	for _, answered := range []float64{0, 1, 20} {
		s := simulation{settings: thousandPorts}
		s.close(0, 300, 8, answered)
		s.close(0, 300, 2, math.Inf(1))
		for _, now := range []float64{61, 100, 250} {
			if d := s.report(t, now); !near(d.CloseRate, 10, 0.2) || !near(d.Unanswered, 0.2, 0.01) {
				t.Errorf("peers that close after %v s or never: close rate %v, unanswered %v after %v s, want 10 and 0.2", answered, d.CloseRate, d.Unanswered, now)
			}
		}
	}
}

// TestCloseRateLate has peers that close after 5 s. Their connections count once where connect() takes over
// ports at the end of each second.
func TestCloseRateLate(t *testing.T) {
	s := simulation{settings: reusing(thousandPorts, 0)}
	s.close(0, 40, 50, 5)
	if d := s.report(t, 39.9); !near(d.CloseRate, 50, 2) || d.Unanswered != 0 {
		t.Errorf("close rate %v, unanswered %v, want 50 and 0", d.CloseRate, d.Unanswered)
	}
}

// TestExhaustion compares the forecast with what happens.
func TestExhaustion(t *testing.T) {
	for _, settings := range []Settings{thousandPorts, reusing(thousandPorts, 20*time.Second)} {
		rule := settings.timeWaitRule(false)
		ceiling := 1000 / rule.hold(Unknown).Seconds()
		for _, start := range []float64{0, 0.5} {
			for _, rate := range []float64{1.2, 2, 5} {
				s := simulation{settings: settings}
				s.close(0, 70, start*ceiling, 0)
				s.close(70, 180, rate*ceiling, 0)
				end := s.exhausted(70, 180)
				for now := 71.; now < end; now += 1.9 {
					// How long the rate takes to show.
					if rate*ceiling*(now-71) < minRecent && now < 80 {
						continue
					}
					d := s.report(t, now)
					if want := end - now; !near(d.Exhaustion, want, max(0.1*want, 2)) {
						t.Errorf("hold %v, from %v × the ceiling to %v ×: after %.1f s exhausted in %v s, want %v",
							rule.hold(Unknown), start, rate, now-70, d.Exhaustion, want)
					}
					// It is sure once the rate has lasted for the time that is left.
					if want := end - now; now-71 >= want && !near(d.SureExhaustion, want, max(0.1*want, 2)) || d.SureExhaustion < d.Exhaustion {
						t.Errorf("hold %v, from %v × the ceiling to %v ×: after %.1f s exhausted in %v s at least, and surely in %v s, want %v",
							rule.hold(Unknown), start, rate, now-70, d.Exhaustion, d.SureExhaustion, want)
					}
				}
			}
		}
	}
}

// TestExhaustionBursts has bursts that the ports suffice for. While one goes on, its rate would exhaust them: that is never
// sure.
func TestExhaustionBursts(t *testing.T) {
	for _, tt := range []struct {
		name                     string
		open                     int
		perSecond, lasts, period float64
	}{
		{"each 10 s", 0, 120, 1, 10},
		{"each 20 s, many open", 500, 120, 1, 20},
		{"each minute", 0, 60, 8, 60},
		{"each minute, for a moment", 0, 2000, 0.2, 60},
		{"each 80 s, as a deploy", 400, 80, 5, 80},
	} {
		s := simulation{settings: thousandPorts, open: tt.open}
		for start := 0.; start < 200; start += tt.period {
			s.close(start, start+tt.lasts, tt.perSecond, 0)
		}
		said, sure := 0, 0
		for now := 100.; now < 100+2*tt.period; now += 0.25 {
			if phase := math.Mod(now, tt.period); tt.open == 400 && phase > 2 && phase < tt.lasts+1 {
				continue // with so few ports left, another second or two exhausts them
			}
			d := s.report(t, now)
			if d.Utilization >= 1 {
				t.Fatalf("%s: exhausted after %v s", tt.name, now)
			}
			if !math.IsInf(d.Exhaustion, 1) {
				said++
			}
			if !math.IsInf(d.SureExhaustion, 1) {
				sure++
			}
		}
		if said == 0 || sure > 0 {
			t.Errorf("%s: of the forecasts that the ports run out, %d, %d are sure, want some and 0", tt.name, said, sure)
		}
	}
}

// TestExhaustionEdges checks the limits of the forecast.
func TestExhaustionEdges(t *testing.T) {
	never := math.Inf(1)
	short := thousandPorts
	short.FinTimeout = 20 * time.Second
	tests := []struct {
		name string
		s    simulation
		now  float64
		do   func(s *simulation)
		want float64
	}{
		{"nothing closes", simulation{settings: thousandPorts, open: 999}, 0, nil, never},
		{"exhausted by open connections", simulation{settings: thousandPorts, open: 1000}, 0, nil, 0},
		{"exhausted by TIME_WAIT", simulation{settings: thousandPorts}, 9, func(s *simulation) { s.close(0, 9, 120, 0) }, 0},
		{"a burst that has ended", simulation{settings: thousandPorts}, 30, func(s *simulation) { s.close(0, 9, 110, 0) }, never},
		{"a burst that has just ended", simulation{settings: thousandPorts}, 13, func(s *simulation) { s.close(0, 9, 110, 0) }, 10. / 66},
		{"just below the ceiling", simulation{settings: thousandPorts}, 150, func(s *simulation) { s.close(0, 150, 16, 0) }, never},
		{"just above the ceiling", simulation{settings: thousandPorts}, 50, func(s *simulation) { s.close(0, 50, 16.2, 0) }, 1000/16.2 - 50},
		{"open connections leave little", simulation{settings: thousandPorts, open: 900}, 10, func(s *simulation) { s.close(0, 10, 4, 0) }, 15},
		{"peers that never close", simulation{settings: reusing(thousandPorts, time.Second)}, 20, func(s *simulation) { s.close(0, 20, 20, never) }, 30},
		{"peers that never close, below the ceiling", simulation{settings: reusing(thousandPorts, time.Second)}, 55, func(s *simulation) { s.close(0, 55, 16, never) }, never},
		{"a burst of the past that ends in time", simulation{settings: thousandPorts}, 59, func(s *simulation) { s.close(0, 8, 100, 0); s.close(45, 59, 10, 0) }, never},
		{"one that does not", simulation{settings: thousandPorts}, 59, func(s *simulation) { s.close(5, 13, 100, 0); s.close(45, 59, 10, 0) }, 6},
		{"FIN_WAIT2 that moves on frees no port", simulation{settings: short}, 60, func(s *simulation) { s.close(0, 60, 13.5, 15) }, 1000/13.5 - 60},
		{"FIN_WAIT2 is short", simulation{settings: short}, 24, func(s *simulation) { s.close(0, 24, 20, 0); s.close(0, 24, 2, never) }, (1000-2*22.)/20 - 24},
		{"few peers that never close", simulation{settings: reusing(thousandPorts, time.Second)}, 100, func(s *simulation) { s.close(0, 100, 200, 0); s.close(0, 100, 2, never) }, never},
	}
	for _, tt := range tests {
		if tt.do != nil {
			tt.do(&tt.s)
		}
		if got := tt.s.report(t, tt.now).Exhaustion; !near(got, tt.want, 0.5) {
			t.Errorf("%s: exhausted in %v s, want %v", tt.name, got, tt.want)
		}
	}

	if got := newLoad(NewTable(tenPorts).rule(false), new(poolCounts), 0); got.exhaustion(0, 0) != 0 {
		t.Errorf("without ports: exhausted in %v s, want 0", got.exhaustion(0, 0))
	}
}

// TestLoadBound subtracts the ports that others have bound.
func TestLoadBound(t *testing.T) {
	bound := socket(tcpstate.Established, "10.0.0.9:40001", "10.0.0.9:80")
	bound.Bound = Yes
	r := tableOf(tenPorts, nil, bound, socket(tcpstate.Established, "10.0.0.1:40000", "10.0.0.2:80")).Report(everything)
	for _, d := range r.Destinations {
		want := 9. / 60 // of its own one or two others
		if d.Address == netip.MustParseAddrPort("10.0.0.2:80") {
			want = 8. / 60
		}
		if !near(d.Ceiling, want, 1e-9) {
			t.Errorf("%v: ceiling %v, want %v", d.Address, d.Ceiling, want)
		}
	}
}

// TestLoadFinWait2 has connections in FIN_WAIT2 that a process keeps: these are open, and what their timer
// says is not their age.
func TestLoadFinWait2(t *testing.T) {
	var sockets []Socket
	for i := range 400 {
		s := socket(tcpstate.FinWait2, fmt.Sprintf("10.0.0.1:%d", 40000+i), "10.0.0.2:80")
		s.Expires = 2 * time.Hour
		sockets = append(sockets, s)
	}
	d := tableOf(thousandPorts, nil, sockets...).Report(everything).Destinations[0]
	if d.CloseRate != 0 || !near(d.Ceiling, 600/62.048, 0.01) || !math.IsInf(d.Exhaustion, 1) {
		t.Errorf("got ceiling %v, close rate %v, exhausted in %v s, want 9.67, 0 and never", d.Ceiling, d.CloseRate, d.Exhaustion)
	}
}

// TestLoadTimestamps has a peer without timestamps: the ceiling is what TIME_WAIT in full length allows,
// whatever tcp_tw_reuse is.
func TestLoadTimestamps(t *testing.T) {
	s := simulation{settings: reusing(thousandPorts, time.Second)}
	s.close(0, 40, 20, 0)
	sockets := s.at(40)
	for i := range sockets {
		sockets[i].Timestamps = No
	}
	d := tableOf(s.settings, nil, sockets...).Report(everything).Destinations[0]
	if !near(d.Ceiling, 1000/62.048, 0.01) || !near(d.CloseRate, 20, 0.2) || !near(d.Exhaustion, 10, 0.5) {
		t.Errorf("got ceiling %v, close rate %v, exhausted in %v s, want 16.1, 20 and 10", d.Ceiling, d.CloseRate, d.Exhaustion)
	}
}

// TestClosedPorts compares with a plain list, for few and for many ports.
func TestClosedPorts(t *testing.T) {
	const life = time.Minute
	for _, n := range []int{0, 1, 15, 16, 1000} {
		var c closedPorts
		want := map[closeKind][ageBins + 2]int{}
		for i := range n {
			kind, age := closeKind(i%3), time.Duration(i%61)*time.Second
			c.add(binOf(kind, age, life))
			older := want[kind]
			for bin := range i%61 + 1 {
				older[bin]++
			}
			want[kind] = older
		}
		for kind := range closeKinds {
			if got := c.older(kind); got != want[kind] {
				t.Errorf("%d ports, kind %d: got %v, want %v", n, kind, got, want[kind])
			}
		}
		if (c.array != nil) != (n > 15) {
			t.Errorf("%d ports: an array: %v", n, c.array != nil)
		}
	}
	var c closedPorts
	for range 1 << 17 {
		c.add(binOf(unanswered, life, life))
	}
	if got := c.older(unanswered)[0]; got != math.MaxUint16 {
		t.Errorf("more sockets than there are ports: got %d, want the greatest count", got)
	}
	if n := testing.AllocsPerRun(100, func() { c.add(binOf(expired, 0, life)) }); n != 0 {
		t.Errorf("%v allocations for a socket", n)
	}
}

// BenchmarkReport measures the cost of a report, by the number of pools with many closed connections.
func BenchmarkReport(b *testing.B) {
	for _, pools := range []int{256, 10_000} {
		b.Run(fmt.Sprint(pools), func(b *testing.B) {
			t := NewTable(thousandPorts)
			for i := range pools {
				for p := range 50 {
					t.Add(&Socket{
						State: tcpstate.TimeWait, Mini: true, Expires: time.Duration(p) * time.Second,
						Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, 1}), uint16(40000+p)),
						Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 443),
					})
				}
			}
			for b.Loop() {
				t.Report(Limits{MinPorts: 10, Most: 256})
			}
		})
	}
}

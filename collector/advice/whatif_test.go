package advice

import (
	"math"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
)

// steady is a destination that has closed so many connections per second for a minute, beside some that are open.
func steady(rate float64, open int) adviceCase {
	return adviceCase{
		settings: usual, rate: rate, timestamps: pool.Yes,
		ports: map[tcpstate.State]int{tcpstate.TimeWait: int(rate * 61), tcpstate.Established: open},
	}
}

// TestWhatIf checks predictions, and what makes them wide: that the ports suffice is never said for certain unless it is.
func TestWhatIf(t *testing.T) {
	full := math.Inf(1)
	for _, tt := range []struct {
		name       string
		load       adviceCase
		change     Change
		also       func(r *pool.Report, d *pool.Destination, t *TimeWaitSockets)
		used       Interval
		limit      Limit
		limitAt    float64
		level      Level
		doubt, say string // part of a sentence; may be empty
	}{
		{name: "nothing", load: steady(0, 0), used: Interval{0, 0.0001}, limit: LimitPorts, limitAt: 9410, level: Calm},
		{name: "twice", load: steady(100, 500), change: Change{Load: 2}, used: Interval{0.430, 0.507}, limit: LimitPorts, limitAt: 3.94, level: Warning, say: "2 times as many closes and open connections, if answers take as long as now"},
		{name: "five times", load: steady(100, 500), change: Change{Load: 5}, used: Interval{1.076, 1.268}, limit: LimitPorts, limitAt: 3.94, level: Exhausted},
		{name: "half", load: steady(100, 500), change: Change{Load: 0.5}, used: Interval{0.108, 0.127}, limit: LimitPorts, limitAt: 3.94, level: Calm},
		{name: "five times, one address more", load: steady(100, 500), change: Change{Load: 5, Addresses: 1}, used: Interval{0.538, 0.634}, limit: LimitPorts, limitAt: 7.89, level: Warning, say: "Each further address has 28232 ports. If: Clients use all addresses alike"},
		{name: "five times, reuse", load: steady(100, 500), change: Change{Load: 5, Reuse: true}, used: Interval{0.097, 0.115}, limit: LimitPorts, limitAt: 43.3, level: Calm, say: "for 1 s instead of 62 s"},
		{name: "five times, keep-alive", load: steady(100, 500), change: Change{Load: 5, KeepAlive: 10}, used: Interval{0.180, 0.214}, limit: LimitPorts, limitAt: 23.4, level: Calm, say: "10 times as many requests"},

		{
			name: "a load that has just begun", load: steady(100, 0), change: Change{Load: 3}, used: Interval{0.027, 1.978}, limit: LimitPorts, limitAt: 1.517, level: Unknown, say: "not steady",
			also: func(_ *pool.Report, d *pool.Destination, _ *TimeWaitSockets) {
				d.CloseRate, d.PeakCloseRate, d.Held = 30, 300, 300
			},
		},
		{
			name: "a load that has just ended", load: steady(0, 0), change: Change{Load: 2}, used: Interval{0, 0.866}, limit: LimitPorts, limitAt: 2.31, level: Unknown, say: "not steady",
			also: func(_ *pool.Report, d *pool.Destination, _ *TimeWaitSockets) { d.Held = 12000 },
		},
		{name: "reuse, timestamps not known", load: varied(steady(100, 500), func(c *adviceCase) { c.timestamps = pool.Unknown }), change: Change{Load: 5, Reuse: true}, used: Interval{0.097, 1.268}, limit: LimitPorts, limitAt: 3.94, level: Unknown, doubt: "TCP timestamps"},
		{name: "reuse, no timestamps", load: varied(steady(100, 500), func(c *adviceCase) { c.timestamps = pool.No }), change: Change{Load: 5, Reuse: true}, used: Interval{1.076, 1.268}, limit: LimitPorts, limitAt: 3.94, level: Exhausted, say: "reuse changes nothing"},
		{
			name: "reuse is on, timestamps not known", change: Change{Load: 5},
			load: varied(steady(100, 500), func(c *adviceCase) {
				c.timestamps, c.reusable, c.settings = pool.Unknown, 6000, with(usual, func(s *pool.Settings) { s.TWReuse = 1 })
			}), used: Interval{0.095, 1.448}, limit: LimitPorts, limitAt: 3.45, level: Unknown, doubt: "TCP timestamps",
		},
		{name: "connects fail", load: varied(steady(100, 500), func(c *adviceCase) { c.failing = true }), change: Change{Reuse: true}, used: Interval{0.019, full}, limit: LimitPorts, limitAt: 43.3, level: Unknown, doubt: "how many are wanted is not known"},
		{name: "all ports in use", load: steady(463, 0), change: Change{Addresses: 1}, used: Interval{0.478, full}, limit: LimitPorts, limitAt: 1.908, level: Unknown, doubt: "how many are wanted is not known"},
		{
			name: "ports that may be bound", load: steady(100, 500), change: Change{Load: 2}, used: Interval{0.430, 0.861}, limit: LimitPorts, limitAt: 2.55, level: Unknown, doubt: "10000 further ports may be lost",
			also: func(r *pool.Report, d *pool.Destination, _ *TimeWaitSockets) {
				r.BoundUnknown, d.MayBeBound = 10000, 10000
				r.Sources = []pool.Source{{Address: d.Source, Ports: d.Held, Capacity: r.CapacityPorts}}
			},
		},
		{
			name: "clients that bind", load: varied(steady(100, 500), func(c *adviceCase) { c.own = 6000 }), change: Change{Load: 2}, used: Interval{0.643, 0.720}, limit: LimitSource, limitAt: 3.10, level: Warning,
			also: func(r *pool.Report, d *pool.Destination, _ *TimeWaitSockets) {
				r.Sources = []pool.Source{{Address: d.Source, Ports: d.Held + 6000, Capacity: r.CapacityPorts}}
			},
		},
		{name: "clients that bind, on an address that is not known", load: varied(steady(100, 500), func(c *adviceCase) { c.own = 6000 }), change: Change{Addresses: 1}, used: Interval{0, full}, limitAt: full, level: Unknown, doubt: "not among the listed addresses"},
		{
			name: "TIME_WAIT is full first", load: steady(100, 500), change: Change{Load: 2}, used: Interval{0.316, 0.507}, limit: LimitTimeWait, limitAt: 1.21, level: Warning,
			also: func(_ *pool.Report, _ *pool.Destination, t *TimeWaitSockets) {
				*t = TimeWaitSockets{Sockets: 7100, Limit: 9000}
			},
		},
		{
			name: "some skip TIME_WAIT", load: steady(100, 500), change: Change{Load: 2}, used: Interval{0.248, 1.386}, limit: LimitTimeWait, limitAt: 0.32, level: Unknown, doubt: "200 connections per second skip TIME_WAIT",
			also: func(_ *pool.Report, _ *pool.Destination, t *TimeWaitSockets) {
				*t = TimeWaitSockets{Sockets: 9000, Limit: 9000, Overflows: 5000, Recent: 2000, Window: 10 * time.Second}
			},
		},
		{
			name: "some may skip TIME_WAIT", load: steady(100, 500), change: Change{Load: 2}, used: Interval{0.252, full}, limit: LimitTimeWait, limitAt: 0.937, level: Unknown, doubt: "skipped TIME_WAIT",
			also: func(_ *pool.Report, _ *pool.Destination, t *TimeWaitSockets) {
				*t = TimeWaitSockets{Sockets: 6100, Limit: 6200, Overflows: 5000}
			},
		},
		{
			name: "no ports", load: steady(0, 0), change: Change{Load: 2}, used: Interval{full, full}, limit: LimitPorts, limitAt: 0, level: Exhausted,
			also: func(r *pool.Report, _ *pool.Destination, _ *TimeWaitSockets) { r.CapacityPorts = 0 },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, d := tt.load.report()
			var sockets TimeWaitSockets
			if tt.also != nil {
				tt.also(r, d, &sockets)
			}
			p := WhatIf(r, d, sockets, tt.load.failing, tt.change)
			near := func(got, want float64) bool {
				return got == want || math.Abs(got-want) < 0.001 || math.Abs(got/want-1) < 0.005
			}
			if !near(p.Utilization.Least, tt.used.Least) || !near(p.Utilization.Most, tt.used.Most) || p.Limit != tt.limit || !near(p.LimitAt, tt.limitAt) || p.Level != tt.level {
				t.Errorf("got %+v, want utilization %v, %s at x %v, %v", p, tt.used, tt.limit, tt.limitAt, tt.level)
			}
			if !strings.Contains(strings.Join(p.Sentences, " "), tt.say) || !strings.Contains(strings.Join(p.Doubts, " "), tt.doubt) || tt.doubt == "" && len(p.Doubts) > 0 {
				t.Errorf("got %q and %q, want %q and %q", p.Sentences, p.Doubts, tt.say, tt.doubt)
			}
		})
	}
}

// varied returns a case that is changed.
func varied(c adviceCase, change func(c *adviceCase)) adviceCase {
	change(&c)
	return c
}

// TestWhatIfCures checks that the cures, which TestCures of package scan runs on the kernel, and the changes like them have the same
// ceilings.
func TestWhatIfCures(t *testing.T) {
	compared := 0
	for _, c := range adviceCases {
		r, d := c.report()
		a := TCP(r, d, c.failing)
		if a == nil || newTCPPool(r, d, nil).bindFirst() {
			continue
		}
		for _, cure := range a.Cures {
			var change Change
			requests := 1.
			switch cure.Title {
			case "Keep connections alive":
				change.KeepAlive, requests = cure.N, float64(cure.N)
			case "Reuse ports in TIME_WAIT":
				change.Reuse = true
			case "More source addresses", "More destination addresses or ports":
				change.Addresses = cure.N
			default:
				continue
			}
			compared++
			if got, want := WhatIf(r, d, TimeWaitSockets{}, c.failing, change).Ceiling.Most, cure.Then.Ceiling/requests; math.Abs(got/want-1) > 1e-9 {
				t.Errorf("%s: %q has the ceiling %v, the change %v", c.name, cure.Title, want, got)
			}
		}
	}
	if compared < 20 {
		t.Errorf("%d cures compared", compared)
	}
}

package advice

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/pool"
)

// TestFullTimeWait checks that the limit is raised only where the ports suffice for the connections that then no longer skip
// TIME_WAIT.
func TestFullTimeWait(t *testing.T) {
	const (
		keep   = "Keep connections alive: 1000, then 1000. "
		second = "Let the other side close first: 1000, then 1000. "
		raise  = "Raise the limit of TIME_WAIT: 1000, then "
	)
	full := func(recent uint64, window time.Duration) TimeWaitSockets {
		return TimeWaitSockets{Sockets: 990, Limit: 1000, Overflows: 1520, Recent: recent, Window: window}
	}
	destination := func(closes, ceiling float64) []pool.Destination {
		return []pool.Destination{{CloseRate: closes, Ceiling: ceiling, Hold: 62.048}}
	}
	for _, tt := range []struct {
		name         string
		sockets      TimeWaitSockets
		destinations []pool.Destination
		bound        int
		want         []string // the cures
		diagnosis    string   // its end
	}{
		{"calm", TimeWaitSockets{Sockets: 1000, Limit: 1000}, nil, 0, nil, ""},
		{"not lately", full(0, 10*time.Second), nil, 0, nil, ""},
		{"the first scan", full(0, 0), nil, 0, []string{keep, second}, "1520 did so far. They hold no port, and the closes per second of destinations do not count them. But a late packet of an old connection can reach a new one. How many do so now is known at the next collection. Do not raise tcp_max_tw_buckets before."},
		{"few", full(100, 10*time.Second), nil, 0, []string{keep, second, raise + "4000. sysctl -w net.ipv4.tcp_max_tw_buckets=4000"}, "1520 did so far, now 10 per second. They hold no port, and the closes per second of destinations do not count them. But a late packet of an old connection can reach a new one."},
		{"many", full(3639, 10*time.Second), nil, 0, []string{keep, second, raise + "64000. sysctl -w net.ipv4.tcp_max_tw_buckets=64000"}, "a new one."},
		{"too many for one destination", full(3641, 10*time.Second), nil, 0, []string{keep, second}, "Do not raise tcp_max_tw_buckets alone: these connections then hold their ports for 62 s each. If most of them are to one destination, its ports may suffice for 455 per second only, and connects would then fail."},
		{"others have bound ports", full(100, 10*time.Second), nil, 27900, []string{keep, second}, "its ports may suffice for 5.4 per second only, and connects would then fail."},
		{"a busy destination", full(100, 10*time.Second), destination(355, 455), 0, []string{keep, second}, "its ports may suffice for 455 per second only, and connects would then fail."},
		{"a destination that is less busy", full(100, 10*time.Second), destination(353, 455), 0, []string{keep, second, raise + "4000. sysctl -w net.ipv4.tcp_max_tw_buckets=4000"}, "a new one."},
		{"open connections on all ports", full(100, 10*time.Second), destination(0, 0), 0, []string{keep, second}, "its ports may suffice for 0.0 per second only, and connects would then fail."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := pool.Report{Settings: usual, CapacityPorts: 28232, BoundPorts: tt.bound, Destinations: tt.destinations}
			a := FullTimeWait(&r, tt.sockets)
			if a == nil {
				if tt.want != nil {
					t.Fatal("no advice")
				}
				return
			}
			got := lines(t, a)
			if diff := cmp.Diff(tt.want, got[1:]); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if n := len(got[0]) - len(tt.diagnosis); n < 0 || got[0][n:] != tt.diagnosis {
				t.Errorf("%q does not end with %q", got[0], tt.diagnosis)
			}
		})
	}
	r := pool.Report{Settings: usual, CapacityPorts: 28232}
	for _, c := range FullTimeWait(&r, full(100, 10*time.Second)).Cures {
		switch c.Title {
		case "Keep connections alive":
			if c.N != 4 { // 16 closes per second fit into the limit, 26 come
				t.Errorf("%+v", c)
			}
		case "Raise the limit of TIME_WAIT":
			if c.Undo != "sysctl -w net.ipv4.tcp_max_tw_buckets=1000" {
				t.Errorf("%+v", c)
			}
		}
	}
}

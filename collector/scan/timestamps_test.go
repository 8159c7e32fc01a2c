//go:build linux

package scan

import (
	"strconv"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// TestTimestamps has peers with and without TCP timestamps, and tcp_tw_reuse. Of the ports in
// TIME_WAIT, the kernel grants again those of connections with timestamps only.
func TestTimestamps(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40019")
	begin := setReuse(t, 1)
	with, without := clientTo("198.51.100.1", "198.51.100.7:80"), clientTo("198.51.100.1", "198.51.100.8:80")
	loopback := clientTo("127.0.0.1", "127.0.0.1:80")
	cfg := testConfig()
	cfg.Limits.MinPorts = 1
	s := newScanner(t, cfg)
	open := func(c oracleClient, timestamps string, timeWait int) {
		t.Helper()
		netnstest.Sysctl(t, "ipv4/tcp_timestamps", timestamps)
		listener := netnstest.Listen(t, c.Destination.String(), false)
		client, server := netnstest.Pair(t, c.Client, listener)
		t.Cleanup(func() { netnstest.Hangup(client); netnstest.Hangup(server) })
		netnstest.TimeWait(t, c.Client, listener, timeWait)
		netnstest.Sysctl(t, "ipv4/tcp_timestamps", "1")
	}
	open(with, "1", 12)
	open(without, "0", 12)
	open(loopback, "1", 12)
	begin()

	r := selfReport(t, s)
	for _, tt := range []struct {
		name       string
		client     oracleClient
		timestamps pool.Fact
		reusable   int
	}{
		{"with", with, pool.Yes, 12},
		{"without", without, pool.No, 0},
		{"loopback", loopback, pool.Unknown, 12},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, d := range r.Destinations {
				if d.Source == tt.client.source && d.Address == tt.client.Destination {
					if d.Timestamps != tt.timestamps || d.Reusable != tt.reusable || d.Held != 13 {
						t.Errorf("timestamps %v, %d of %d ports reusable, want %v, %d of 13", d.Timestamps, d.Reusable, d.Held, tt.timestamps, tt.reusable)
					}
					return
				}
			}
			t.Error("not reported")
		})
	}
	for _, c := range []oracleClient{with, without, loopback} {
		if got, err := c.Fill(t, 100); got != freeTo(r, c.source, c.Destination) {
			t.Errorf("%v: %d ports granted, then %v, want %d", c.Destination, got, err, freeTo(r, c.source, c.Destination))
		}
	}
}

// TestTimestampsRemembered keeps an answer while the destination has no open connection.
func TestTimestampsRemembered(t *testing.T) {
	for _, tt := range []struct {
		sysctl     string
		timestamps pool.Fact
		reusable   [2]int // while a connection is open, and then
	}{
		{"0", pool.No, [2]int{0, 0}},
		{"1", pool.Yes, [2]int{40, 41}},
	} {
		t.Run(tt.sysctl, func(t *testing.T) {
			netnstest.New(t)
			begin := setReuse(t, 1)
			netnstest.Sysctl(t, "ipv4/tcp_timestamps", tt.sysctl)
			c := clientTo("198.51.100.1", "198.51.100.8:80")
			listener := netnstest.Listen(t, c.Destination.String(), false)
			client, server := netnstest.Pair(t, c.Client, listener)
			netnstest.TimeWait(t, c.Client, listener, 40)
			begin()
			netnstest.Sysctl(t, "ipv4/tcp_timestamps", "1")

			s := newScanner(t, testConfig())
			want := func(timestamps pool.Fact, reusable int) {
				t.Helper()
				for _, d := range selfReport(t, s).Destinations {
					if d.Address != c.Destination || d.Timestamps != timestamps || d.Reusable != reusable {
						t.Errorf("got %+v, want timestamps %v, %d reusable ports", d, timestamps, reusable)
					}
				}
			}
			want(tt.timestamps, tt.reusable[0])
			netnstest.Hangup(client)
			netnstest.Hangup(server)
			begin()
			want(tt.timestamps, tt.reusable[1])

			s = newScanner(t, testConfig()) // knows nothing: then the sysctl decides
			want(pool.Unknown, 41)
		})
	}
}

// TestTimestampsDiffer has a peer of which some connections use timestamps and some do not, as with unlike servers behind one address.
func TestTimestampsDiffer(t *testing.T) {
	const without, with = 0, 1
	for name, tt := range map[string]struct {
		open, timeWait [2]int // without timestamps, and with
	}{
		"most without":          {open: [2]int{5, 2}, timeWait: [2]int{98, 1}},
		"most with":             {open: [2]int{2, 5}, timeWait: [2]int{1, 98}},
		"open ones are unlike":  {open: [2]int{1, 7}, timeWait: [2]int{90, 10}},
		"as many":               {open: [2]int{7, 7}, timeWait: [2]int{40, 40}},
		"all open ones without": {open: [2]int{9, 0}, timeWait: [2]int{50, 0}},
		"all open ones with":    {open: [2]int{0, 9}, timeWait: [2]int{0, 50}},
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40199")
			s := newScanner(t, testConfig())
			selfReport(t, s)
			time.Sleep(pastTick)
			begin := setReuse(t, 1)
			c := clientTo("198.51.100.1", "198.51.100.7:80")
			listener := netnstest.Listen(t, c.Destination.String(), false)
			open := func(timestamps, n int) (pairs []pair) {
				netnstest.Sysctl(t, "ipv4/tcp_timestamps", strconv.Itoa(timestamps))
				for range n {
					client, server := netnstest.Pair(t, c.Client, listener)
					pairs = append(pairs, pair{client, server})
				}
				return pairs
			}
			var opened []pair
			for timestamps := range tt.open {
				opened = append(opened, open(timestamps, tt.open[timestamps])...)
				netnstest.TimeWait(t, c.Client, listener, tt.timeWait[timestamps])
			}
			netnstest.Sysctl(t, "ipv4/tcp_timestamps", "1")
			begin()
			held := tt.open[without] + tt.open[with] + tt.timeWait[without]
			differ := tt.open[without] > 0 && tt.open[with] > 0
			check := func(held int) {
				t.Helper()
				d, _ := destinationOf(selfReport(t, s), c.source, c.Destination)
				truth := float64(held) / 200
				if truth < d.Utilization || truth > d.PossibleUtilization || !differ && d.Utilization != d.PossibleUtilization ||
					differ != (d.Timestamps == pool.Unknown) || differ != (d.TimestampsShare > 0) {
					t.Errorf("utilization %v, possibly %v, want %v; timestamps %v, share %v", d.Utilization, d.PossibleUtilization, truth, d.Timestamps, d.TimestampsShare)
				}
				if hold := tt.open[without] > 0; hold != (d.Hold > 2) || d.Hold > 63 { // with timestamps a millisecond, or a second before Linux 6.14
					t.Errorf("a port is held for %v s", d.Hold)
				}
			}
			for range 20 { // a scan that asks only 8 may miss some
				check(held)
			}
			for _, p := range opened { // what they said stays known
				netnstest.Hangup(p.client)
				netnstest.Hangup(p.server)
			}
			begin()
			d, _ := destinationOf(selfReport(t, s), c.source, c.Destination)
			granted, err := c.Fill(t, 201)
			if truth := float64(200-granted) / 200; truth < d.Utilization || truth > d.PossibleUtilization || !differ && d.Utilization != d.PossibleUtilization {
				t.Errorf("utilization %v, possibly %v; connect() got %d of 200 ports, then %v", d.Utilization, d.PossibleUtilization, granted, err)
			}
		})
	}
}

// TestTimestampsForAdvice asks peers whether tcp_tw_reuse would help. It is advice for destinations in danger only.
func TestTimestampsForAdvice(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40019")
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "0")
	tests := []struct {
		client     oracleClient
		timestamps string
		timeWait   int
		want       pool.Fact
		offerReuse bool
	}{
		{clientTo("198.51.100.1", "198.51.100.7:80"), "1", 14, pool.Yes, true},
		{clientTo("198.51.100.1", "198.51.100.8:80"), "0", 14, pool.No, false},
		{clientTo("198.51.100.1", "198.51.100.9:80"), "1", 0, pool.Yes, false},
	}
	for _, tt := range tests {
		netnstest.Sysctl(t, "ipv4/tcp_timestamps", tt.timestamps)
		listener := netnstest.Listen(t, tt.client.Destination.String(), false)
		client, server := netnstest.Pair(t, tt.client.Client, listener)
		t.Cleanup(func() { netnstest.Hangup(client); netnstest.Hangup(server) })
		netnstest.TimeWait(t, tt.client.Client, listener, tt.timeWait)
	}
	netnstest.Sysctl(t, "ipv4/tcp_timestamps", "1")

	s := newScanner(t, testConfig())
	for scan := range 2 {
		r := selfReport(t, s)
		if len(r.Destinations) != len(tests) {
			t.Fatalf("scan %d: got %+v, want %d destinations", scan, r.Destinations, len(tests))
		}
		for _, tt := range tests {
			for _, d := range r.Destinations {
				if d.Address != tt.client.Destination || d.Source != tt.client.source {
					continue
				}
				offered := false
				if a := advice.TCP(&r, &d, false); a != nil {
					for _, c := range a.Cures {
						offered = offered || c.Title == "Reuse ports in TIME_WAIT"
					}
				}
				if d.Timestamps != tt.want || d.Reusable != 0 || offered != tt.offerReuse {
					t.Errorf("scan %d, %v: timestamps %v, %d ports reusable, tcp_tw_reuse in the advice: %v", scan, d.Address, d.Timestamps, d.Reusable, offered)
				}
			}
		}
	}
}

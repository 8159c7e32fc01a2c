//go:build linux

package scan

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/connectfail"
	"ephemeral_port_exporter/collector/netns/netnstest"
)

// fakeFailures are the counts of a fake Probe.
type fakeFailures struct {
	counts []connectfail.Count
	rest   uint64
	err    error
}

func (f *fakeFailures) read() ([]connectfail.Count, uint64, error) { return f.counts, f.rest, f.err }

// set sets the failures of destinations 10.0.0.1, 10.0.0.2, …
func (f *fakeFailures) set(rest uint64, failures ...uint64) {
	f.counts, f.rest = nil, rest
	for i, n := range failures {
		if n > 0 {
			f.counts = append(f.counts, connectfail.Count{
				Source:      netip.MustParseAddr("198.51.100.1"),
				Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 443),
				Failures:    n,
			})
		}
	}
}

// listed returns the pools of 10.0.0.N in the form "N:failures".
func listed(f ConnectFailures) string {
	var pools []string
	for _, p := range f.Pools {
		ip := p.Destination.Addr().As4()
		pools = append(pools, fmt.Sprintf("%d:%d", ip[3], p.Failures))
	}
	return strings.Join(pools, " ")
}

// TestConnectFailures checks that the number of pools is limited, that every failure counts, and
// that a listed pool stays listed.
func TestConnectFailures(t *testing.T) {
	type scan struct {
		rest     uint64
		failures []uint64 // of 10.0.0.1, 10.0.0.2, …
		listed   string   // in order
		others   uint64
	}
	tests := []struct {
		name  string
		most  int
		scans []scan
	}{
		{"none", 2, []scan{{0, nil, "", 0}}},
		{"all", 2, []scan{{0, []uint64{5, 3}, "1:5 2:3", 0}}},
		{"the largest", 2, []scan{{4, []uint64{5, 3, 9}, "1:5 3:9", 7}}},
		{"equal", 2, []scan{{0, []uint64{3, 3, 3}, "1:3 2:3", 3}}},
		{"limit 0", 0, []scan{{4, []uint64{5, 3}, "", 12}}},
		{"below the limit", 2, []scan{
			{0, []uint64{0, 1}, "2:1", 0},
			{0, []uint64{7, 1, 6}, "1:7 2:1", 6},
		}},
		{"overtaken", 2, []scan{
			{0, []uint64{5, 3, 1}, "1:5 2:3", 1},
			{1, []uint64{5, 3, 100}, "1:5 2:3", 101},
			{1, []uint64{6, 3, 100, 200}, "1:6 2:3", 301},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var f fakeFailures
			c := newConnectFailures(f.read, tt.most)
			for i, s := range tt.scans {
				f.set(s.rest, s.failures...)
				if got := c.collect(); listed(got) != s.listed || got.Unattributed != s.others {
					t.Errorf("scan %d: got %s, unattributed %d, want %s, %d", i, listed(got), got.Unattributed, s.listed, s.others)
				}
			}
		})
	}
}

// TestConnectFailuresSources checks that sources are separate pools, in order.
func TestConnectFailuresSources(t *testing.T) {
	var f fakeFailures
	f.set(0, 5)
	other := f.counts[0]
	other.Source = netip.MustParseAddr("198.51.100.0")
	f.counts = append(f.counts, other)
	for most, want := range []string{"", "198.51.100.0", "198.51.100.1 198.51.100.0"} {
		got := newConnectFailures(f.read, most).collect()
		var sources []string
		for _, p := range got.Pools {
			sources = append(sources, p.Source.String())
		}
		if strings.Join(sources, " ") != want || got.Unattributed != uint64(10-5*most) {
			t.Errorf("at most %d pools: got %v, unattributed %d", most, sources, got.Unattributed)
		}
	}
}

// TestConnectFailuresUnread checks that an error gives no counts and is logged.
func TestConnectFailuresUnread(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig()
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	s := newScanner(t, cfg)
	f := fakeFailures{err: errors.New("out of order")}
	s.connectFailures = newConnectFailures(f.read, 2)
	got := s.Scan(t.Context()).ConnectFailures
	if got == nil || !errors.Is(got.Err, f.err) || got.Pools != nil || got.Unattributed != 0 {
		t.Errorf("got %+v", got)
	}
	if got := log.String(); !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "out of order") {
		t.Errorf("log: got %q", got)
	}
}

// failuresOf returns the failures of a client's pool.
func failuresOf(t *testing.T, probe *connectfail.Probe, c oracleClient) uint64 {
	t.Helper()
	counts, _, err := probe.Counts()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range counts {
		if n.Source == c.source && n.Destination == c.Destination {
			return n.Failures
		}
	}
	return 0
}

// TestOracleConnectFailures compares utilization with failures: below 1, no connect() fails; at 1,
// each connect() fails.
func TestOracleConnectFailures(t *testing.T) {
	netnstest.Tracefs(t)
	probe, err := connectfail.Attach()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { probe.Close() })

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
				setReuseDelay(t, time.Minute)
				netnstest.TimeWait(t, tt.c.Client, netnstest.Listen(t, tt.c.Destination.String(), false), 7)
				if tt.timeWait == "reusable" {
					time.Sleep(setReuseDelay(t, time.Millisecond) + 30*time.Millisecond)
				}
			}

			granted := 0
			want := failuresOf(t, probe, tt.c)
			for range 30 {
				r := collect(t)
				exhausted := utilizationOf(r, tt.c.source, tt.c.Destination) == 1 || r.CapacityPorts == 0
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
				if got := failuresOf(t, probe, tt.c); got != want {
					t.Fatalf("after %d ports, exhausted %v: counted %d failures, want %d", granted, exhausted, got, want)
				}
			}
			if granted != tt.granted {
				t.Errorf("%d ports were granted, want %d", granted, tt.granted)
			}
		})
	}
}

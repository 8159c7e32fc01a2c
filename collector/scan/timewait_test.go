//go:build linux

package scan

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// TestTimeWaitCheck warns once of a flag that the kernel contradicts.
func TestTimeWaitCheck(t *testing.T) {
	tests := []struct {
		name    string
		length  time.Duration
		from    time.Duration // to go, one socket for each second
		longest time.Duration
		scan    int // that warns, 0 for none
		want    string
	}{
		{"right", time.Minute, 0, time.Minute, 0, ""},
		{"a moment ago", time.Minute, 0, 59 * time.Second, 0, ""},
		{"too short", 30 * time.Second, time.Minute, time.Minute, 1, "too short"},
		{"the kernel's tick", time.Minute, 0, time.Minute + 10*time.Millisecond, 0, ""},
		{"too long", 2 * time.Minute, 0, time.Minute, 10, "too long"},
		{"a burst before each scan", time.Minute, 40 * time.Second, 40 * time.Second, 0, ""},
		{"closes that stopped", time.Minute, 10 * time.Second, 40 * time.Second, 0, ""},
		{"nothing in TIME_WAIT", 2 * time.Minute, time.Second, 0, 0, ""},
	}
	for _, tt := range tests {
		settings := pool.Settings{PortRange: pool.PortRange{Low: 1, High: 65535}, TimeWaitLength: tt.length}
		table := pool.NewTable(settings)
		for left := tt.from; left <= tt.longest; left += time.Second {
			last := min(left, tt.longest)
			table.Add(&pool.Socket{State: tcpstate.TimeWait, Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:80"), Expires: last})
		}
		if tt.longest > 0 {
			table.Add(&pool.Socket{State: tcpstate.TimeWait, Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:80"), Expires: tt.longest})
		}
		seen := table.Report(pool.Limits{}).TimeWait
		var c timeWaitCheck
		for scan := 1; scan <= 20; scan++ {
			got := c.observe(tt.length, seen)
			if (got != "") != (scan == tt.scan) || !strings.Contains(got, tt.want) && scan == tt.scan {
				t.Errorf("%s: scan %d: got %q", tt.name, scan, got)
			}
		}
	}
}

// TestTimeWaitKernel compares the flag with the real kernel.
func TestTimeWaitKernel(t *testing.T) {
	for length, want := range map[time.Duration]string{time.Minute: "", 30 * time.Second: "--time-wait.length is too short"} {
		t.Run(length.String(), func(t *testing.T) {
			netnstest.New(t)
			netnstest.TimeWait(t, clientTo("198.51.100.1", "198.51.100.7:80").Client, netnstest.Listen(t, "198.51.100.7:80", false), 3)
			var log bytes.Buffer
			cfg := testConfig()
			cfg.TimeWaitLength, cfg.Logger = length, slog.New(slog.NewTextHandler(&log, nil))
			s := newScanner(t, cfg)
			for range 3 {
				s.Scan(t.Context())
			}
			lines := 0
			if want != "" {
				lines = 1
			}
			if got := log.String(); strings.Count(got, "time-wait.length is") != lines || !strings.Contains(got, want) {
				t.Errorf("log: got %q, want %q once", got, want)
			}
		})
	}
}

// TestOverflowCounter has scans at certain times.
func TestOverflowCounter(t *testing.T) {
	var c overflowCounter
	start := time.Now()
	for _, tt := range []struct {
		at        time.Duration
		overflows uint64
		recent    uint64
		window    time.Duration
	}{
		{0, 100, 0, 0},
		{time.Second - 1, 105, 0, 0},
		{2 * time.Second, 110, 10, 2 * time.Second},
		{11 * time.Second, 120, 20, 11 * time.Second},
		{12 * time.Second, 121, 21, 12 * time.Second},
		{26 * time.Second, 121, 21, 26 * time.Second},
		{27 * time.Second, 121, 1, 16 * time.Second},
		{100 * time.Second, 121, 1, 89 * time.Second},
		{200 * time.Second, 121, 0, 174 * time.Second},
		{201 * time.Second, 7, 0, 0}, // another namespace
		{203 * time.Second, 9, 2, 2 * time.Second},
	} {
		recent, window := c.observe(overflowSample{start.Add(tt.at), tt.overflows})
		if recent != tt.recent || window != tt.window {
			t.Errorf("at %v: %d within %v, want %d within %v", tt.at, recent, window, tt.recent, tt.window)
		}
	}
}

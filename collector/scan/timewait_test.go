//go:build linux

package scan

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// TestTimeWaitCheck checks that a wrong flag is warned of once.
func TestTimeWaitCheck(t *testing.T) {
	tests := []struct {
		name    string
		length  time.Duration
		sockets int           // in each scan
		longest time.Duration // left in TIME_WAIT
		scan    int           // that warns, 0 for none
		want    string
	}{
		{"right", time.Minute, 1000, time.Minute, 0, ""},
		{"a moment ago", time.Minute, 1000, 59 * time.Second, 0, ""},
		{"too short", 30 * time.Second, 1, time.Minute, 1, "too short"},
		{"the kernel's tick", time.Minute, 1000, time.Minute + 10*time.Millisecond, 0, ""},
		{"too long", 2 * time.Minute, 100, time.Minute, 10, "too long"},
		{"too few to tell", 2 * time.Minute, 10, time.Minute, 0, ""},
		{"nothing in TIME_WAIT", 2 * time.Minute, 0, 0, 0, ""},
	}
	for _, tt := range tests {
		var c timeWaitCheck
		for scan := 1; scan <= 20; scan++ {
			got := c.observe(tt.length, pool.TimeWaitSeen{Sockets: tt.sockets, Longest: tt.longest})
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
			if got := log.String(); strings.Count(got, "\n") != lines || !strings.Contains(got, want) {
				t.Errorf("log: got %q, want %q once", got, want)
			}
		})
	}
}

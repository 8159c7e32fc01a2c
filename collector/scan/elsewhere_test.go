//go:build linux

package scan

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/procfs"
)

// TestElsewhere counts sockets of another namespace, unless others are in scope. Those of our own do not count.
func TestElsewhere(t *testing.T) {
	dir := t.TempDir()
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	netnstest.Mount(t, filepath.Join(dir, "pod"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "30000 30999")
		c.Hold(t, 150)
	})
	s := newScanner(t, testConfig())
	got := s.Scan(context.Background())
	if got.Elsewhere < 150 {
		t.Errorf("%d sockets elsewhere, want 150 at least", got.Elsewhere)
	}
	if !strings.Contains(got.Time.String(), " m=") {
		t.Errorf("%v has no monotonic clock, which package history goes by", got.Time)
	}
	if got := namedScanner(t, dir).Scan(context.Background()); got.Elsewhere != 0 {
		t.Errorf("%d sockets elsewhere, with other namespaces in scope", got.Elsewhere)
	}

	// The numbers of the host change at any time, those of a file do not.
	net := filepath.Join(dir, "thread-self/net")
	if err := os.MkdirAll(net, 0o755); err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]int{
		"TCP: inuse 4 orphan 0 tw 27 alloc 7 mem 1\nUDP: inuse 1 mem 0\n": 3,
		"TCP: inuse 9 orphan 0 tw 27 alloc 7 mem 1\nUDP: inuse 1 mem 0\n": 0, // not read at once
		"TCP: inuse 9 tw 27\nUDP: inuse 1 mem 0\n":                        0,
	} {
		if err := os.WriteFile(filepath.Join(net, "sockstat"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		sockstat, err := procfs.NewFS(dir).Sockstat()
		if got := countElsewhere(sockstat); err != nil || got != want {
			t.Errorf("%q: %d sockets elsewhere, want %d: %v", content, got, want, err)
		}
	}
}

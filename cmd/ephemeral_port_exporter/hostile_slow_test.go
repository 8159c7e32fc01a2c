//go:build linux

package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// slowProcfs returns a copy of /proc in which it takes some time to read a sysctl that each collection reads.
func slowProcfs(t *testing.T, takes time.Duration) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"", "sys", "sys/net", "sys/net/ipv4"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join("/proc", dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			switch name := filepath.Join(dir, entry.Name()); name {
			case "sys", "sys/net", "sys/net/ipv4", "sys/net/ipv4/tcp_fin_timeout":
			default:
				if err := os.Symlink(filepath.Join("/proc", name), filepath.Join(root, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	fifo := filepath.Join(root, "sys/net/ipv4/tcp_fin_timeout")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the one below may wait for a reader
		if fd, err := unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			unix.Close(fd)
		}
	})
	go func() {
		for t.Context().Err() == nil {
			w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
			if err != nil {
				return
			}
			time.Sleep(takes)
			_, _ = io.WriteString(w, "60\n")
			w.Close()
		}
	}()
	return root
}

// TestHostileSlow has clients that scrape all the time while collections take long. Each scrape of Prometheus has numbers,
// whether the others only wait with it, or have half of its time and too little for a collection.
func TestHostileSlow(t *testing.T) {
	const takes = 800 * time.Millisecond
	const address = "127.0.0.1:10234"
	e := start(t, command(t, "--collect.timeout=1.5s", "--web.listen-address="+address, "--path.procfs="+slowProcfs(t, takes)), "http://"+address)
	for _, tt := range []struct {
		name, timeout string
		clients       int
	}{
		{"waiting", "10", 100},
		{"little time", "1.5", 30}, // half of it for a collection
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var hostile sync.WaitGroup
			for range tt.clients {
				hostile.Go(func() {
					for ctx.Err() == nil {
						_, _, _ = scrapeWithin(ctx, e, tt.timeout)
					}
				})
			}
			var honest sync.WaitGroup
			for i := range 8 {
				honest.Go(func() {
					time.Sleep(time.Duration(i+1) * takes / 8)
					if status, body, err := scrapeWithin(ctx, e, "10"); err != nil || status != http.StatusOK || !strings.Contains(body, selfSucceeded) {
						t.Errorf("scrape %d: status %d, %v:\n%.200s", i, status, err, body)
					}
				})
			}
			honest.Wait()
			cancel()
			hostile.Wait()
		})
	}
}

// scrapeWithin makes a scrape with a scrape timeout.
func scrapeWithin(ctx context.Context, e *exporter, timeout string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url+"/metrics", nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", timeout)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

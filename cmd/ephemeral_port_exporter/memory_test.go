//go:build linux

package main

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// scrapesFlag makes TestMemoryOverScrapes a long test:
//
//	go test ./cmd/ephemeral_port_exporter -run TestMemoryOverScrapes -v -scrapes 10000
var scrapesFlag = flag.Int("scrapes", 100, "number of scrapes of TestMemoryOverScrapes in each mode")

// TestMemoryOverScrapes checks that resident memory, descriptors and goroutines of the exporter do not grow with
// the number of scrapes.
func TestMemoryOverScrapes(t *testing.T) {
	const warmUp, mostGrowth = 40, 8 << 10 // scrapes, KiB
	dir := t.TempDir()
	for i := range 20 {
		netnstest.Mount(t, filepath.Join(dir, fmt.Sprint("tenant", i)), func() {
			netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:443")}.Hold(t, i*50) // some are idle
		})
	}
	for i := range 20 {
		netnstest.Client{Destination: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), uint16(1000+i))}.Hold(t, 50)
	}
	for i, tt := range []struct {
		name string
		args []string
	}{
		{"self", nil},
		{"namespaces", []string{"--namespaces=all", "--namespaces.dir=" + dir}},
		{"exact", []string{"--exact", "--namespaces=all", "--namespaces.dir=" + dir}},
		{"connect failures", []string{"--trace"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			switch tt.name {
			case "exact":
				netnstest.HostRoot(t)
			case "connect failures":
				netnstest.LockTraces(t)
			}
			address := "127.0.0.1:" + strconv.Itoa(10290+i)
			// Not command: many scrapes take longer than that allows.
			cmd := exec.Command(netnstest.ProgramPath(name), append(tt.args, "--collect.timeout=30s", "--web.listen-address="+address)...)
			e := start(t, cmd, "http://"+address)
			scrapeOften(t, e, warmUp)
			before, fdsBefore, goroutinesBefore := e.usage(t)
			scrapeOften(t, e, *scrapesFlag)
			after, fdsAfter, goroutinesAfter := e.usage(t)
			t.Logf("%d scrapes: resident memory %d KiB, then %d KiB", *scrapesFlag, before, after)
			if after > before+mostGrowth {
				t.Errorf("resident memory grew from %d to %d KiB", before, after)
			}
			if fdsAfter > fdsBefore+10 || goroutinesAfter > goroutinesBefore+10 {
				t.Errorf("descriptors: %v, then %v; goroutines: %v, then %v", fdsBefore, fdsAfter, goroutinesBefore, goroutinesAfter)
			}
		})
	}
}

// scrapeOften makes n scrapes, four at once, each second client on new connections.
func scrapeOften(t *testing.T, e *exporter, n int) {
	t.Helper()
	const clients = 4
	var wait sync.WaitGroup
	for i := range clients {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: i%2 == 0}}
		wait.Go(func() {
			defer client.CloseIdleConnections()
			for range n / clients {
				resp, err := client.Get(e.url + "/metrics")
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !strings.Contains(string(body), selfSucceeded) {
					t.Errorf("%s, %v:\n%.500s", resp.Status, err, body)
					return
				}
			}
		})
	}
	wait.Wait()
}

// usage returns the resident memory of the exporter in KiB, and its open descriptors and goroutines.
func (e *exporter) usage(t *testing.T) (kib int, fds, goroutines float64) {
	t.Helper()
	_, metrics := e.get(t, "/metrics")
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(e.cmd.Process.Pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nVmRSS:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib, sample(t, metrics, "process_open_fds "), sample(t, metrics, "go_goroutines ")
}

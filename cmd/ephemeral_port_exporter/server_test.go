//go:build linux

package main

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/web"
)

// parseFlags returns the flags of a command line.
func parseFlags(t *testing.T, args ...string) *flags {
	t.Helper()
	app := kingpin.New(name, "")
	f := addFlags(app)
	if _, err := app.Parse(args); err != nil {
		t.Fatal(err)
	}
	return f
}

// serveTest serves the scans of an exporter with these arguments.
func serveTest(t *testing.T, args ...string) *httptest.Server {
	t.Helper()
	f, logger := parseFlags(t, args...), slog.New(slog.DiscardHandler)
	scanner, err := scan.New(f.scanConfig(logger))
	if err != nil {
		t.Fatal(err)
	}
	server := web.New(f.webConfig(prometheus.NewRegistry(), scanner, &history.History{}, logger))
	s := httptest.NewServer(server.Handler)
	t.Cleanup(s.Close)
	return s
}

// scrapeAtOnce makes n scrapes at the same time and sends the status of each answer as
// it comes. An answer of status 200 must have the text in it.
func scrapeAtOnce(t *testing.T, url string, n int, text string) <-chan int {
	t.Helper()
	statuses := make(chan int, n)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range n {
		go func() {
			resp, err := client.Get(url)
			if err != nil {
				t.Errorf("scrape: %v", err)
				statuses <- 0
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Errorf("scrape: %v", err)
			}
			if resp.StatusCode == http.StatusOK && !bytes.Contains(body, []byte(text)) {
				t.Errorf("scrape without %q:\n%.1000s", text, body)
			}
			statuses <- resp.StatusCode
		}()
	}
	return statuses
}

// checkStatuses receives n answers of one status.
func checkStatuses(t *testing.T, statuses <-chan int, n, want int) {
	t.Helper()
	for range n {
		if got := <-statuses; got != want {
			t.Errorf("status %d, want %d", got, want)
		}
	}
}

// get requests a page with headers, which are pairs of name and value.
func get(t *testing.T, url string, headers ...string) (status int, header http.Header, body string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return 0, nil, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// TestScrapeFailure checks that a scrape succeeds and reports a failed collection.
func TestScrapeFailure(t *testing.T) {
	s := serveTest(t, "--path.procfs="+t.TempDir(), "--web.disable-exporter-metrics")
	resp, err := http.Get(s.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	samples := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(body)), "\n"), func(line string) bool { return strings.HasPrefix(line, "#") })
	want := []string{`ephemeral_port_collect_success{netns="self"} 0`, `ephemeral_port_udp_collect_success{netns="self"} 0`}
	if resp.StatusCode != http.StatusOK || !slices.Equal(samples, want) {
		t.Errorf("got %s\n%s\nwant 200 and only\n%s", resp.Status, body, want)
	}
}

// TestScrapesKeepMemoryFlat makes 40 scrapes at once, again and again, of a namespace
// with thousands of TCP and UDP sockets.
func TestScrapesKeepMemoryFlat(t *testing.T) {
	for i := range 50 {
		netnstest.Client{
			Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 443),
		}.Hold(t, 100)
	}
	netnstest.UDP{Remote: netip.MustParseAddrPort("198.51.100.7:53")}.Hold(t, 3000)
	s := serveTest(t, "--collect.timeout=10s")
	rounds := func(n int) (heap uint64, goroutines int) {
		texts := []string{`ephemeral_port_collect_success{netns="self"} 1`, `ephemeral_port_udp_ports{family="ipv4",netns="self"} 3000`}
		for i := range n {
			statuses := scrapeAtOnce(t, s.URL+"/metrics", 40, texts[i%2])
			checkStatuses(t, statuses, 40, http.StatusOK)
		}
		s.CloseClientConnections()
		http.DefaultClient.CloseIdleConnections()
		for range 3 { // memory in a sync.Pool survives two
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, runtime.NumGoroutine()
	}
	before, goroutinesBefore := rounds(5)
	after, goroutinesAfter := rounds(25)
	if after > before+before/2 {
		t.Errorf("live heap grew from %d to %d bytes", before, after)
	}
	for deadline := time.Now().Add(10 * time.Second); goroutinesAfter > goroutinesBefore+5 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
		goroutinesAfter = runtime.NumGoroutine()
	}
	if goroutinesAfter > goroutinesBefore+5 {
		t.Errorf("goroutines grew from %d to %d", goroutinesBefore, goroutinesAfter)
	}
}

package web

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/status"
)

// newConfig returns the configuration of a server for scans, with the defaults of the flags.
func newConfig(scanHost func(context.Context) scan.Snapshot) Config {
	return Config{
		Scan: scanHost, Status: status.New(status.Info{MetricsPath: "/metrics"}), Registry: prometheus.NewRegistry(),
		MetricsPath: "/metrics", ExporterMetrics: true, MaxRequests: 40, CollectTimeout: 5 * time.Second,
		Logger: slog.New(slog.DiscardHandler),
	}
}

// newTestServer returns the server of a Config.
func newTestServer(t *testing.T, c Config) *http.Server {
	t.Helper()
	server, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// serveTest serves scans.
func serveTest(t *testing.T, scanHost func(context.Context) scan.Snapshot) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(newTestServer(t, newConfig(scanHost)).Handler)
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

// A slowScanner waits until it may continue, and counts its scans.
type slowScanner struct {
	goOn  chan struct{}
	scans atomic.Int32
}

func (s *slowScanner) scan(context.Context) scan.Snapshot {
	s.scans.Add(1)
	<-s.goOn
	return scan.Snapshot{Namespaces: []scan.Namespace{{Name: scan.Self, Outcome: scan.Collected}}}
}

// TestScrapesShareScan makes 60 scrapes during one scan. 40 of them get its result and the others
// get status 503. A probe does not wait.
func TestScrapesShareScan(t *testing.T) {
	slow := &slowScanner{goOn: make(chan struct{})}
	s := serveTest(t, slow.scan)
	statuses := scrapeAtOnce(t, s.URL+"/metrics", 60, `ephemeral_port_collect_success{netns="self"} 1`)
	checkStatuses(t, statuses, 20, http.StatusServiceUnavailable)

	for _, path := range []string{HealthyPath, ReadyPath} {
		resp, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}

	close(slow.goOn)
	checkStatuses(t, statuses, 40, http.StatusOK)
	// Scrapes that came in but had not joined the scan yet make other scans.
	if got := slow.scans.Load(); got > 10 {
		t.Errorf("%d scans for 40 scrapes", got)
	}
}

// A bigScanner returns megabytes, and counts its scans.
type bigScanner struct{ scans atomic.Int32 }

func (s *bigScanner) scan(context.Context) scan.Snapshot {
	report := pool.Report{CapacityPorts: int(s.scans.Add(1))}
	for i := range 2000 {
		report.Destinations = append(report.Destinations, pool.Destination{
			Source: netip.MustParseAddr("10.0.0.1"), Address: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(i)),
		})
	}
	return scan.Snapshot{Namespaces: []scan.Namespace{{Name: scan.Self, Outcome: scan.Collected, Report: report}}}
}

// TestScrapeStalled checks that a client that does not read its answer does not give old values to
// others.
func TestScrapeStalled(t *testing.T) {
	big := &bigScanner{}
	s := serveTest(t, big.scan)
	stalled, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Close()
	if _, err := io.WriteString(stalled, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := stalled.Read(make([]byte, 1)); err != nil { // the answer has begun
		t.Fatal(err)
	}
	for want := range 3 {
		text := fmt.Sprintf("ephemeral_port_capacity_ports{netns=\"self\"} %d\n", want+2)
		checkStatuses(t, scrapeAtOnce(t, s.URL+"/metrics", 1, text), 1, http.StatusOK)
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

// TestOpenMetrics checks that a client can get the OpenMetrics format.
func TestOpenMetrics(t *testing.T) {
	s := serveTest(t, (&bigScanner{}).scan)
	_, header, body := get(t, s.URL+"/metrics", "Accept", "application/openmetrics-text;version=1.0.0")
	if !strings.HasPrefix(header.Get("Content-Type"), "application/openmetrics-text;") || !strings.HasSuffix(body, "\n# EOF\n") ||
		!strings.Contains(body, "# TYPE ephemeral_port_time_wait_overflows counter\nephemeral_port_time_wait_overflows_total{") {
		t.Errorf("content type %q:\n%s", header.Get("Content-Type"), body)
	}
	if strings.Contains(body, "_created") { // see EphemeralPortsConnectFailing of rules.yml
		t.Errorf("series with created timestamps:\n%s", body)
	}
	_, header, _ = get(t, s.URL+"/metrics")
	if !strings.HasPrefix(header.Get("Content-Type"), "text/plain;") {
		t.Errorf("without asking: content type %q", header.Get("Content-Type"))
	}
}

// TestScrapesShareAnswer gives each of the scrapes that share a scan the format that it asked for.
func TestScrapesShareAnswer(t *testing.T) {
	slow := &slowScanner{goOn: make(chan struct{})}
	s := serveTest(t, slow.scan)
	accepts := map[string]string{"": "text/plain;", "application/openmetrics-text": "application/openmetrics-text;"}
	var scrapes sync.WaitGroup
	for range 5 {
		for accept, want := range accepts {
			scrapes.Go(func() {
				status, header, body := get(t, s.URL+"/metrics", "Accept", accept)
				if got := header.Get("Content-Type"); status != http.StatusOK || !strings.HasPrefix(got, want) || strings.Contains(body, "# EOF") != (accept != "") {
					t.Errorf("Accept %q: status %d, content type %q:\n%.200s", accept, status, got, body)
				}
			})
		}
	}
	for slow.scans.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	close(slow.goOn)
	scrapes.Wait()
}

// TestScrapeTimeout checks that an answer comes within the timeout of the scrape.
func TestScrapeTimeout(t *testing.T) {
	tests := []struct {
		header string
		want   time.Duration // of the scan
	}{
		{"", 20 * time.Second},
		{"nonsense", 20 * time.Second},
		{"0", 20 * time.Second},
		{"-1", 20 * time.Second},
		{"NaN", 20 * time.Second},
		{"1e300", 20 * time.Second},
		{"60", 20 * time.Second},
		{"15", 14 * time.Second},
		{"10", 9 * time.Second},
		{"3.5", 2500 * time.Millisecond},
		{"0.5", 250 * time.Millisecond},
	}
	for _, tt := range tests {
		var left time.Duration
		c := newConfig(func(ctx context.Context) scan.Snapshot {
			if deadline, ok := ctx.Deadline(); ok {
				left = time.Until(deadline)
			}
			return scan.Snapshot{Namespaces: []scan.Namespace{{Name: scan.Self, Outcome: scan.Collected}}}
		})
		c.CollectTimeout = 20 * time.Second
		s := httptest.NewServer(newTestServer(t, c).Handler)
		t.Cleanup(s.Close)
		get(t, s.URL+"/metrics", scrapeTimeoutHeader, tt.header)
		if left > tt.want || left < tt.want-max(tt.want/5, time.Second) {
			t.Errorf("%q: the scan has %v, want %v", tt.header, left, tt.want)
		}
	}
}

// TestScrapeTimeoutShared checks that a scrape with a short timeout and one with a long timeout share
// a scan.
func TestScrapeTimeoutShared(t *testing.T) {
	slow := &slowScanner{goOn: make(chan struct{})}
	s := serveTest(t, slow.scan)
	long := scrapeAtOnce(t, s.URL+"/metrics", 1, "ephemeral_port_collect_success")
	for slow.scans.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	status, _, body := get(t, s.URL+"/metrics", scrapeTimeoutHeader, "0.2")
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "scrape timeout") {
		t.Errorf("the impatient: status %d, %q", status, body)
	}
	close(slow.goOn)
	checkStatuses(t, long, 1, http.StatusOK)
}

// TestScrapeTimeoutIncomplete checks that a scrape with a long timeout does not get an incomplete
// scan, which a scrape with a short timeout has started.
func TestScrapeTimeoutIncomplete(t *testing.T) {
	var scans atomic.Int32
	began := make(chan struct{})
	s := serveTest(t, func(ctx context.Context) scan.Snapshot {
		n := scan.Namespace{Name: scan.Self, Outcome: scan.Collected}
		if scans.Add(1) == 1 {
			close(began)
			<-ctx.Done()
			n.Outcome, n.Err = scan.Deadline, ctx.Err()
		}
		return scan.Snapshot{Namespaces: []scan.Namespace{n}}
	})
	impatient := make(chan struct{})
	go func() {
		defer close(impatient)
		// What could be read by then, and not an error.
		status, _, body := get(t, s.URL+"/metrics", scrapeTimeoutHeader, "2")
		if status != http.StatusOK || !strings.Contains(body, `ephemeral_port_collect_success{netns="self"} 0`) {
			t.Errorf("the impatient: status %d:\n%.300s", status, body)
		}
	}()
	<-began
	if _, _, body := get(t, s.URL+"/metrics", scrapeTimeoutHeader, "10"); !strings.Contains(body, `ephemeral_port_collect_success{netns="self"} 1`) {
		t.Errorf("the patient got the result of the impatient:\n%.300s", body)
	}
	<-impatient
}

// TestServerTimeouts checks that timeouts are set, and that they are long enough for a collection.
func TestServerTimeouts(t *testing.T) {
	c := newConfig(nil)
	c.CollectTimeout = 20 * time.Second
	s := newTestServer(t, c)
	if s.ReadTimeout <= 0 || s.ReadHeaderTimeout <= 0 || s.IdleTimeout <= 0 || s.WriteTimeout <= 2*c.CollectTimeout {
		t.Errorf("timeouts: read %v, header %v, write %v, idle %v", s.ReadTimeout, s.ReadHeaderTimeout, s.WriteTimeout, s.IdleTimeout)
	}
}

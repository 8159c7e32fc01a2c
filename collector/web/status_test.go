package web

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// counted returns a scan whose capacity is the number of scans.
func counted(scans *atomic.Int32) func(context.Context) scan.Snapshot {
	return func(context.Context) scan.Snapshot {
		report := pool.Report{CapacityPorts: int(scans.Add(1)) + 5000}
		return scan.Snapshot{Time: time.Now(), Namespaces: []scan.Namespace{{Name: scan.Self, Outcome: scan.Collected, Report: report}}}
	}
}

// TestStatusFormats checks what each client gets, and that browsers are told to run nothing but the
// page.
func TestStatusFormats(t *testing.T) {
	s := serveTest(t, counted(new(atomic.Int32)))
	for _, tt := range []struct{ path, accept, contentType, text string }{
		{"/", "text/html,*/*;q=0.8", "text/html; charset=utf-8", "<h1>"},
		{"/", "*/*", "text/plain; charset=utf-8", "Settings of this host\n"},
		{"/", "application/json", "application/json; charset=utf-8", `"level": "calm"`},
		{"/?format=json&destination=10.0.0.2:443", "text/html", "application/json; charset=utf-8", "10.0.0.2:443 is not among the destinations"},
		{"/runbook", "*/*", "text/html; charset=utf-8", `<h2 id="ephemeralportshalfused">`},
	} {
		status, header, body := get(t, s.URL+tt.path, "Accept", tt.accept)
		if status != http.StatusOK || header.Get("Content-Type") != tt.contentType || !strings.Contains(body, tt.text) {
			t.Errorf("%s, Accept %s: status %d, %s:\n%.500s", tt.path, tt.accept, status, header.Get("Content-Type"), body)
		}
		policy := header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") || strings.Contains(policy, "unsafe") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %q", tt.path, policy)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
			"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		} {
			if got := header.Get(name); got != want {
				t.Errorf("%s: %s: %q, want %q", tt.path, name, got, want)
			}
		}
	}
}

// TestStatusRefresh checks that only the page that is not paused refreshes itself.
func TestStatusRefresh(t *testing.T) {
	s := serveTest(t, counted(new(atomic.Int32)))
	for query, want := range map[string]string{"?format=html": "10", "?format=html&pause": "", "?format=text": "", "?format=json": ""} {
		_, header, body := get(t, s.URL+"/"+query)
		if got := header.Get("Refresh"); got != want {
			t.Errorf("%s: refreshes after %q s, want %q", query, got, want)
		}
		if want == "10" && !strings.Contains(body, `<a class="button" href="/?pause">Pause</a>`) {
			t.Errorf("%s: no link to pause:\n%s", query, body)
		}
	}
}

// TestStatusBad checks that a bad request costs no scan and says what is valid.
func TestStatusBad(t *testing.T) {
	var scans atomic.Int32
	s := serveTest(t, counted(&scans))
	for query, want := range map[string]string{
		"destination=%3Cscript%3E": `destination="<script>" is not valid: it must be ADDRESS:PORT, such as 10.0.0.2:443 or [2001:db8::2]:443`,
		"format=xml":               `format="xml" is not valid: it must be html, text or json`,
	} {
		status, header, body := get(t, s.URL+"/?"+query)
		if status != http.StatusBadRequest || strings.TrimSpace(body) != want || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") || header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: status %d, %v: %q", query, status, header, body)
		}
	}
	if resp, err := http.Post(s.URL+"/", "text/plain", nil); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %v, %v", resp, err)
	}
	if got := scans.Load(); got != 0 {
		t.Errorf("%d scans", got)
	}
}

// TestStatusCost checks that the page uses a snapshot of the last second, also of a scrape, and that a
// scrape never does.
func TestStatusCost(t *testing.T) {
	var scans atomic.Int32
	old := atomic.Bool{}
	fresh := counted(&scans)
	s := serveTest(t, func(ctx context.Context) scan.Snapshot {
		snapshot := fresh(ctx)
		if old.Load() {
			snapshot.Time = snapshot.Time.Add(-maxPageAge)
		} else {
			snapshot.Time = snapshot.Time.Add(time.Hour) // however slow the test is
		}
		return snapshot
	})
	check := func(path, text string, want int32) {
		t.Helper()
		if _, _, body := get(t, s.URL+path); !strings.Contains(body, text) || scans.Load() != want {
			t.Errorf("%s after %d scans, want %d and %q:\n%s", path, scans.Load(), want, text, body)
		}
	}
	check("/metrics", "ephemeral_port_capacity_ports{netns=\"self\"} 5001\n", 1)
	check("/", "5001", 1)
	check("/?format=json", "5001", 1)
	check("/?destination=10.0.0.2:443", "5001", 1)
	check("/metrics", "ephemeral_port_capacity_ports{netns=\"self\"} 5002\n", 2)
	old.Store(true)
	check("/metrics", "5003", 3)
	check("/", "5004", 4)
	check("/", "5005", 5)
}

// TestStatusSharesScan makes 30 scrapes and 30 requests for the page during one scan. 40 of them get
// its result, and the others status 503.
func TestStatusSharesScan(t *testing.T) {
	slow := &slowScanner{goOn: make(chan struct{})}
	s := serveTest(t, slow.scan)
	scrapes := scrapeAtOnce(t, s.URL+"/metrics", 30, `ephemeral_port_collect_success{netns="self"} 1`)
	pages := scrapeAtOnce(t, s.URL+"/?format=json", 30, `"outcome": "collected"`)
	got := map[int]int{}
	for len(got) == 0 || got[http.StatusServiceUnavailable] < 20 {
		select {
		case status := <-scrapes:
			got[status]++
		case status := <-pages:
			got[status]++
		}
	}
	close(slow.goOn)
	for range 40 {
		select {
		case status := <-scrapes:
			got[status]++
		case status := <-pages:
			got[status]++
		}
	}
	if got[http.StatusOK] != 40 || got[http.StatusServiceUnavailable] != 20 {
		t.Errorf("answers by status: %v", got)
	}
	if scans := slow.scans.Load(); scans > 10 {
		t.Errorf("%d scans", scans)
	}
}

// TestStatusIncomplete checks that the page does not use a scan that was cut short for a scrape.
func TestStatusIncomplete(t *testing.T) {
	var scans atomic.Int32
	s := serveTest(t, func(context.Context) scan.Snapshot {
		n := scan.Namespace{Name: scan.Self, Outcome: scan.Collected}
		if scans.Add(1) == 1 {
			n.Outcome, n.Err = scan.Deadline, errors.New("cut short")
		}
		return scan.Snapshot{Time: time.Now().Add(time.Hour), Namespaces: []scan.Namespace{n}}
	})
	get(t, s.URL+"/metrics", scrapeTimeoutHeader, "1")
	if _, _, body := get(t, s.URL+"/"); strings.Contains(body, "cut short") {
		t.Errorf("the page uses it:\n%s", body)
	}
}

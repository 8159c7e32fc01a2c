package web

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestStatusFormats checks what each client gets, and that browsers are told to run nothing but the
// page.
func TestStatusFormats(t *testing.T) {
	h := newServer(t, newConfig(&scanner{})).Handler
	for _, tt := range []struct{ path, accept, contentType, text string }{
		{"/", "text/html,*/*;q=0.8", "text/html; charset=utf-8", "<h1>"},
		{"/", "*/*", "text/plain; charset=utf-8", "Settings of this host\n"},
		{"/", "application/json", "application/json; charset=utf-8", `"level": "calm"`},
		{"/?format=json&destination=10.0.0.2:443", "text/html", "application/json; charset=utf-8", "10.0.0.2:443 is not among the destinations"},
		{"/runbook", "*/*", "text/html; charset=utf-8", `<h2 id="ephemeralportshalfused">`},
		{"/docs/", "*/*", "text/html; charset=utf-8", `<a href="/docs/model">The model</a>`},
		{"/docs/model", "*/*", "text/html; charset=utf-8", `<h2 id="the-formulas">`},
	} {
		w := get(h, tt.path, "Accept", tt.accept)
		status, header, body := w.Code, w.Header(), w.Body.String()
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

// TestPort asks who has a port: that costs no scan. The kernel is asked once a second, however many ask.
func TestPort(t *testing.T) {
	s := &scanner{}
	h := newServer(t, newConfig(s)).Handler
	if w := get(h, "/?port=40003"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "Port 40003 has a listener, and 0 connections. It is in the range and not reserved") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	if w := get(h, "/?port=666"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "it could not be read who has port 666: i/o timeout") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	var wg sync.WaitGroup
	var refused atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			if w := get(h, fmt.Sprintf("/?port=%d&format=json", 1000+i)); w.Code == http.StatusServiceUnavailable && strings.Contains(w.Body.String(), "one is answered each second") {
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	if n := s.ports.Load(); n > 5 || n+refused.Load() != 10 || s.scans.Load() != 0 {
		t.Errorf("the kernel was asked %d times, %d requests were refused, %d scans", n, refused.Load(), s.scans.Load())
	}
}

// TestStatusRefresh checks that only the page that is not paused refreshes itself.
func TestStatusRefresh(t *testing.T) {
	h := newServer(t, newConfig(&scanner{})).Handler
	for query, want := range map[string]string{"?format=html": "10", "?format=html&pause": "", "?format=text": "", "?format=json": ""} {
		w := get(h, "/"+query)
		if got := w.Header().Get("Refresh"); got != want {
			t.Errorf("%s: refreshes after %q s, want %q", query, got, want)
		}
		if body := w.Body.String(); want == "10" && !strings.Contains(body, `<a class="button" href="/?pause">Pause</a>`) {
			t.Errorf("%s: no link to pause:\n%s", query, body)
		}
	}
}

// TestStatusBad checks that a bad request costs no scan and says what is valid.
func TestStatusBad(t *testing.T) {
	s := &scanner{}
	h := newServer(t, newConfig(s)).Handler
	for query, want := range map[string]string{
		"destination=%3Cscript%3E": `destination="<script>" is not valid: it must be ADDRESS or ADDRESS:PORT, such as 10.0.0.2, 10.0.0.2:443 or [2001:db8::2]:443`,
		"port=65536":               `port="65536" is not valid: it must be a port from 1 to 65535, without destination=`,
		"port=0":                   `port="0" is not valid: it must be a port from 1 to 65535, without destination=`,
		"format=xml":               `format="xml" is not valid: it must be html, text or json`,
	} {
		w := get(h, "/?"+query)
		status, header, body := w.Code, w.Header(), w.Body.String()
		if status != http.StatusBadRequest || strings.TrimSpace(body) != want || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") || header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: status %d, %v: %q", query, status, header, body)
		}
	}
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", nil)); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: status %d", w.Code)
	}
	if got := s.scans.Load(); got != 0 {
		t.Errorf("%d scans", got)
	}
}

package web

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestServerLog checks that faults do not have the message of what clients cause.
func TestServerLog(t *testing.T) {
	for text, want := range map[string]string{
		"http: TLS handshake error from 192.0.2.1:1234: read tcp 192.0.2.2:10149->192.0.2.1:1234: read: connection reset by peer": "",
		"http: TLS handshake error from 192.0.2.1:1234: EOF":                                                                      "",
		"http: TLS handshake error from 192.0.2.1:1234: tls: first record does not look like a TLS handshake":                     "level=WARN msg=\"HTTP connection failed\"",
		"http2: server: error reading preface from client 192.0.2.1:1234: bogus greeting":                                         "level=WARN msg=\"HTTP connection failed\"",
		"http: Accept error: accept tcp [::]:10149: accept4: too many open files; retrying in 5ms":                                "level=ERROR msg=\"HTTP connections cannot be accepted\"",
		"http: panic serving 192.0.2.1:1234: runtime error\ngoroutine 1 [running]:\nmain.main()\n":                                "level=ERROR msg=\"A request cannot be answered\"",
		"http2: panic serving 192.0.2.1:1234: runtime error\ngoroutine 1 [running]:\nmain.main()\n":                               "level=ERROR msg=\"A request cannot be answered\"",
	} {
		var out bytes.Buffer
		log.New(serverLog{slog.New(slog.NewTextHandler(&out, nil))}, "", 0).Print(text)
		if got := out.String(); !strings.Contains(got, want) || (got == "") != (want == "") || strings.Count(got, "\n") > 1 {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// TestUnavailableLog checks that the log has the cause of each status 503, if the client is there to get it.
func TestUnavailableLog(t *testing.T) {
	var out bytes.Buffer
	c := newConfig(&scanner{})
	c.Logger = slog.New(slog.NewTextHandler(&out, nil))
	h := newServer(t, c).Handler
	get(h, "/metrics", scrapeTimeoutHeader, "0.1")
	if got := out.String(); !strings.Contains(got, `level=WARN msg="A request was answered with status 503" client=192.0.2.1:1234 err="a scrape timeout of 100ms leaves 50ms for a collection, which needs 100ms at least: raise`) || strings.Count(got, "\n") != 1 {
		t.Errorf("got %s", got)
	}
	out.Reset()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil)
	r.Header.Set(scrapeTimeoutHeader, "0.1")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if out.Len() > 0 {
		t.Errorf("of a client that is gone: %s", &out)
	}
}

// TestBusy names the limit only if there is one.
func TestBusy(t *testing.T) {
	for n, want := range map[int]string{0: "raise scrape_timeout in Prometheus", 1: "--web.max-requests lets 1 be made at once; try again later"} {
		if got := newSlots(n).busy().Error(); got != "no time was left to make the answer: "+want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

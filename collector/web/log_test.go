package web

import (
	"bytes"
	"log"
	"log/slog"
	"strings"
	"testing"
)

// TestServerLog checks that faults do not have the message of what clients cause.
func TestServerLog(t *testing.T) {
	for text, want := range map[string]string{
		"http: TLS handshake error from 192.0.2.1:1234: EOF":                                                  "",
		"http: TLS handshake error from 192.0.2.1:1234: tls: first record does not look like a TLS handshake": "level=WARN msg=\"HTTP connection failed\"",
		"http2: server: error reading preface from client 192.0.2.1:1234: bogus greeting":                     "level=WARN msg=\"HTTP connection failed\"",
		"http: Accept error: accept tcp [::]:10149: accept4: too many open files; retrying in 5ms":            "level=ERROR msg=\"HTTP connections cannot be accepted\"",
		"http: panic serving 192.0.2.1:1234: runtime error\ngoroutine 1 [running]:\nmain.main()\n":            "level=ERROR msg=\"A request cannot be answered\"",
		"http2: panic serving 192.0.2.1:1234: runtime error\ngoroutine 1 [running]:\nmain.main()\n":           "level=ERROR msg=\"A request cannot be answered\"",
	} {
		var out bytes.Buffer
		log.New(serverLog{slog.New(slog.NewTextHandler(&out, nil))}, "", 0).Print(text)
		if got := out.String(); !strings.Contains(got, want) || (got == "") != (want == "") || strings.Count(got, "\n") > 1 {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

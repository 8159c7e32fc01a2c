package web

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/status"
)

// A scanner counts its scans. The first has a capacity of 5001 ports, the second of 5002.
type scanner struct {
	takes time.Duration // if it has the time
	deaf  bool          // scans take longer than they may

	scans  atomic.Int32
	ports  atomic.Int32
	budget atomic.Int64 // of the last scan, a time.Duration
}

func (s *scanner) scan(ctx context.Context) scan.Snapshot {
	read := scan.Result{Outcome: scan.Collected}
	self := scan.Namespace{
		Name: scan.Self, TimeWait: scan.TimeWait{Result: read},
		TCP: scan.TCP{Result: read, Report: pool.Report{CapacityPorts: 5000 + int(s.scans.Add(1))}},
	}
	if deadline, ok := ctx.Deadline(); ok {
		s.budget.Store(int64(time.Until(deadline)))
	}
	if s.takes > 0 {
		self.TCP.Duration = s.takes
		if s.deaf {
			ctx = context.Background()
		}
		select {
		case <-time.After(s.takes):
		case <-ctx.Done():
			self.TCP.Outcome, self.TCP.Err = scan.Deadline, os.ErrDeadlineExceeded
		}
	}
	return scan.Snapshot{Time: time.Now(), Namespaces: []scan.Namespace{self}}
}

// port says that a port has a listener. Port 666 cannot be read.
func (s *scanner) port(_ context.Context, number uint16) (scan.Port, error) {
	s.ports.Add(1)
	if number == 666 {
		return scan.Port{}, errors.New("i/o timeout")
	}
	holder := scan.PortHolder{Listens: true, Local: netip.AddrPortFrom(netip.IPv4Unspecified(), number)}
	return scan.Port{Time: time.Now(), Number: number, InRange: true, Holders: []scan.PortHolder{holder}}, nil
}

// newConfig returns the configuration of a server, with the defaults of the flags.
func newConfig(s *scanner) Config {
	return Config{
		Scan: s.scan, Port: s.port, Status: status.New(status.Info{MetricsPath: "/metrics"}), Registry: prometheus.NewRegistry(),
		MetricsPath: "/metrics", ExporterMetrics: true, MaxRequests: 2, CollectTimeout: 5 * time.Second,
		Logger: slog.New(slog.DiscardHandler),
	}
}

// newServer returns the server of a Config.
func newServer(t *testing.T, c Config) *http.Server {
	t.Helper()
	server := New(c)
	return server
}

// get requests a page with headers, which are pairs of name and value.
func get(h http.Handler, target string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// A reply is the answer to a request.
type reply struct {
	*httptest.ResponseRecorder
	after time.Duration
}

// begin requests a page in the background.
func begin(h http.Handler, target string, headers ...string) <-chan reply {
	replies := make(chan reply, 1)
	start := time.Now()
	go func() { replies <- reply{get(h, target, headers...), time.Since(start)} }()
	return replies
}

// check compares a reply with its status, its time, and a text in it.
func (r reply) check(t *testing.T, status int, after time.Duration, text string) {
	t.Helper()
	if r.Code != status || r.after != after || !strings.Contains(r.Body.String(), text) {
		t.Errorf("status %d after %v, want %d after %v and %q in\n%.500s", r.Code, r.after, status, after, text, r.Body)
	}
}

// A pipeListener accepts connections in memory, whose deadlines are those of a testing/synctest bubble.
type pipeListener struct {
	conns chan net.Conn
}

// serve serves connections in memory until the test ends.
func serve(t *testing.T, c Config) pipeListener {
	t.Helper()
	l := pipeListener{make(chan net.Conn)}
	server := newServer(t, c)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return l
}

// dial returns the client's end of a new connection.
func (l pipeListener) dial() net.Conn {
	client, server := net.Pipe()
	l.conns <- server
	return client
}

// Accept implements net.Listener.
func (l pipeListener) Accept() (net.Conn, error) {
	conn, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

// Close implements net.Listener.
func (l pipeListener) Close() error {
	close(l.conns)
	return nil
}

// Addr implements net.Listener.
func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "pipe"} }

// TestOpenMetrics checks that a client can get the OpenMetrics format.
func TestOpenMetrics(t *testing.T) {
	h := newServer(t, newConfig(&scanner{})).Handler
	w := get(h, "/metrics", "Accept", "application/openmetrics-text;version=1.0.0")
	if body := w.Body.String(); !strings.HasPrefix(w.Header().Get("Content-Type"), "application/openmetrics-text;") || !strings.HasSuffix(body, "\n# EOF\n") ||
		!strings.Contains(body, "# TYPE ephemeral_port_time_wait_overflows counter\nephemeral_port_time_wait_overflows_total{") ||
		strings.Contains(body, "_created") { // see EphemeralPortsConnectFailing of rules.yml
		t.Errorf("content type %q:\n%s", w.Header().Get("Content-Type"), body)
	}
	if got := get(h, "/metrics").Header().Get("Content-Type"); !strings.HasPrefix(got, "text/plain;") {
		t.Errorf("without asking: content type %q", got)
	}
}

// TestServerTimeouts checks that timeouts are set, and that they are long enough for two collections.
func TestServerTimeouts(t *testing.T) {
	c := newConfig(&scanner{})
	c.CollectTimeout = 20 * time.Second
	s := newServer(t, c)
	if s.ReadTimeout <= 0 || s.ReadHeaderTimeout <= 0 || s.IdleTimeout <= 0 || s.WriteTimeout <= 2*c.CollectTimeout {
		t.Errorf("timeouts: read %v, header %v, write %v, idle %v", s.ReadTimeout, s.ReadHeaderTimeout, s.WriteTimeout, s.IdleTimeout)
	}
}

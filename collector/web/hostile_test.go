package web

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// patience is how long a well-behaved client waits beside hostile ones. The exporter needs a
// fraction of a second, more on a busy machine; hostile clients could keep others out for 40 s.
const patience = 20 * time.Second

// startServer serves big answers, with everything that New sets, over TLS with HTTP/2 or
// over HTTP/1.
func startServer(t *testing.T, withHTTP2 bool) *httptest.Server {
	t.Helper()
	big := &bigScanner{}
	server := newTestServer(t, newConfig(big.scan))
	s := httptest.NewUnstartedServer(nil)
	s.Config, s.EnableHTTP2 = server, withHTTP2
	if withHTTP2 {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// checkScrape makes a scrape on a connection of its own.
func checkScrape(t *testing.T, s *httptest.Server) {
	t.Helper()
	client := s.Client()
	client.Timeout = patience
	client.CloseIdleConnections()
	resp, err := client.Get(s.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte("ephemeral_port_collect_success")) {
		t.Errorf("%s, %v, %d bytes", resp.Status, err, len(body))
	}
}

// TestStalledReadersHTTP1 has more clients that do not read their answers than may scrape at once,
// and than answers may be sent at once.
func TestStalledReadersHTTP1(t *testing.T) {
	s := startServer(t, false)
	var stalled []net.Conn
	for range maxSending + 30 {
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		stalled = append(stalled, conn)
	}
	answered := 0
	for _, conn := range stalled {
		if err := conn.SetReadDeadline(time.Now().Add(4 * patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			answered++ // its answer has begun
		}
	}
	if answered < maxSending {
		t.Errorf("%d of %d answers have begun", answered, len(stalled))
	}
	checkScrape(t, s)
}

// TestStalledReadersHTTP2 has one connection with many streams and no window for their answers.
func TestStalledReadersHTTP2(t *testing.T) {
	s := startServer(t, true)
	conn, err := tls.Dial("tcp", s.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	const streams = 60
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	var headers bytes.Buffer
	encoder := hpack.NewEncoder(&headers)
	for i := range uint32(streams) {
		headers.Reset()
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/metrics"}} {
			if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
				t.Fatal(err)
			}
		}
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: headers.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
	}
	// The first answer has begun.
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := frame.(*http2.HeadersFrame); ok {
			break
		}
	}
	checkScrape(t, s)
}

// TestConnectionsLimit closes the connection that has waited for longest, and none with a request.
func TestConnectionsLimit(t *testing.T) {
	var c connections
	c.limit(&http.Server{Handler: http.NotFoundHandler()})
	pipes := make([]net.Conn, maxConnections+2)
	for i := range pipes[:maxConnections] {
		pipes[i], _ = net.Pipe()
		conn := c.get(pipes[i])
		conn.since = time.Unix(int64(i), 0)
		if i == 0 {
			conn.requests = 1
		}
	}
	for i := maxConnections; i < len(pipes); i++ {
		pipes[i], _ = net.Pipe()
		c.get(pipes[i])
	}
	for i, pipe := range pipes {
		if _, open := c.open[pipe]; open != (i != 1 && i != 2) {
			t.Errorf("connection %d open: %v", i, open)
		}
	}
}

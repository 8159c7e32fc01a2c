//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// patience is how long a well-behaved client waits beside hostile ones. The exporter needs a
// fraction of a second, more on a busy machine; hostile clients could keep others out for 40 s.
const patience = 20 * time.Second

// maxDescriptors is above the number of connections that the exporter keeps open, and what it needs itself.
const maxDescriptors = 512 + 50

// hostile opens connections to the real exporter and sends something on each.
func hostile(t *testing.T, address string, n int, send func(conn net.Conn) error) {
	t.Helper()
	for range n {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(patience))
		_ = send(conn) // the exporter may close it
	}
}

// checkAlive makes a scrape of the real exporter, and bounds its memory and descriptors.
func checkAlive(t *testing.T, e *exporter) {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Get(e.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), selfSucceeded) {
		t.Errorf("scrape: %v, %s:\n%.500s", err, resp.Status, body)
	}
	checkMemory(t, e)
	// Connections are closed in the background.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(e.cmd.Process.Pid), "fd"))
		if err != nil {
			t.Fatal(err)
		}
		if len(fds) <= maxDescriptors {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors", len(fds))
		}
	}
	if log := e.log.String(); strings.Count(log, "\n") > 50 {
		t.Errorf("%d lines of log:\n%.1000s", strings.Count(log, "\n"), log)
	}
}

// checkMemory bounds the memory that the real exporter has had.
func checkMemory(t *testing.T, e *exporter) {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(e.cmd.Process.Pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nVmHWM:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	if kib > 80<<10 {
		t.Errorf("%d MiB of memory at most", kib>>10)
	}
}

// TestHostileClients do not keep others out, nor use up memory, before any password is asked for.
func TestHostileClients(t *testing.T) {
	tests := []struct {
		name string
		n    int
		send func(conn net.Conn) error
	}{
		{"idle", 4000, func(net.Conn) error { return nil }},
		{"slow headers", 1000, func(conn net.Conn) error {
			_, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: ")
			return err
		}},
		{"long headers", 400, func(conn net.Conn) error {
			_, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 900<<10))
			return err
		}},
		{"aborted answers", 300, func(conn net.Conn) error {
			if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				return err
			}
			_ = conn.(*net.TCPConn).SetLinger(0) // RST
			return conn.Close()
		}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			address := "127.0.0.1:" + strconv.Itoa(10220+i)
			e := start(t, command(t, "--web.listen-address="+address), "http://"+address)
			hostile(t, address, tt.n, tt.send)
			checkAlive(t, e)
		})
	}
}

// TestFewDescriptors has more connections than the exporter may have descriptors. Those that are idle, and those whose
// clients do not read their answers, leave enough for scrapes and collections.
func TestFewDescriptors(t *testing.T) {
	const descriptors, connections = 64, 200
	for i, tt := range []struct {
		name, flag, scheme, send string
	}{
		{"idle", "--log.level=info", "http://", ""},
		{"stalled", "--log.level=info", "http://", strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 100)},
		{"before TLS", tlsConfig(t), "https://", "\x16\x03\x01"}, // a ClientHello begins
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := "127.0.0.1:" + strconv.Itoa(10310+i)
			cmd := command(t, tt.flag, "--web.listen-address="+address)
			cmd.Args = append([]string{"prlimit", fmt.Sprintf("--nofile=%d:%d", descriptors, descriptors), cmd.Path}, cmd.Args[1:]...)
			cmd.Path = tool(t, "prlimit", "util-linux")
			e := start(t, cmd, tt.scheme+address)
			for range connections {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_ = conn.(*net.TCPConn).SetReadBuffer(4096)
				_ = conn.SetDeadline(time.Now().Add(patience))
				_, _ = io.WriteString(conn, tt.send)
			}
			checkAlive(t, e)
			if log := e.log.String(); strings.Contains(log, "too many open files") {
				t.Errorf("descriptors are used up:\n%.1000s", log)
			}
		})
	}
}

// TestRequestBodies sends requests with a body, of which a proxy before the exporter may take another part for the next
// request. Each is refused, and nothing behind it is read as a request.
func TestRequestBodies(t *testing.T) {
	const address = "127.0.0.1:10237"
	start(t, command(t, "--web.listen-address="+address), "http://"+address)
	const smuggled = "GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n"
	tests := []struct{ name, request, status string }{
		{"length and chunks", "GET /-/ready HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 Bad Request"},
		{"chunks and length", "GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", "400 Bad Request"},
		{"chunks", "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 Bad Request"},
		{"length", "GET /-/ready HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", "400 Bad Request"},
		{"body to come", "GET /-/ready HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n", "400 Bad Request"},
		{"two lengths", "GET /-/ready HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody", "400 Bad Request"},
		{"unknown encoding", "GET /-/ready HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity, chunked\r\n\r\n", "501 Not Implemented"},
		// The server ignores these encodings, a proxy may not.
		{"chunks of HTTP/1.0", "GET /-/ready HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n", "200 OK"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			if _, err := io.WriteString(conn, tt.request+smuggled); err != nil {
				t.Fatal(err)
			}
			_ = conn.(*net.TCPConn).CloseWrite()
			got, err := io.ReadAll(conn)
			if err != nil || strings.Count(string(got), "HTTP/1.") != 1 || !strings.Contains(string(got), " "+tt.status+"\r\n") || !strings.Contains(string(got), "\r\nConnection: close\r\n") {
				t.Errorf("%v, want only %s:\n%s", err, tt.status, got)
			}
		})
	}
}

// TestHostileHTTP2 does what HTTP/2 offers to hostile clients, on connections that never read.
func TestHostileHTTP2(t *testing.T) {
	var block bytes.Buffer // header fields of a scrape
	encoder := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/metrics"}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	scrape := func(f *http2.Framer, stream uint32, end bool) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: end})
	}
	tests := []struct {
		name        string
		connections int
		frames      int // on each
		send        func(f *http2.Framer, i uint32) error
	}{
		{"no window", 50, 60, func(f *http2.Framer, i uint32) error { return scrape(f, 2*i+1, true) }},
		{"rapid resets", 10, 2000, func(f *http2.Framer, i uint32) error {
			return errors.Join(scrape(f, 2*i+1, true), f.WriteRSTStream(2*i+1, http2.ErrCodeCancel))
		}},
		{"endless headers", 10, 2000, func(f *http2.Framer, i uint32) error {
			if i == 0 {
				return scrape(f, 1, false)
			}
			return f.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 1000)) // :method GET, RFC 7541
		}},
		{"pings", 10, 5000, func(f *http2.Framer, _ uint32) error { return f.WritePing(false, [8]byte{}) }},
		{"settings", 10, 5000, func(f *http2.Framer, _ uint32) error { return f.WriteSettings() }},
		{"nonsense", 200, 1, func(f *http2.Framer, _ uint32) error { return f.WriteRawFrame(http2.FrameData, 0, 1, nil) }},
	}
	const address = "127.0.0.1:10238"
	e := start(t, command(t, tlsConfig(t), "--web.listen-address="+address), "https://"+address)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range tt.connections {
				conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				_ = conn.SetDeadline(time.Now().Add(patience))
				w := bufio.NewWriter(conn)
				framer := http2.NewFramer(w, nil)
				if _, err := io.WriteString(w, http2.ClientPreface); err != nil {
					t.Fatal(err)
				}
				err = framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
				for i := uint32(0); err == nil && i < uint32(tt.frames); i++ {
					err = tt.send(framer, i)
				}
				_ = w.Flush() // the exporter may close it
			}
			checkAlive(t, e)
		})
	}
}

//go:build linux

package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// from returns a client with an address of its own. Each of its requests has a connection of its own.
func from(address string) *http.Client {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	return &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialer.DialContext}}
}

// TestHostilePasswords has a client that floods the exporter with wrong passwords, each of which takes some 50 ms to check. It
// waits for itself: a scrape from another address has its turn, as has a password that was right before, and connections that the client gives up cost nothing.
func TestHostilePasswords(t *testing.T) {
	config := filepath.Join(t.TempDir(), "web.yml")
	const hash = "$2a$04$JxYPWr0djqEs5o6UGuZP3OggPDos30.vkpvW2mbiMc3wreLmtsWmK" // bcrypt of "secret"
	if err := os.WriteFile(config, []byte("basic_auth_users:\n  prometheus: "+hash+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const address = "127.0.0.1:10243"
	e := start(t, command(t, "--web.listen-address="+address, "--web.config.file="+config), "http://"+address)
	wrong := func(path string, n int) string {
		return "GET " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + base64.StdEncoding.EncodeToString(fmt.Append(nil, "nobody:", n)) + "\r\n\r\n"
	}
	scrape := func(client *http.Client) string {
		t.Helper()
		resp, err := client.Get("http://prometheus:secret@" + address + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), selfSucceeded) {
			t.Fatalf("%s, %v:\n%.200s", resp.Status, err, body)
		}
		return string(body)
	}

	// Passwords that wait for their check.
	const waiting = 300
	var refused atomic.Int32
	var reading sync.WaitGroup
	ctx, giveUp := context.WithCancel(t.Context())
	for i := range waiting {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		context.AfterFunc(ctx, func() { conn.Close() })
		if _, err := io.WriteString(conn, wrong("/metrics", i)); err != nil {
			t.Fatal(err)
		}
		reading.Go(func() {
			if n, _ := conn.Read(make([]byte, 1)); n > 0 {
				refused.Add(1)
			}
		})
	}
	for _, source := range []string{"127.0.0.9", "127.0.0.1"} {
		before := refused.Load()
		scrape(from(source))
		if n := refused.Load() - before; n > waiting/4 {
			t.Errorf("from %s: %d wrong passwords are checked before the scrape is answered", source, n)
		}
	}
	giveUp()
	reading.Wait()

	// Connections that do not: closed at once, with a request behind the first, or with a body that never comes.
	const closed = 1000
	for i := range closed {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		request := wrong("/metrics", waiting+i)
		switch i % 3 {
		case 1:
			request += request
		case 2:
			request = strings.Replace(request, "Host:", "Content-Length: 5\r\nHost:", 1)
		}
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	// Of the closed ones with a request behind the first, those that the exporter does not see closed wait on, as open connections do.
	if n := sample(t, scrape(from("127.0.0.1")), "go_goroutines "); n > maxDescriptors+50 {
		t.Errorf("%v goroutines", n)
	}
	checkMemory(t, e)
}

// TestHostileConnections has a client that opens more connections than the exporter keeps. Another client, which has
// opened one before and sends its request later, is answered.
func TestHostileConnections(t *testing.T) {
	const address = "127.0.0.1:10244"
	start(t, command(t, "--web.listen-address="+address), "http://"+address)
	dial := func(source net.IP) net.Conn {
		t.Helper()
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: source}}).Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(patience))
		return conn
	}
	honest, first := dial(net.IPv4(127, 0, 0, 9)), dial(net.IPv4(127, 0, 0, 1))
	for range maxDescriptors {
		dial(net.IPv4(127, 0, 0, 1))
	}
	if _, err := first.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) { // until one is closed
		t.Fatal(err)
	}
	if _, err := io.WriteString(honest, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(honest)
	if err != nil || !strings.Contains(string(got), selfSucceeded) {
		t.Errorf("%v:\n%.200s", err, got)
	}
}

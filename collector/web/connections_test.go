package web

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// closed reports whether the server has closed a connection on which it has nothing to send.
func closed(conn net.Conn) bool {
	synctest.Wait()
	_ = conn.SetReadDeadline(time.Now()) // an error if it is closed
	_, err := conn.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// TestConnectionsLimit closes the connection that has been without a request for longest, and none with a
// request.
func TestConnectionsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := serve(t, newConfig(&scanner{takes: 4 * time.Second}))
		var conns []net.Conn
		dial := func() {
			conn := l.dial()
			t.Cleanup(func() { conn.Close() })
			conns = append(conns, conn)
			time.Sleep(time.Millisecond)
		}
		dial()
		request(t, conns[0])
		for range maxConnections - 1 {
			dial()
		}
		if _, err := conns[1].Write([]byte("GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := conns[1].Read(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		for i := range conns {
			if closed(conns[i]) {
				t.Fatalf("connection %d is closed", i)
			}
		}
		dial()
		dial()
		for i, conn := range conns {
			if got := closed(conn); got != (i == 2 || i == 3) {
				t.Errorf("connection %d closed: %v", i, got)
			}
		}

		// One that ends makes place.
		conns[4].Close()
		synctest.Wait()
		dial()
		if closed(conns[5]) {
			t.Error("a connection is closed although there is place")
		}
		time.Sleep(5 * time.Second) // until the scan ends
	})
}

// busy serves scans that take some time, with as many requests as connections may be open, and one further connection.
func busy(t *testing.T, takes time.Duration) (server *http.Server, late net.Conn) {
	t.Helper()
	c := newConfig(&scanner{takes: takes, deaf: true})
	c.MaxRequests = 0
	server = newServer(t, c)
	l := pipeListener{make(chan net.Conn)}
	go func() { _ = server.Serve(l) }()
	dial := func() net.Conn {
		conn := l.dial()
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	for range maxConnections {
		conn := dial()
		request(t, conn)
		go func() { _, _ = io.Copy(io.Discard, conn) }()
	}
	return server, dial()
}

// TestConnectionsBusy serves a further connection when another one has its answer.
func TestConnectionsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		server, late := busy(t, 3*time.Second)
		defer server.Close()
		if _, err := late.Write([]byte("GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		if n, err := late.Read(make([]byte, 4096)); n == 0 || time.Since(start) != 3*time.Second {
			t.Errorf("answer after %v: %v", time.Since(start), err)
		}
	})
}

// TestConnectionsBusyShutdown shuts the server down while a connection waits for place.
func TestConnectionsBusyShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, _ := busy(t, time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("ended after %v: %v", time.Since(start), err)
		}
		server.Close()
		time.Sleep(time.Minute)
	})
}

// TestConnectionLimit leaves descriptors for other things.
func TestConnectionLimit(t *testing.T) {
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old) })
	for descriptors, want := range map[uint64]int{16: 4, 64: 24, 256: 216, 552: 512, 553: 512, 1024: 512} {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: descriptors, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
		if got := connectionLimit(); got != want {
			t.Errorf("%d descriptors: %d connections, want %d", descriptors, got, want)
		}
	}
}

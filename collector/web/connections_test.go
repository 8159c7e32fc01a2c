package web

import (
	"errors"
	"net"
	"os"
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

package web

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
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

// A tcpConn is a connection of a client.
type tcpConn struct {
	net.Conn
	client string
}

func (c tcpConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.client))
}

// TestConnectionsBusy closes the oldest connection of the client that has most, if all connections have requests.
func TestConnectionsBusy(t *testing.T) {
	c := newConnections(maxConnections)
	dial := func(client string) net.Conn {
		conn, _ := net.Pipe()
		opened := tcpConn{conn, client}
		ctx := c.add(t.Context(), opened)
		c.addRequest(ctx, ctx.Value(connectionKey{}).(*connection))
		return opened
	}
	honest := dial("192.0.2.1:1")
	var first, second net.Conn
	for i := range maxConnections - 1 {
		conn := dial(fmt.Sprintf("[2001:db8::%x]:1", i+1))
		switch i {
		case 0:
			first = conn
		case 1:
			second = conn
		}
	}
	dial("192.0.2.1:2")
	if len(c.open) != maxConnections || c.open[honest] == nil || c.open[first] != nil || c.open[second] == nil {
		t.Errorf("%d connections; honest %v, first %v, second %v", len(c.open), c.open[honest], c.open[first], c.open[second])
	}
}

// TestConnectionsShare closes a connection of the client that has most, also if others have none with a request. Among those of the client, one
// whose request is given up is as one without.
func TestConnectionsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConnections(4)
		open := map[string]net.Conn{}
		dial := func(client string, request bool) (giveUp func()) {
			conn, _ := net.Pipe()
			opened := tcpConn{conn, client}
			open[client] = opened
			ctx := c.add(t.Context(), opened)
			added := ctx.Value(connectionKey{}).(*connection)
			if request {
				c.addRequest(ctx, added)
			}
			return added.giveUp
		}
		check := func(want ...string) {
			t.Helper()
			for client, conn := range open {
				if got := c.open[conn] != nil; got != slices.Contains(want, client) {
					t.Errorf("%s is open: %v", client, got)
				}
			}
		}
		dial("192.0.2.1:1", false)
		time.Sleep(time.Nanosecond)
		dial("192.0.2.2:1", true)
		time.Sleep(time.Nanosecond)
		giveUp := dial("192.0.2.2:2", true)
		time.Sleep(time.Nanosecond)
		dial("192.0.2.2:3", true)
		giveUp()
		synctest.Wait()
		dial("192.0.2.3:1", false)
		check("192.0.2.1:1", "192.0.2.2:1", "192.0.2.2:3", "192.0.2.3:1")
		dial("192.0.2.3:2", true)
		check("192.0.2.1:1", "192.0.2.2:3", "192.0.2.3:1", "192.0.2.3:2")
		for _, conn := range open {
			c.setState(conn, http.StateClosed)
		}
		if len(c.open) != 0 || len(c.clients) != 0 {
			t.Errorf("%d connections of %d clients are left", len(c.open), len(c.clients))
		}
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

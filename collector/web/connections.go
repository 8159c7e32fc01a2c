package web

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	// maxConnections is how many HTTP connections are open at once.
	maxConnections = 512

	// ownDescriptors is how many file descriptors the exporter needs for other things. They are 25 in all modes, and a few
	// more during a scan.
	ownDescriptors = 40

	// minConnections are open at once even if that leaves less for other things.
	minConnections = 4
)

// connectionLimit returns how many HTTP connections may be open at once, as the limit of file descriptors allows.
func connectionLimit() int {
	var descriptors syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &descriptors); err != nil || descriptors.Cur > maxConnections+ownDescriptors {
		return maxConnections
	}
	return max(int(descriptors.Cur)-ownDescriptors, minConnections)
}

// connections bounds the open connections of a server. If there are too many, the one that has
// been without a request for longest is closed: clients that connect and wait, or that send their
// request slowly, do not keep others out. If all have requests, new ones wait in the kernel's queue.
type connections struct {
	most int

	mu    sync.Mutex
	fewer sync.Cond // a connection is closed, or has no request anymore
	open  map[net.Conn]*connection
	ended bool // the server shuts down, and waits for its loop
}

// A connection is one of an HTTP client.
type connection struct {
	requests int       // that are being served
	since    time.Time // without a request
}

// connectionKey is the key of a *connection in the context of its requests.
type connectionKey struct{}

// limit lets a server bound its connections.
func (c *connections) limit(s *http.Server) {
	c.open = map[net.Conn]*connection{}
	c.fewer.L = &c.mu
	s.ConnState = c.setState
	s.RegisterOnShutdown(c.end)
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, c.add(conn))
	}
	next := s.Handler
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conn, ok := r.Context().Value(connectionKey{}).(*connection); ok {
			c.addRequests(conn, 1)
			defer c.addRequests(conn, -1)
		}
		next.ServeHTTP(w, r)
	})
}

// setState is a ConnState of http.Server.
func (c *connections) setState(conn net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open, conn)
		c.fewer.Signal()
	}
}

// add makes place for a new connection. It blocks the server's loop that accepts connections as long as there is none.
func (c *connections) add(conn net.Conn) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.open) >= c.most && !c.ended && !c.closeLongest() {
		c.fewer.Wait()
	}
	added := &connection{since: time.Now()}
	c.open[conn] = added
	return added
}

// end lets no connection wait for place anymore.
func (c *connections) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.fewer.Broadcast()
}

// closeLongest closes the connection that has been without a request for longest. It reports whether there is one.
func (c *connections) closeLongest() bool {
	var longest net.Conn
	for conn, state := range c.open {
		if state.requests == 0 && (longest == nil || state.since.Before(c.open[longest].since)) {
			longest = conn
		}
	}
	if longest != nil {
		delete(c.open, longest)
		if t, ok := longest.(*tls.Conn); ok {
			longest = t.NetConn() // TLS would say goodbye first, which can take a while
		}
		_ = longest.Close() // returns when its descriptor is free
	}
	return longest != nil
}

// addRequests changes the number of requests that are being served.
func (c *connections) addRequests(conn *connection, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn.requests += n
	conn.since = time.Now()
	if conn.requests == 0 {
		c.fewer.Signal()
	}
}

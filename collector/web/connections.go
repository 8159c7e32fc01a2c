package web

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConnections is how many HTTP connections are open at once.
const maxConnections = 512

// connections bounds the open connections of a server. If there are too many, the one that has
// been without a request for longest is closed: clients that connect and wait, or that send their
// request slowly, do not keep others out.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]*connection
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
	s.ConnState = c.setState
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, c.get(conn))
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
	switch state {
	case http.StateNew:
		c.get(conn)
	case http.StateClosed, http.StateHijacked:
		c.mu.Lock()
		delete(c.open, conn)
		c.mu.Unlock()
	}
}

// get returns a connection, and makes place for it if it is new.
func (c *connections) get(conn net.Conn) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	got, ok := c.open[conn]
	if !ok {
		if len(c.open) >= maxConnections {
			c.closeLongest()
		}
		got = &connection{since: time.Now()}
		c.open[conn] = got
	}
	return got
}

// closeLongest closes the connection that has been without a request for longest.
func (c *connections) closeLongest() {
	var longest net.Conn
	for conn, state := range c.open {
		if state.requests == 0 && (longest == nil || state.since.Before(c.open[longest].since)) {
			longest = conn
		}
	}
	if longest != nil {
		delete(c.open, longest)
		go longest.Close() // TLS says goodbye first, which can take a while
	}
}

// addRequests changes the number of requests that are being served.
func (c *connections) addRequests(conn *connection, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn.requests += n
	conn.since = time.Now()
}

package web

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
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
// request slowly, do not keep others out. If all have requests, the client with most connections loses the oldest.
type connections struct {
	most int

	mu   sync.Mutex
	open map[net.Conn]*connection
}

// A connection is one of an HTTP client.
type connection struct {
	client   netip.Prefix // who has opened it
	requests int          // that are being served
	since    time.Time    // without a request, or with the latest one
}

// connectionKey is the key of a *connection in the context of its requests.
type connectionKey struct{}

// limit lets a server bound its connections.
func (c *connections) limit(s *http.Server) {
	c.open = map[net.Conn]*connection{}
	s.ConnState = c.setState
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
		delete(c.open, conn)
		c.mu.Unlock()
	}
}

// add makes place for a new connection.
func (c *connections) add(conn net.Conn) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.most {
		c.closeOne()
	}
	added := &connection{client: clientOf(conn), since: time.Now()}
	c.open[conn] = added
	return added
}

// closeOne closes a connection.
func (c *connections) closeOne() {
	of := map[netip.Prefix]int{}
	for _, state := range c.open {
		of[state.client]++
	}
	before := func(a, b *connection) bool {
		switch {
		case a.requests == 0 || b.requests == 0:
			return a.requests == 0 && (b.requests > 0 || a.since.Before(b.since))
		case of[a.client] != of[b.client]:
			return of[a.client] > of[b.client]
		default:
			return a.since.Before(b.since)
		}
	}
	var first net.Conn
	for conn, state := range c.open {
		if first == nil || before(state, c.open[first]) {
			first = conn
		}
	}
	delete(c.open, first)
	if t, ok := first.(*tls.Conn); ok {
		first = t.NetConn() // TLS would say goodbye first, which can take a while
	}
	_ = first.Close() // returns when its descriptor is free
}

// clientOf returns the address of a client. Of one of IPv6, the client can choose the lower half.
func clientOf(conn net.Conn) netip.Prefix {
	a, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := a.AddrPort().Addr().Unmap().WithZone("")
	prefix, _ := ip.Prefix(min(ip.BitLen(), 64)) // the length is valid
	return prefix
}

// addRequests changes the number of requests that are being served.
func (c *connections) addRequests(conn *connection, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn.requests += n
	conn.since = time.Now()
}

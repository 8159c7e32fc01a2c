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

// connections bounds the open connections of a server. If there are too many, the client with most of them loses one: the
// oldest without a request, or else that with the oldest request. So clients that connect and wait, or that send their request
// slowly, keep no others out.
type connections struct {
	most int

	mu      sync.Mutex
	open    map[net.Conn]*connection
	clients map[netip.Prefix]*client // of these connections
}

// A client of HTTP is an address, see clientOf.
type client struct {
	open int           // connections
	turn chan struct{} // see passwords
}

// A connection is one of a client.
type connection struct {
	address  netip.Prefix
	client   *client
	giveUp   func()    // ends the contexts of its requests
	requests int       // that are being served, without those that are given up
	since    time.Time // when it began, or its latest request
}

// connectionKey is the key of a *connection in the context of its requests.
type connectionKey struct{}

// newConnections returns the connections of a server.
func newConnections(most int) *connections {
	return &connections{most: most, open: map[net.Conn]*connection{}, clients: map[netip.Prefix]*client{}}
}

// limit lets a server bound its connections.
func (c *connections) limit(s *http.Server) {
	s.ConnState = c.setState
	s.ConnContext = c.add
}

// count returns a handler that tells connections with a request from idle ones.
func (c *connections) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conn, ok := r.Context().Value(connectionKey{}).(*connection); ok {
			defer c.addRequest(r.Context(), conn)()
		}
		next.ServeHTTP(w, r)
	})
}

// setState is a ConnState of http.Server.
func (c *connections) setState(conn net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.remove(conn)
	}
}

// add is a ConnContext of http.Server. It makes place for a new connection.
func (c *connections) add(ctx context.Context, conn net.Conn) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.most {
		c.closeOne()
	}
	address := clientOf(conn)
	of := c.clients[address]
	if of == nil {
		of = &client{turn: make(chan struct{}, 1)}
		c.clients[address] = of
	}
	of.open++
	ctx, giveUp := context.WithCancel(ctx)
	added := &connection{address: address, client: of, giveUp: giveUp, since: time.Now()}
	c.open[conn] = added
	return context.WithValue(ctx, connectionKey{}, added)
}

// remove forgets a connection. The caller holds c.mu.
func (c *connections) remove(conn net.Conn) {
	removed := c.open[conn]
	if removed == nil {
		return
	}
	delete(c.open, conn)
	removed.giveUp() // the server does not see each that is closed
	if removed.client.open--; removed.client.open == 0 {
		delete(c.clients, removed.address)
	}
}

// closeOne closes a connection. The caller holds c.mu.
func (c *connections) closeOne() {
	before := func(a, b *connection) bool {
		switch {
		case a.client.open != b.client.open:
			return a.client.open > b.client.open
		case (a.requests == 0) != (b.requests == 0):
			return a.requests == 0
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
	c.remove(first)
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

// addRequest counts a request until end is called, or the request is given up.
func (c *connections) addRequest(ctx context.Context, conn *connection) (end func()) {
	add := func(n int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		conn.requests += n
	}
	c.mu.Lock()
	conn.since = time.Now()
	c.mu.Unlock()
	add(1)
	stop := context.AfterFunc(ctx, func() { add(-1) })
	return func() {
		if stop() {
			add(-1)
		}
	}
}

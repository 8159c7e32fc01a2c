package web

import (
	"context"
	"crypto/sha256"
	"net/http"
	"sync"
)

// maxRight is how many right passwords are remembered. If none are asked for, all are right.
const maxRight = 64

// passwords let exporter-toolkit check few passwords at once: a check takes some 50 ms, with a lock that no request
// can give up waiting for.
//
// Each client waits for its own turn first. So it keeps others waiting for one check, however many
// passwords it sends. Passwords that were right have a turn of their own, as exporter-toolkit forgets them when there are many wrong ones.
type passwords struct {
	connections *connections

	unknown, known chan struct{} // hold an element of the request whose password is checked

	mu    sync.Mutex
	right map[password]bool
}

// A password is the hash of one, with its user.
type password [sha256.Size]byte

// checkedKey is the key of a func() in the context of a request whose password is checked. It says that the password is right.
type checkedKey struct{}

func newPasswords(c *connections) *passwords {
	return &passwords{connections: c, unknown: make(chan struct{}, 1), known: make(chan struct{}, 1), right: map[password]bool{}}
}

// begin returns a handler of requests whose password next checks. Then next calls the handler of end.
func (p *passwords) begin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		user, secret, has := r.BasicAuth()
		conn, ok := ctx.Value(connectionKey{}).(*connection)
		if !has || !ok || ctx.Value(checkedKey{}) != nil { // with two listeners, exporter-toolkit checks twice
			next.ServeHTTP(w, r)
			return
		}
		one := password(sha256.Sum256([]byte(user + ":" + secret)))
		known := p.isRight(one)
		if known {
			defer p.connections.addRequest(ctx, conn)() // it is not closed for those that have yet to show theirs
		}
		leave, err := p.enter(ctx, conn.client, known)
		if err != nil {
			return // the client is gone
		}
		right, leave := false, sync.OnceFunc(leave)
		defer leave()
		next.ServeHTTP(w, r.WithContext(context.WithValue(ctx, checkedKey{}, func() {
			right = true
			p.set(one, true)
			leave()
		})))
		if !right {
			p.set(one, false)
		}
	})
}

// end returns a handler of requests whose password is right, or that need none.
func (p *passwords) end(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if right, ok := r.Context().Value(checkedKey{}).(func()); ok {
			right()
		}
		next.ServeHTTP(w, r)
	})
}

// enter waits until a password can be checked, and lets no other be until leave is called. The error is that of ctx.
func (p *passwords) enter(ctx context.Context, c *client, known bool) (leave func(), err error) {
	if known {
		return enter(ctx, p.known)
	}
	leaveOwn, err := enter(ctx, c.turn)
	if err != nil {
		return nil, err
	}
	leaveAll, err := enter(ctx, p.unknown)
	if err != nil {
		leaveOwn()
		return nil, err
	}
	return func() {
		leaveAll()
		leaveOwn()
	}, nil
}

// isRight reports whether a password was right before.
func (p *passwords) isRight(one password) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.right[one]
}

// set remembers whether a password is right.
func (p *passwords) set(one password, right bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !right {
		delete(p.right, one)
		return
	}
	if len(p.right) >= maxRight && !p.right[one] {
		for other := range p.right {
			delete(p.right, other)
			break
		}
	}
	p.right[one] = true
}

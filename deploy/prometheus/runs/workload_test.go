//go:build linux && record

package runs

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// destination is what the clients of all runs connect to. It has a listener that answers at once.
const destination = "203.0.113.1:443"

// A workload makes real connections, from the thread of its test.
type workload struct {
	tb       testing.TB
	random   *rand.Rand
	client   netnstest.Client
	listener int
	open     []pair // oldest first
	leaked   []int  // the other end has closed these
	due      map[string]float64

	failed int     // connects that found no port
	first  float64 // when the first of them failed, in seconds
	last   float64
	now    float64
	took   []time.Duration // for connect()
}

type pair struct{ client, server int }

// newWorkload returns the workload of a run. Two runs of one name make the same random choices.
func newWorkload(tb testing.TB, name string, to string) *workload {
	seed := uint64(0)
	for _, b := range []byte(name) {
		seed = 31*seed + uint64(b)
	}
	return &workload{
		tb: tb, random: rand.New(rand.NewPCG(seed, 1)), listener: netnstest.Listen(tb, to, false), //nolint:gosec // Not a secret.
		client: netnstest.Client{Destination: netip.MustParseAddrPort(to)}, due: map[string]float64{},
	}
}

// connect opens a connection. It reports whether there was a port.
func (w *workload) connect() (p pair, ok bool) {
	begin := time.Now()
	client, err := w.client.Dial()
	w.took = append(w.took, time.Since(begin))
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		if w.failed == 0 {
			w.first = w.now
		}
		w.failed++
		w.last = w.now
		return pair{}, false
	case err != nil:
		w.tb.Fatalf("connect: %v", err)
	}
	server, _, err := unix.Accept4(w.listener, unix.SOCK_CLOEXEC)
	if err != nil {
		w.tb.Fatalf("accept: %v", err)
	}
	return pair{client, server}, true
}

// hangup closes a connection, the client first: its port stays in TIME_WAIT.
func (w *workload) hangup(p pair) {
	netnstest.Hangup(p.client)
	if _, err := unix.Read(p.server, make([]byte, 1)); err != nil {
		w.tb.Errorf("wait for the end of a connection: %v", err)
	}
	netnstest.Hangup(p.server)
}

// count returns how often something happens in this tick that happens at a rate on average, at random.
func (w *workload) count(what string, rate float64) int {
	w.due[what] -= rate * tick.Seconds()
	n := 0
	for w.due[what] < 0 {
		w.due[what] += w.random.ExpFloat64()
		n++
	}
	return n
}

// requests makes that many connections per second that close at once.
func (w *workload) requests(rate float64) {
	for range w.count("requests", rate) {
		if p, ok := w.connect(); ok {
			w.hangup(p)
		}
	}
}

// keep has n connections open. Of those, it replaces some at a rate.
func (w *workload) keep(n int, replaced float64) {
	for range min(w.count("replaced", replaced), len(w.open)) {
		w.hangup(w.open[0])
		w.open = w.open[1:]
	}
	for len(w.open) > n {
		w.hangup(w.open[0])
		w.open = w.open[1:]
	}
	for len(w.open) < n {
		p, ok := w.connect()
		if !ok {
			return
		}
		w.open = append(w.open, p)
	}
}

// reconnect closes up to n of the open connections. The next keep opens others.
func (w *workload) reconnect(n int) {
	n = min(n, len(w.open))
	for _, p := range w.open[:n] {
		w.hangup(p)
	}
	w.open = w.open[n:]
}

// leak opens connections at a rate that the server closes, and the client does not.
func (w *workload) leak(rate float64) {
	for range w.count("leak", rate) {
		w.leakOne()
	}
}

func (w *workload) leakOne() {
	if p, ok := w.connect(); ok {
		netnstest.Hangup(p.server)
		w.leaked = append(w.leaked, p.client)
	}
}

// close closes what is left.
func (w *workload) close() {
	for _, p := range w.open {
		netnstest.Hangup(p.client)
		netnstest.Hangup(p.server)
	}
	for _, fd := range w.leaked {
		netnstest.Hangup(fd)
	}
}

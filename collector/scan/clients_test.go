//go:build linux

package scan

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// load is what a client does with its connections: it keeps the open ones, the oldest first.
type load struct {
	t      *testing.T
	random *rand.Rand
	open   []int
}

func newLoad(t *testing.T) *load {
	t.Helper()
	l := &load{t: t, random: newRandom(t)}
	t.Cleanup(func() { l.close(len(l.open)) })
	return l
}

// newRandom returns a source of random numbers, and logs its seed.
func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// connect opens n connections, or fewer if the kernel has no port left. It returns how many.
func (l *load) connect(c netnstest.Client, n int) int {
	l.t.Helper()
	for i := range n {
		fd, err := c.Connect()
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE) {
			return i
		}
		if err != nil {
			l.t.Fatal(err)
		}
		l.open = append(l.open, fd)
	}
	return n
}

// close closes the n oldest connections. They leave no TIME_WAIT, as if the peer had closed first.
func (l *load) close(n int) {
	for _, fd := range l.open[:n] {
		netnstest.CloseRepaired(fd)
	}
	l.open = l.open[n:]
}

// shuffle puts the connections into a random order.
func (l *load) shuffle() {
	l.random.Shuffle(len(l.open), func(i, j int) { l.open[i], l.open[j] = l.open[j], l.open[i] })
}

// reverse puts the connections into the opposite order.
func (l *load) reverse() {
	for i, j := 0, len(l.open)-1; i < j; i, j = i+1, j-1 {
		l.open[i], l.open[j] = l.open[j], l.open[i]
	}
}

const clientsPorts = 500

// selfReport returns the report of the own namespace.
func selfReport(t *testing.T, s *Scanner) pool.Report {
	t.Helper()
	n := s.Scan(t.Context()).Namespaces[0]
	if n.TCP.Err != nil {
		t.Fatal(n.TCP.Err)
	}
	return n.TCP.Report
}

// TestOwnRange has clients with a range of their own (IP_LOCAL_PORT_RANGE). Linux 6.8 and later give them ports in
// no order (207184853dbd), so they are taken for clients that bind. Earlier kernels take the ports with the parity
// of the low end of that range first, or do not have the option.
func TestOwnRange(t *testing.T) {
	for _, low := range []uint16{40100, 40101} {
		t.Run(fmt.Sprint(low), func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40999")
			client := clientTo("198.51.100.1", "198.51.100.9:443")
			client.Low, client.High = low, 40899
			fd, err := client.Connect()
			if errors.Is(err, unix.ENOPROTOOPT) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
			netnstest.CloseRepaired(fd)

			s := newScanner(t, testConfig())
			l := newLoad(t)
			for range 10 {
				selfReport(t, s)
				l.connect(client.Client, 20)
			}
			r := selfReport(t, s)
			held, parity := len(l.open), 0
			for _, fd := range l.open {
				sa, err := unix.Getsockname(fd)
				if err != nil {
					t.Fatal(err)
				}
				port := sa.(*unix.SockaddrInet4).Port
				if port < int(low) || port > 40899 {
					t.Errorf("port %d", port)
				}
				if port%2 == int(low)%2 {
					parity++
				}
			}
			t.Logf("%d of %d ports have the parity of %d, %d are taken for bound, %d may be", parity, held, low, r.BoundPorts, r.BoundUnknown)
			switch {
			case held != 200:
				t.Errorf("%d connections", held)
			case parity == held: // before Linux 6.8
				if r.BoundPorts != held*int(low%2) {
					t.Errorf("%d ports are taken for bound", r.BoundPorts)
				}
			case parity < held/4 || parity > held*3/4:
				t.Error("neither in the order of the range nor in none")
			case r.BoundPorts > held*3/4 || r.BoundPorts+r.BoundUnknown != held: // by their parity
				t.Errorf("%d ports are taken for bound, and %d may be", r.BoundPorts, r.BoundUnknown)
			}
			if bound := selfReport(t, newExactScanner(t, testConfig())).BoundPorts; bound != 0 {
				t.Errorf("with the exact reader, %d ports are bound", bound)
			}
		})
	}
}

// TestBindFirstBeside has a client that uses plain connect() beside another that binds first. The
// scan before the first connect() that fails has a utilization of 0.95 at least, and none has more
// than is true.
func TestBindFirstBeside(t *testing.T) {
	bindFirst := func(destination func(i int) string) func(step int, l *load) {
		return func(step int, l *load) {
			for i := range 14 {
				c := clientTo("198.51.100.1", destination(14*step+i)).bind(netnstest.BindFirst)
				c.Source = netip.MustParseAddrPort("198.51.100.1:0")
				l.connect(c.Client, 1)
			}
		}
	}
	reuse := func(_ int, l *load) {
		for i := range 14 {
			c := clientTo("198.51.100.1", fmt.Sprintf("198.51.100.%d:80", 20+i%5)).bind(netnstest.BindReuseAddr)
			c.Source = netip.MustParseAddrPort("198.51.100.1:0")
			l.connect(c.Client, 1)
		}
	}
	// A list of ports for each of five servers, as HAProxy's "source ip:range" makes it.
	next := [5]int{}
	lists := func(_ int, l *load) {
		for i := range 15 {
			server := i % 5
			c := clientTo("198.51.100.1", fmt.Sprintf("198.51.100.%d:80", 20+server)).bind(netnstest.BindReuseAddr)
			c.Source = netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(40000+100*server+next[server]))
			if next[server] < 99 && l.connect(c.Client, 1) == 1 {
				next[server]++
			}
		}
	}
	tests := map[string]struct {
		others func(step int, l *load)
		exact  bool // the order in which bind(ip, 0) chooses shows
	}{
		"one destination":                {bindFirst(func(int) string { return "198.51.100.7:80" }), true},
		"ten destinations":               {bindFirst(func(i int) string { return fmt.Sprintf("198.51.100.%d:80", 20+i%10) }), true},
		"a destination for each":         {bindFirst(func(i int) string { return fmt.Sprintf("198.51.100.7:%d", 1000+i) }), true},
		"SO_REUSEADDR":                   {reuse, true},
		"lists of ports of five servers": {lists, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40499")
			next = [5]int{}
			s := newScanner(t, testConfig())
			binding, plain := newLoad(t), newLoad(t)
			victim := clientTo("198.51.100.2", "198.51.100.9:443").bind(netnstest.BindNoPort)
			victim.Source = netip.MustParseAddrPort("198.51.100.2:0")
			for step := range 100 {
				r := selfReport(t, s)
				low, high := possibleOf(r, victim.source, victim.Destination)
				held, bound := len(plain.open), len(binding.open)
				truth := float64(distinct(t, slices.Concat(plain.open, binding.open))) / clientsPorts // bind(source, port) can share a port
				if r.BoundPorts > bound || low > truth || step > 10 && (r.BoundPorts < bound/3 || high < truth || tt.exact && (low < truth || high > truth)) {
					t.Errorf("step %d: %d bound ports, %d may be, utilization %v, possibly %v, of %d bound and %d plain connections", step, r.BoundPorts, r.BoundUnknown, low, high, bound, held)
				}
				tt.others(step, binding)
				if plain.connect(victim.Client, 4) < 4 {
					if high < 0.95 {
						t.Errorf("utilization %v, possibly %v before the first failure, want 0.95", low, high)
					}
					return
				}
			}
			t.Error("no connect() failed")
		})
	}
}

// TestBindFirstPlain has clients that use plain connect() only, and that fill their pool, drain it in
// any order, churn, and fill it again. No port is bound, whenever the first scan is.
func TestBindFirstPlain(t *testing.T) {
	a := clientTo("198.51.100.1", "198.51.100.7:80")
	b := clientTo("198.51.100.1", "198.51.100.8:80")
	drain := map[string]func(*load){"first in, first out": func(*load) {}, "last in, first out": (*load).reverse, "any": (*load).shuffle}
	for name, order := range drain {
		t.Run(name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40499")
			l, beside := newLoad(t), newLoad(t)
			beside.connect(b.Client, 60)
			s := newScanner(t, testConfig())
			scans := 0
			check := func(restart bool) {
				t.Helper()
				if restart {
					s = newScanner(t, testConfig())
				}
				scans++
				r := selfReport(t, s)
				want := float64(len(l.open)) / clientsPorts
				if got := utilizationOf(r, a.source, a.Destination); r.BoundPorts != 0 || got != want {
					t.Errorf("scan %d: %d bound ports, utilization %v, want 0 and %v", scans, r.BoundPorts, got, want)
				}
				if r.MaxPossibleUtilization > r.MaxUtilization+60./clientsPorts {
					t.Errorf("scan %d: utilization %v, possibly %v", scans, r.MaxUtilization, r.MaxPossibleUtilization)
				}
			}
			for round := range 3 {
				restart := func() bool { return round > 0 && l.random.IntN(6) == 0 }
				for l.connect(a.Client, 40) > 0 {
					check(restart())
				}
				for range 6 { // at full
					l.shuffle()
					l.close(80)
					check(restart())
					l.connect(a.Client, 80)
					check(restart())
				}
				order(l)
				for len(l.open) > 40 {
					l.close(min(30, len(l.open)))
					l.connect(a.Client, 5)
					order(l)
					check(restart())
				}
				for range 10 { // with few
					l.connect(a.Client, 30)
					check(restart())
					l.shuffle()
					l.close(30)
				}
			}
		})
	}
}

// TestBindFirstPool has a client that binds first fill its pool, leave it, and fill it again, with one
// of plain connect() on the same source.
func TestBindFirstPool(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40499")
	c := clientTo("198.51.100.1", "198.51.100.7:80").bind(netnstest.BindFirst)
	c.Source = netip.MustParseAddrPort("198.51.100.1:0")
	other := clientTo("198.51.100.1", "198.51.100.8:80").bind(netnstest.BindNoPort)
	other.Source = c.Source
	l, beside := newLoad(t), newLoad(t)
	s := newScanner(t, testConfig())
	selfReport(t, s)
	beside.connect(other.Client, 20)
	l.connect(c.Client, 20)
	selfReport(t, s)
	check := func() {
		t.Helper()
		r := selfReport(t, s)
		if r.BoundPorts != len(l.open) || r.BoundUnknown != 0 || sourceOf(t, r, c.source).Bound != len(l.open) {
			t.Errorf("%d bound ports, %d unknown, want %d and 0; source %+v", r.BoundPorts, r.BoundUnknown, len(l.open), sourceOf(t, r, c.source))
		}
		want := float64(len(beside.open)+len(l.open)) / clientsPorts
		if got := utilizationOf(r, other.source, other.Destination); got != want {
			t.Errorf("utilization of the plain client %v, want %v", got, want)
		}
	}
	for range 2 {
		for l.connect(c.Client, 40) == 40 {
			check()
		}
		check() // at full
		l.shuffle()
		for len(l.open) > 60 {
			l.close(40)
			check()
		}
	}

	// From now on, the client does not bind any more.
	l.close(len(l.open))
	selfReport(t, s) // else a port that is taken again at once stays suspect
	c.Bind = netnstest.NoBind
	for range 6 {
		beside.connect(c.Client, 10)
		selfReport(t, s)
	}
	if r := selfReport(t, s); r.BoundPorts != 0 || r.BoundUnknown != 0 {
		t.Errorf("%d bound ports, %d unknown, of clients that do not bind", r.BoundPorts, r.BoundUnknown)
	}
}

// TestBindFirstUnknown has a first scan when the pool is full already.
func TestBindFirstUnknown(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40499")
	c := clientTo("198.51.100.1", "198.51.100.7:80").bind(netnstest.BindFirst)
	c.Source = netip.MustParseAddrPort("198.51.100.1:0")
	l := newLoad(t)
	l.connect(c.Client, 450)
	s := newScanner(t, testConfig())
	if r := selfReport(t, s); r.BoundKnown {
		t.Errorf("%d bound ports are known after one scan", r.BoundPorts)
	}
	l.connect(c.Client, 10)
	if r := selfReport(t, s); !r.BoundKnown || r.BoundPorts != 0 || r.BoundUnknown != 460 || r.MaxPossibleUtilization != 0.92 {
		t.Errorf("%d bound ports, %d unknown, known %v, want 0, 460, true", r.BoundPorts, r.BoundUnknown, r.BoundKnown)
	}
	l.shuffle()
	l.close(300)
	selfReport(t, s)
	l.connect(c.Client, 10)
	if r := selfReport(t, s); r.BoundPorts != 10 || r.BoundUnknown != 160 { // new ports tell nothing of older ones
		t.Errorf("%d bound ports, %d unknown, want 10 and 160", r.BoundPorts, r.BoundUnknown)
	}
}

// utilizationOf returns the utilization of a destination, 0 if it has none.
func utilizationOf(r pool.Report, source netip.Addr, destination netip.AddrPort) float64 {
	low, _ := possibleOf(r, source, destination)
	return low
}

// possibleOf returns between which values the utilization of a destination is.
func possibleOf(r pool.Report, source netip.Addr, destination netip.AddrPort) (low, high float64) {
	d, _ := destinationOf(r, source, destination)
	return d.Utilization, d.PossibleUtilization
}

// TestBindFirstLimit has more pools than are listed, and so remembered: the others count together.
func TestBindFirstLimit(t *testing.T) {
	for _, bind := range []netnstest.Bind{netnstest.BindFirst, netnstest.BindNoPort} {
		t.Run(fmt.Sprint(bind), func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 41499")
			cfg := testConfig()
			cfg.Limits = pool.Limits{MinPorts: 10, Most: 2}
			s := newScanner(t, cfg)
			selfReport(t, s)
			l := newLoad(t)
			for i := range 12 {
				for destination := range 26 {
					c := clientTo("198.51.100.1", fmt.Sprintf("198.51.100.%d:80", 20+destination)).bind(bind)
					c.Source = netip.MustParseAddrPort("198.51.100.1:0")
					l.connect(c.Client, 4)
				}
				want := 0
				if bind == netnstest.BindFirst && i > 1 {
					want = len(l.open)
				}
				if r := selfReport(t, s); i > 1 && (r.BoundPorts != want || r.BoundUnknown != 0 || len(r.Destinations) > 22) {
					t.Errorf("scan %d: %d bound ports, %d unknown, want %d and 0", i, r.BoundPorts, r.BoundUnknown, want)
				}
			}
		})
	}
}

// TestBindFirstBursts has a client of plain connect() that fills its pool and drains it between two
// scans: what is left has new ports of bind parity, while others are free.
func TestBindFirstBursts(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40499")
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	l := newLoad(t)
	newLoad(t).connect(clientTo("198.51.100.1", "198.51.100.8:80").Client, 12) // its source stays known
	s := newScanner(t, testConfig())
	check := func() {
		t.Helper()
		if r := selfReport(t, s); r.BoundPorts != 0 {
			t.Errorf("%d bound ports of a client that does not bind", r.BoundPorts)
		}
	}
	burst := func(fill, left int) {
		t.Helper()
		l.connect(c.Client, fill-len(l.open))
		l.shuffle()
		l.close(len(l.open) - left)
		check()
	}
	check()
	for range 6 { // few ports of connect parity are free
		burst(490, 430)
		l.close(410)
		check()
	}
	l.close(len(l.open))
	check()
	for range 3 { // most are free, but not every time
		burst(490, 100)
		burst(490, 100)
		l.close(100)
		l.connect(c.Client, 20)
		check()
		l.connect(c.Client, 20)
		check()
		l.close(len(l.open))
		check()
	}
	for range 3 { // none is free any more
		l.connect(c.Client, 180)
		check()
		l.connect(c.Client, 300)
		check()
		l.close(len(l.open))
		check()
	}
	for range 3 { // none was free the last time
		l.connect(c.Client, 450)
		check()
		l.connect(c.Client, 40)
		l.shuffle()
		l.close(300)
		check()
		l.close(len(l.open))
		check()
	}
}

// TestBindFirstMixed has plain connect() and bind() in one pool.
func TestBindFirstMixed(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40499")
	plain := clientTo("198.51.100.1", "198.51.100.7:80")
	first := plain.bind(netnstest.BindFirst)
	first.Source = netip.MustParseAddrPort("198.51.100.1:0")
	s := newScanner(t, testConfig())
	a, b := newLoad(t), newLoad(t)
	a.connect(plain.Client, 150) // more than half of the ports of connect parity
	selfReport(t, s)
	b.connect(first.Client, 20)
	selfReport(t, s)
	for range 5 {
		b.connect(first.Client, 10)
		if r := selfReport(t, s); r.BoundPorts != len(b.open) || r.BoundUnknown != 0 {
			t.Errorf("%d bound ports, %d unknown, want %d and 0", r.BoundPorts, r.BoundUnknown, len(b.open))
		}
	}

	// The one that binds goes away, the other fills the pool.
	b.close(len(b.open))
	a.close(100)
	for range 5 {
		a.connect(plain.Client, 10)
		selfReport(t, s)
	}
	for a.connect(plain.Client, 50) > 0 {
		if r := selfReport(t, s); r.BoundPorts != 0 {
			t.Errorf("%d bound ports, of plain connect() only", r.BoundPorts)
		}
	}
}

// TestBindFirstStatic has a pool of plain connect() with most ports of connect parity, and nothing new, before
// another client on its source begins to bind first.
func TestBindFirstStatic(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40499")
	static, first := clientTo("198.51.100.1", "198.51.100.7:80"), clientTo("198.51.100.1", "198.51.100.8:80").bind(netnstest.BindFirst)
	first.Source = netip.MustParseAddrPort("198.51.100.1:0")
	s := newScanner(t, testConfig())
	selfReport(t, s)
	newLoad(t).connect(static.Client, 220)
	selfReport(t, s)
	l := newLoad(t)
	for range 3 {
		l.connect(first.Client, 12)
		if r := selfReport(t, s); r.BoundPorts != len(l.open) || r.BoundUnknown != 0 {
			t.Errorf("%d bound ports, %d unknown, want %d and 0", r.BoundPorts, r.BoundUnknown, len(l.open))
		}
	}
}

// TestBindFirstTimeWait has bound ports in TIME_WAIT: plain connect() never takes them over.
func TestBindFirstTimeWait(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "1")
	setReuseDelay(t, time.Millisecond)
	c := clientTo("198.51.100.1", "198.51.100.7:80").bind(netnstest.BindFirst)
	c.Source = netip.MustParseAddrPort("198.51.100.1:0")
	listener := netnstest.Listen(t, c.Destination.String(), false)
	s := newScanner(t, testConfig())
	selfReport(t, s)
	for range 3 {
		netnstest.TimeWait(t, c.Client, listener, 10)
		time.Sleep(10 * time.Millisecond)
		selfReport(t, s)
	}
	netnstest.TimeWait(t, c.Client, listener, 10)
	r := selfReport(t, s)
	if d, _ := destinationOf(r, c.source, c.Destination); d.Reusable != 0 || d.Ceiling > 100/60. || d.CloseRate < 1 || d.CloseRate > 4 {
		t.Errorf("%d ports reusable, ceiling %v, %v closes per second, want 0, at most 100 / 60 s, and 40 / 10 s", d.Reusable, d.Ceiling, d.CloseRate)
	}
	plain := clientTo("198.51.100.2", "198.51.100.7:80").bind(netnstest.BindNoPort)
	plain.Source = netip.MustParseAddrPort("198.51.100.2:0")
	granted, _ := plain.Fill(t, 200)
	if r.BoundPorts != 40 || granted != 60 || utilizationOf(r, c.source, c.Destination) != 0.4 {
		t.Errorf("%d bound ports, utilization %v, %d granted, want 40, 0.4, 60", r.BoundPorts, utilizationOf(r, c.source, c.Destination), granted)
	}
}

// TestBindFirstSlowly has a client that takes one port of a list, in any order, from one scan to the
// next, until a plain connect() finds none.
func TestBindFirstSlowly(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
			s := newScanner(t, testConfig())
			l, plain := newLoad(t), newLoad(t)
			victim := clientTo("198.51.100.2", "198.51.100.9:443").bind(netnstest.BindNoPort)
			victim.Source = netip.MustParseAddrPort("198.51.100.2:0")
			plain.connect(victim.Client, 5)
			selfReport(t, s)
			// Missed are ports that plain connect() takes first, before one of the others showed that the client binds, and those that it
			// holds for the victim already.
			missed, seen := 0, false
			for _, port := range rand.New(rand.NewPCG(seed, 0)).Perm(100) {
				c := clientTo("198.51.100.1", "198.51.100.20:80").bind(netnstest.BindReuseAddr)
				c.Source = netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(40000+port))
				l.connect(c.Client, 1)
				if seen = seen || port%2 == 1; !seen || distinct(t, slices.Concat(plain.open, l.open[len(l.open)-1:])) == len(plain.open) {
					missed++
				}
				if r := selfReport(t, s); r.BoundPorts > len(l.open) || r.BoundPorts+r.BoundUnknown < len(l.open)-missed {
					t.Errorf("%d bound ports, and %d that may be, of %d", r.BoundPorts, r.BoundUnknown, len(l.open))
				}
			}
			r := selfReport(t, s)
			if _, high := possibleOf(r, victim.source, victim.Destination); high < 1-float64(missed)/100 || plain.connect(victim.Client, 1) != 0 {
				t.Errorf("possible utilization %v of a pool without free ports, %d of them missed", high, missed)
			}
		})
	}
}

// TestBindFirstRange changes the range, and so which parity connect() prefers, while a client of
// plain connect() goes on.
func TestBindFirstRange(t *testing.T) {
	netnstest.New(t)
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	s := newScanner(t, testConfig())
	l := newLoad(t)
	for i := range 4 {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("%d 40500", 40000+i%2))
		l.connect(c.Client, 20)
		selfReport(t, s)
		l.connect(c.Client, 20) // just before the next change
	}
	if r := selfReport(t, s); r.BoundPorts != 0 {
		t.Errorf("%d bound ports of a client that does not bind", r.BoundPorts)
	}
	for range 3 {
		l.connect(c.Client, 10)
		if r := selfReport(t, s); r.BoundPorts != 0 {
			t.Errorf("%d bound ports of a client that does not bind", r.BoundPorts)
		}
	}
}

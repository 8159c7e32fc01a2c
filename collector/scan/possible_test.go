//go:build linux

package scan

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// bindsTo returns a client that binds to a source before it connects.
func bindsTo(source, destination string) netnstest.Client {
	return clientTo(source, destination).bind(netnstest.BindFirst).Client
}

// plainFrom returns a client of plain connect() with a source.
func plainFrom(source, destination string) oracleClient {
	return clientTo(source, destination).bind(netnstest.BindNoPort)
}

// checkPossible checks that a report says of the utilization of a destination without connections that it is between
// two values, and that the true one, of which so many ports are bound, is one of these.
func checkPossible(t *testing.T, r *pool.Report, bound int) {
	t.Helper()
	truth := float64(bound) / float64(r.CapacityPorts)
	low, high := float64(r.BoundPorts)/float64(r.CapacityPorts), float64(r.BoundPorts+r.BoundUnknown)/float64(r.CapacityPorts)
	if truth < low || truth > high || r.MaxUtilization < low || r.MaxPossibleUtilization < high {
		t.Errorf("%d of %d ports are bound: the report has %d, and %d that may be; utilization up to %v, possibly %v",
			bound, r.CapacityPorts, r.BoundPorts, r.BoundUnknown, r.MaxUtilization, r.MaxPossibleUtilization)
	}
}

// TestPossibleDestinations has clients that bind first to ten destinations. A Scanner that starts when they hold some of
// the ports, or all, does not know who binds. When they have most ports, the order of their choice does not show any more.
func TestPossibleDestinations(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40299")
	victim := plainFrom("198.51.100.2", "198.51.100.9:443")
	running := newScanner(t, testConfig())
	for bound := 0; bound < 300; {
		if bound > 0 {
			r := collect(t)
			checkPossible(t, &r, bound)
			if r := selfReport(t, running); bound > 30 {
				checkPossible(t, &r, bound)
			}
		}
		destination := fmt.Sprintf("198.51.100.%d:80", 20+bound/30)
		bindsTo("198.51.100.1", destination).Hold(t, 15)
		bound += 15
	}
	s := newScanner(t, testConfig())
	for scan := range 3 {
		r := selfReport(t, s)
		checkPossible(t, &r, 300)
		for _, d := range r.Destinations {
			if d.Utilization != 0.1 || d.PossibleUtilization != 1 {
				t.Errorf("scan %d: the utilization of %v is %v, or up to %v, want 0.1, 1", scan, d.Address, d.Utilization, d.PossibleUtilization)
			}
		}
		if len(r.Destinations) != 10 || r.BoundUnknown != 300 || sourceOf(t, r, netip.MustParseAddr("198.51.100.1")).MayBound != 300 {
			t.Errorf("scan %d: %d destinations, %d ports that may be bound, sources %+v", scan, len(r.Destinations), r.BoundUnknown, r.Sources)
		}
	}
	if granted, err := victim.Fill(t, 1); granted != 0 || !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("plain connect() got %d ports, then %v", granted, err)
	}
	if !netnstest.IsHostRoot() {
		return
	}
	if r := collectExact(t); r.MaxUtilization != 1 || r.MaxPossibleUtilization != 1 || r.BoundUnknown != 0 {
		t.Errorf("with the exact reader: utilization %v, possibly %v, %d ports that may be bound", r.MaxUtilization, r.MaxPossibleUtilization, r.BoundUnknown)
	}
}

// distinct returns how many different local ports sockets have.
func distinct(t *testing.T, fds []int) int {
	t.Helper()
	ports := map[int]bool{}
	for _, fd := range fds {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		ports[sa.(*unix.SockaddrInet4).Port] = true
	}
	return len(ports)
}

// TestPossibleSources has clients that bind to many sources, to each for few connections, so that no source tells by
// itself how they choose ports.
func TestPossibleSources(t *testing.T) {
	for name, tt := range map[string]struct {
		sources, destinations, limit int
	}{
		"a socket for each source":           {360, 1, 1 << 20},
		"more sources than are reported":     {360, 1, 20},
		"a destination for each source":      {360, 360, 20},
		"sources with some sockets for each": {40, 20, 10},
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40399")
			cfg := testConfig()
			cfg.Limits.Most = tt.limit
			s, l := newScanner(t, cfg), newLoad(t)
			newLoad(t).connect(clientTo("198.51.100.2", "198.51.100.9:443").Client, 20)
			selfReport(t, s)
			for i := range 360 {
				c := bindsTo(fmt.Sprintf("127.7.%d.%d", i%tt.sources/250, 1+i%tt.sources%250), fmt.Sprintf("198.51.100.7:%d", 1000+i%tt.destinations))
				l.connect(c, 1)
				if i%90 == 89 {
					selfReport(t, s)
				}
			}
			bound := distinct(t, l.open)
			fresh := newScanner(t, cfg)
			for range 2 {
				r := selfReport(t, fresh)
				checkPossible(t, &r, bound)
				if r.BoundPorts+r.BoundUnknown != bound {
					t.Errorf("a new scanner: %d ports are bound, and %d may be, want %d in all", r.BoundPorts, r.BoundUnknown, bound)
				}
			}
			r := selfReport(t, s)
			if r.BoundPorts != bound || r.BoundUnknown != 0 {
				t.Errorf("%d ports are bound, and %d may be, want %d and 0", r.BoundPorts, r.BoundUnknown, bound)
			}
			victim := plainFrom("198.51.100.3", "198.51.100.9:443")
			if granted, err := victim.Fill(t, 400); granted != 400-bound {
				t.Errorf("plain connect() got %d ports, then %v, want %d", granted, err, 400-bound)
			}
		})
	}
}

// TestPossibleLongLived has long-lived clients that bind. A new Scanner does not know of any port who got it, and plain connect() to
// the same destinations tells nothing of these ports. Then plain connect() to another destination fills it.
func TestPossibleLongLived(t *testing.T) {
	for name, tt := range map[string]struct {
		bind               netnstest.Bind
		destinations, each int
		plain              int // to each destination
	}{
		"one plain connection":              {bind: netnstest.BindFirst, destinations: 1, each: 34, plain: 1},
		"plain connections fill a parity":   {bind: netnstest.BindFirst, destinations: 1, each: 34, plain: 45},
		"ports of both parities":            {bind: netnstest.BindReuseAddr, destinations: 6, each: 10, plain: 1},
		"small pools":                       {bind: netnstest.BindReuseAddr, destinations: 10, each: 6, plain: 1},
		"small pools that grow to be large": {bind: netnstest.BindReuseAddr, destinations: 6, each: 9, plain: 5},
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
			client := func(i int, bind netnstest.Bind) netnstest.Client {
				return clientTo("198.51.100.1", fmt.Sprintf("198.51.100.%d:80", 20+i)).bind(bind).Client
			}
			bound := tt.destinations * tt.each
			l := newLoad(t)
			for i := range tt.destinations {
				l.connect(client(i, tt.bind), tt.each)
			}
			if n := distinct(t, l.open); n != bound {
				t.Fatalf("%d ports are bound, want %d", n, bound)
			}
			s := newScanner(t, testConfig())
			check := func() {
				t.Helper()
				r := selfReport(t, s)
				checkPossible(t, &r, bound)
			}
			check()
			check()
			for i := range tt.destinations {
				if n := l.connect(client(i, netnstest.BindNoPort), tt.plain); n != tt.plain {
					t.Fatalf("plain connect() got %d ports", n)
				}
				check()
			}
			victim := newLoad(t)
			to := plainFrom("198.51.100.2", "198.51.100.9:443").Client
			for _, n := range []int{(100 - bound) / 2, 100 - bound - (100-bound)/2} {
				if got := victim.connect(to, n); got != n {
					t.Fatalf("plain connect() got %d ports, want %d", got, n)
				}
				check()
				check()
			}
			if victim.connect(to, 1) != 0 {
				t.Error("plain connect() got a port too many")
			}
			if r := selfReport(t, s); r.MaxPossibleUtilization != 1 {
				t.Errorf("no port is free, and possible utilization is %v", r.MaxPossibleUtilization)
			}
		})
	}
}

// TestPossiblePlain has many pools of plain connect(), on one source or on several, that fill, stay, drain and churn. Each
// is more than half full, so that all ports would be in use if those of all pools were bound. A Scanner that starts at
// any time does not take them for that for longer than for some scans, and one that was there from the beginning hardly ever.
func TestPossiblePlain(t *testing.T) {
	const ports, pools = 200, 10
	const patience, runningPatience = 10, 2 // scans in a row
	for name, pool := range map[string]func(i int) netnstest.Client{
		"one source": func(i int) netnstest.Client {
			return plainFrom("198.51.100.1", fmt.Sprintf("198.51.100.%d:80", 20+i)).Client
		},
		"several sources": func(i int) netnstest.Client {
			return plainFrom(fmt.Sprintf("198.51.100.%d", 20+i), "198.51.100.1:80").Client
		},
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("40000 %d", 40000+ports-1))
			var loads [pools]*load
			for i := range loads {
				loads[i] = newLoad(t)
			}
			running := newScanner(t, testConfig())
			random := newRandom(t)
			unsure, scans := map[*Scanner]int{}, 0
			check := func(scanners ...*Scanner) {
				t.Helper()
				for _, s := range scanners {
					r := selfReport(t, s)
					scans++
					unsure[s]++
					if r.MaxPossibleUtilization < 0.8 || r.MaxUtilization >= 0.8 {
						unsure[s] = 0
					}
					if unsure[s] > patience || s == running && unsure[s] > runningPatience {
						t.Errorf("scan %d: for %d scans, utilization is %v, possibly %v; %d ports may be bound", scans, unsure[s], r.MaxUtilization, r.MaxPossibleUtilization, r.BoundUnknown)
					}
					if r.BoundPorts != 0 {
						t.Errorf("scan %d: %d ports of plain connect() are bound", scans, r.BoundPorts)
					}
				}
			}
			for _, level := range []int{40, 110, 150, 190, 130, 70, 150} {
				for i, l := range loads {
					l.shuffle()
					if n := len(l.open); n > level {
						l.close(n - level)
					} else {
						l.connect(pool(i), level-n)
					}
				}
				fresh := newScanner(t, testConfig())
				check(running, fresh)
				for range 10 { // churn
					for i, l := range loads {
						n := 1 + random.IntN(20)
						l.shuffle()
						l.close(n)
						l.connect(pool(i), n)
					}
					check(running, fresh)
				}
			}
		})
	}
}

// pastTick is a time after which connections are known to be later than a scan: their ages are exact to some ticks of up to 10 ms.
const pastTick = 50 * time.Millisecond

// TestPossibleTimestamps switches tcp_timestamps on while sockets in TIME_WAIT exist: these never give up their ports.
func TestPossibleTimestamps(t *testing.T) {
	for name, c := range map[string]oracleClient{
		"remote":   clientTo("198.51.100.1", "198.51.100.7:80"),
		"loopback": clientTo("127.0.0.1", "127.0.0.9:80"),
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40019")
			netnstest.Sysctl(t, "ipv4/tcp_timestamps", "0")
			begin := setReuse(t, 1)
			listener := netnstest.Listen(t, c.Destination.String(), false)
			s := newScanner(t, testConfig())
			netnstest.TimeWait(t, c.Client, listener, 8)
			selfReport(t, s)
			netnstest.TimeWait(t, c.Client, listener, 8) // before the next scan, too
			time.Sleep(300 * time.Millisecond)           // on a busy machine, a scan can take them for later ones
			netnstest.Sysctl(t, "ipv4/tcp_timestamps", "1")
			want := func(s *Scanner, low, high int) {
				t.Helper()
				d, _ := destinationOf(selfReport(t, s), c.source, c.Destination)
				if d.Utilization != float64(low)/20 || d.PossibleUtilization != float64(high)/20 {
					t.Errorf("utilization %v, possibly %v, want %d / 20, %d / 20", d.Utilization, d.PossibleUtilization, low, high)
				}
			}
			want(s, 16, 16)
			fresh := newScanner(t, testConfig())
			want(fresh, 16, 16) // too young, whatever they used

			time.Sleep(pastTick)
			netnstest.TimeWait(t, c.Client, listener, 2) // with timestamps
			begin()
			want(s, 16, 16)
			want(fresh, 0, 16)
			want(newScanner(t, testConfig()), 0, 18)
			if netnstest.IsHostRoot() {
				if d, _ := destinationOf(collectExact(t), c.source, c.Destination); d.Utilization != 0.8 || d.PossibleUtilization != 0.8 {
					t.Errorf("with the exact reader: utilization %v, possibly %v, want 0.8", d.Utilization, d.PossibleUtilization)
				}
			}
			if granted, err := c.Fill(t, 20); granted != 4 {
				t.Errorf("connect() got %d ports, then %v, want 4", granted, err)
			}
		})
	}
}

// earlierClient is a client in a range of 40 ports, and an exporter that sees tcp_timestamps switched on while some
// connections are open.
type earlierClient struct {
	oracleClient
	t        *testing.T
	scanner  *Scanner
	listener int
	begin    func() // see setReuse
	earlier  []pair // that began before
}

// A pair is the two ends of a connection.
type pair struct{ client, server int }

// newEarlierClient opens so many connections before the change.
func newEarlierClient(t *testing.T, source, destination string, earlier int) *earlierClient {
	t.Helper()
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40039")
	netnstest.Sysctl(t, "ipv4/tcp_timestamps", "0")
	e := &earlierClient{oracleClient: clientTo(source, destination), t: t, scanner: newScanner(t, testConfig()), begin: setReuse(t, 1)}
	e.listener = netnstest.Listen(t, destination, false)
	for range earlier {
		e.earlier = append(e.earlier, e.open())
	}
	selfReport(t, e.scanner)
	netnstest.Sysctl(t, "ipv4/tcp_timestamps", "1")
	e.want(earlier, earlier)
	time.Sleep(pastTick)
	return e
}

// open opens a connection.
func (e *earlierClient) open() pair {
	client, server := netnstest.Pair(e.t, e.Client, e.listener)
	e.t.Cleanup(func() { netnstest.Hangup(client); netnstest.Hangup(server) })
	return pair{client, server}
}

// close closes connections, so that the client's ends are in TIME_WAIT.
func (e *earlierClient) close(pairs []pair) {
	e.t.Helper()
	for _, p := range pairs {
		_ = unix.Shutdown(p.client, unix.SHUT_WR)
		if _, err := unix.Read(p.server, make([]byte, 1)); err != nil {
			e.t.Fatal(err)
		}
		_ = unix.Shutdown(p.server, unix.SHUT_WR)
	}
}

// want checks the utilization, and the possible one, as numbers of ports.
func (e *earlierClient) want(low, high int) {
	e.t.Helper()
	d, _ := destinationOf(selfReport(e.t, e.scanner), e.source, e.Destination)
	if d.Utilization != float64(low)/40 || d.PossibleUtilization != float64(high)/40 {
		e.t.Errorf("utilization %v, possibly %v, want %d / 40, %d / 40", d.Utilization, d.PossibleUtilization, low, high)
	}
}

// wantExact checks that the exact reader has a utilization, as a number of ports, and that connect() gets all others.
func (e *earlierClient) wantExact(used int) {
	e.t.Helper()
	if netnstest.IsHostRoot() {
		if d, _ := destinationOf(collectExact(e.t), e.source, e.Destination); d.Utilization != float64(used)/40 || d.PossibleUtilization != float64(used)/40 {
			e.t.Errorf("with the exact reader: utilization %v, possibly %v, want %d / 40", d.Utilization, d.PossibleUtilization, used)
		}
	}
	if granted, err := e.Fill(e.t, 40); granted != 40-used {
		e.t.Errorf("connect() got %d ports, then %v, want %d", granted, err, 40-used)
	}
}

// TestPossibleEarlierClosed closes connections after tcp_timestamps was switched on that began before: they never give up
// their ports, whatever later ones to the same destination do.
func TestPossibleEarlierClosed(t *testing.T) {
	for name, c := range map[string]struct{ source, destination string }{
		"remote":   {"198.51.100.1", "198.51.100.7:80"},
		"loopback": {"127.0.0.1", "127.0.0.9:80"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEarlierClient(t, c.source, c.destination, 16)
			e.close(e.earlier[:8])
			e.begin()
			e.want(8, 16)
			e.open() // it says that the destination uses timestamps
			e.want(9, 17)
			e.close(e.earlier[8:])
			netnstest.TimeWait(t, e.Client, e.listener, 3)
			e.begin()
			for range 2 {
				e.want(1, 17)
			}
			e.wantExact(17)
		})
	}
}

// TestPossibleEarlierOpen has a connection that began before tcp_timestamps was switched on, and stays open. That it does not
// use timestamps says nothing of those that began later.
func TestPossibleEarlierOpen(t *testing.T) {
	e := newEarlierClient(t, "198.51.100.1", "198.51.100.7:80", 4)
	netnstest.TimeWait(t, e.Client, e.listener, 12)
	e.begin()
	for range 2 {
		e.want(4, 16)
	}
	e.open()
	for range 2 {
		e.want(5, 5)
	}
	e.wantExact(5)
}

//go:build linux

package scan

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// The oracle is the real kernel: it must grant as many ports as the report says are free.

// testConfig returns a Config for a full report of the test's namespace.
func testConfig() Config {
	return Config{
		Proc:           "/proc",
		Limits:         pool.Limits{MinPorts: 1, Most: 1 << 20},
		TimeWaitLength: 60 * time.Second,
		Timeout:        30 * time.Second,
		Logger:         slog.New(slog.DiscardHandler),
		NamespaceLimit: 10000,
	}
}

// newScanner returns a Scanner. The test fails if it cannot be made.
func newScanner(tb testing.TB, cfg Config) *Scanner {
	tb.Helper()
	s, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// collect returns a report of the test's namespace.
func collect(t *testing.T) pool.Report {
	t.Helper()
	return reportOf(t, newScanner(t, testConfig()))
}

// reportOf returns a Scanner's report of the test's namespace.
func reportOf(t *testing.T, s *Scanner) pool.Report {
	t.Helper()
	snapshot, err := s.Check()
	if err != nil || snapshot.Namespaces[0].TCP.Err != nil {
		t.Fatalf("collect: %v, %v", err, snapshot.Namespaces[0].TCP.Err)
	}
	return snapshot.Namespaces[0].TCP.Report
}

// exactScanner returns a Scanner with the exact reader, for all tests of this process.
var exactScanner = sync.OnceValues(func() (*Scanner, error) {
	cfg := testConfig()
	cfg.Exact = true
	return New(cfg)
})

// collectExact is collect with the exact reader.
func collectExact(t *testing.T) pool.Report {
	t.Helper()
	netnstest.HostRoot(t)
	s, err := exactScanner()
	if err != nil {
		t.Fatal(err)
	}
	return reportOf(t, s)
}

// A reader is a way to read sockets.
type reader struct {
	name    string
	collect func(*testing.T) pool.Report
}

// readers returns all readers that this user may use.
func readers() []reader {
	all := []reader{{"dump", collect}, {"exact", collectExact}}
	if !netnstest.IsHostRoot() {
		return all[:1]
	}
	return all
}

// freeTo returns how many ports for a destination are free by the report.
func freeTo(r pool.Report, source netip.Addr, destination netip.AddrPort) int {
	if d, ok := destinationOf(r, source, destination); ok {
		return r.CapacityPorts - (d.Held - d.Reusable) - d.BoundByOthers
	}
	return r.CapacityPorts - r.BoundPorts
}

// destinationOf returns a destination, if the report has it.
func destinationOf(r pool.Report, source netip.Addr, destination netip.AddrPort) (d pool.Destination, ok bool) {
	for _, d := range r.Destinations {
		if d.Source == source && d.Address == destination {
			return d, true
		}
	}
	return pool.Destination{}, false
}

// sourceOf returns the source with that address. The report must have it.
func sourceOf(t *testing.T, r pool.Report, source netip.Addr) pool.Source {
	t.Helper()
	for _, s := range r.Sources {
		if s.Address == source {
			return s
		}
	}
	t.Fatalf("no source %v in the report: %+v", source, r.Sources)
	return pool.Source{}
}

// An oracleClient is a client with a known source address.
type oracleClient struct {
	netnstest.Client
	source netip.Addr
}

func clientTo(source, destination string) oracleClient {
	return oracleClient{netnstest.Client{Destination: netip.MustParseAddrPort(destination)}, netip.MustParseAddr(source)}
}

func (c oracleClient) mapped() oracleClient {
	c.Mapped = true
	return c
}

func (c oracleClient) on(device string) oracleClient {
	c.Device = device
	return c
}

func (c oracleClient) bind(b netnstest.Bind) oracleClient {
	c.Bind, c.Source = b, netip.AddrPortFrom(c.source, 0)
	return c
}

// checkConnect connects until connect() fails. It compares the number of connections with the free
// ports of the report of each reader. The kernel may grant slack fewer.
func checkConnect(t *testing.T, c oracleClient, slack int) {
	t.Helper()
	checkReaders(t, c, slack, readers()...)
}

// checkExact is checkConnect for what only the exact reader knows.
func checkExact(t *testing.T, c oracleClient) {
	t.Helper()
	checkReaders(t, c, 0, reader{"exact", collectExact})
}

func checkReaders(t *testing.T, c oracleClient, slack int, readers ...reader) {
	t.Helper()
	var before []pool.Report
	most := 0
	for _, read := range readers {
		r := read.collect(t)
		before = append(before, r)
		most = max(most, freeTo(r, c.source, c.Destination))
	}
	granted, refusal := c.Fill(t, most+10)
	if !errors.Is(refusal, unix.EADDRNOTAVAIL) {
		t.Errorf("connect() ended with %v, want EADDRNOTAVAIL", refusal)
	}
	for i, read := range readers {
		before, after := before[i], read.collect(t)
		free := freeTo(before, c.source, c.Destination)
		if granted > free || granted < free-slack {
			t.Errorf("%s: the report says that %d ports are free, connect() granted %d", read.name, free, granted)
		}
		used := float64(before.CapacityPorts-free) / float64(before.CapacityPorts)
		d, ok := destinationOf(before, c.source, c.Destination)
		if ok && math.Abs(d.Utilization-used) > 1e-9 {
			t.Errorf("%s: utilization is %v with %d of %d ports free", read.name, d.Utilization, free, before.CapacityPorts)
		}
		if d.Utilization == 1 && granted > 0 {
			t.Errorf("%s: utilization was 1, but connect() granted %d", read.name, granted)
		}
		d, ok = destinationOf(after, c.source, c.Destination)
		if granted == free && d.Utilization != 1 && (ok || granted > 0) {
			t.Errorf("%s: utilization is %v after connect() failed, want 1", read.name, d.Utilization)
		}
		if after.MaxUtilization != 1 && granted == free {
			t.Errorf("%s: greatest utilization is %v after connect() failed, want 1", read.name, after.MaxUtilization)
		}
	}
}

// checkBind is checkConnect for clients that bind first. The source must have a socket already.
func checkBind(t *testing.T, c oracleClient, slack int) {
	t.Helper()
	var free []int
	for _, read := range readers() {
		src := sourceOf(t, read.collect(t), c.source)
		free = append(free, src.Capacity-src.Ports)
	}
	granted, refusal := c.Fill(t, slices.Max(free)+10)
	if !errors.Is(refusal, unix.EADDRINUSE) {
		t.Errorf("bind() ended with %v, want EADDRINUSE", refusal)
	}
	for i, read := range readers() {
		if granted > free[i] || granted < free[i]-slack {
			t.Errorf("%s: the report says that %d ports are free, bind() granted %d", read.name, free[i], granted)
		}
		if u := sourceOf(t, read.collect(t), c.source).Utilization; granted == free[i] && u != 1 {
			t.Errorf("%s: source utilization is %v after bind() failed, want 1", read.name, u)
		}
	}
}

// TestOracleMatrix tests each combination of range, reserved ports, listener and client.
func TestOracleMatrix(t *testing.T) {
	ranges := []struct {
		name, ports string
		slack       int // an odd-sized range: one search sees one port fewer
	}{
		{"even", "40000 40019", 0},
		{"odd", "40000 40020", 1},
		{"one", "40004 40004", 0},
	}
	reserved := []struct{ name, ports string }{
		{"none", ""},
		{"inside", "40002,40010-40013"},
		{"outside", "39000-39999,50000"},
		{"across", "39990-40003,40019-40100"},
	}
	listeners := []struct {
		name, addr string
		v6only     bool
	}{
		{name: "none"},
		{name: "other IPv4", addr: "127.0.9.9:40004"},
		{name: "same IPv4", addr: "198.51.100.1:40004"},
		{name: "wildcard IPv4", addr: "0.0.0.0:40004"},
		{name: "other IPv6", addr: "[::1]:40004", v6only: true},
		{name: "wildcard", addr: "[::]:40004"},
		{name: "wildcard v6only", addr: "[::]:40004", v6only: true},
		{name: "reserved", addr: "0.0.0.0:40002"},
	}
	v4 := clientTo("198.51.100.1", "198.51.100.7:80")
	v6 := clientTo("2001:db8::1", "[2001:db8::7]:80")
	clients := []struct {
		name  string
		c     oracleClient
		check func(*testing.T, oracleClient, int)
	}{
		{"IPv4", v4, checkConnect},
		{"IPv6", v6.bind(netnstest.BindNoPort), checkConnect},
		{"mapped", v4.mapped(), checkConnect},
		{"no port", v4.bind(netnstest.BindNoPort), checkConnect},
		{"bind IPv4", v4.bind(netnstest.BindFirst), checkBind},
		{"bind IPv6", v6.bind(netnstest.BindFirst), checkBind},
		{"bind mapped", v4.mapped().bind(netnstest.BindFirst), checkBind},
		{"bind reuseaddr", v4.bind(netnstest.BindReuseAddr), checkBind},
	}

	for _, rng := range ranges {
		for _, res := range reserved {
			for _, lis := range listeners {
				for _, cli := range clients {
					name := fmt.Sprintf("%s range/reserved %s/listener %s/%s", rng.name, res.name, lis.name, cli.name)
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						netnstest.New(t)
						netnstest.Sysctl(t, "ipv4/ip_local_port_range", rng.ports)
						netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", res.ports)
						if lis.addr != "" {
							netnstest.Listen(t, lis.addr, lis.v6only)
						}
						// A source is in the report only if it has a socket.
						if granted, refusal := cli.c.Fill(t, 1); granted == 0 {
							if r := collect(t); r.CapacityPorts != 0 || r.MaxUtilization != 1 {
								t.Errorf("not one port was granted (%v), but capacity is %d and the greatest utilization %v", refusal, r.CapacityPorts, r.MaxUtilization)
							}
							return
						}
						cli.check(t, cli.c, rng.slack)
					})
				}
			}
		}
	}
}

// TestOracleWideRange fills the widest range that the kernel allows.
func TestOracleWideRange(t *testing.T) {
	t.Parallel()
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "1024 65535")
	netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "1024-1100,8080,65500-65535")
	netnstest.Listen(t, "0.0.0.0:9090", false)
	c := clientTo("198.51.100.1", "198.51.100.7:80")

	// These clients bind their ports: with connect() alone, this would take a minute.
	const first, last = 10000, 65000
	for port := first; port < last; port += 11000 {
		bound := c.bind(netnstest.BindFirst).Client
		bound.Source = netip.AddrPortFrom(c.source, uint16(port))
		netnstest.HoldInChild(t, netnstest.Holding{Client: bound, Count: 11000, NextSourcePort: true})
	}

	const held = last - first
	wantFree := 65535 - 1024 + 1 - 77 - 1 - 36 - 1 - held
	r := collect(t)
	if got := freeTo(r, c.source, c.Destination); got != wantFree {
		t.Fatalf("free: got %d, want %d", got, wantFree)
	}
	// Hold most of the rest too: each search for a port takes long now.
	bound := c.bind(netnstest.BindFirst).Client
	bound.Source = netip.AddrPortFrom(c.source, 1101)
	netnstest.HoldInChild(t, netnstest.Holding{Client: bound, Count: 8000 - 1101, NextSourcePort: true})
	checkConnect(t, c, 0)
}

// TestOracleAllPorts has a range of all ports, of which most are reserved: those at both ends are left. Clients that connect and
// those that bind get as many as are said to be free, of TCP and UDP.
func TestOracleAllPorts(t *testing.T) {
	for _, tt := range []struct {
		name  string
		check func(t *testing.T)
	}{
		{"connect", func(t *testing.T) { checkConnect(t, clientTo("198.51.100.1", "198.51.100.7:80"), 1) }},
		{"connect IPv6", func(t *testing.T) {
			checkConnect(t, clientTo("2001:db8::1", "[2001:db8::7]:80").bind(netnstest.BindNoPort), 1)
		}},
		{"UDP", func(t *testing.T) { checkUDP(t, newScanner(t, testConfig()), pool.UDPIPv4) }},
		{"bind", func(t *testing.T) {
			c := clientTo("198.51.100.1", "198.51.100.7:80").bind(netnstest.BindFirst)
			c.Hold(t, 1) // so that the source is in the report
			checkBind(t, c, 1)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_unprivileged_port_start", "0")
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "1 65535")
			netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "20-65500")
			netnstest.Listen(t, "0.0.0.0:1", false)
			netnstest.Listen(t, "127.0.0.9:65535", false)
			if r := collect(t); r.CapacityPorts != 18+34 {
				t.Fatalf("capacity %d, want 52", r.CapacityPorts)
			}
			tt.check(t)
		})
	}
}

// TestOraclePools checks which connections share a pool.
func TestOraclePools(t *testing.T) {
	base := clientTo("198.51.100.1", "198.51.100.7:80")
	tests := []struct {
		name   string
		other  oracleClient
		shared bool
	}{
		{"mapped and IPv4", base.mapped(), true},
		{"named source address", base.bind(netnstest.BindNoPort), true},
		{"second source address", clientTo("203.0.113.1", "198.51.100.7:80").bind(netnstest.BindNoPort), false},
		{"second port", clientTo("198.51.100.1", "198.51.100.7:81"), false},
		{"second address", clientTo("198.51.100.1", "198.51.100.8:80"), false},
		{"IPv6", clientTo("2001:db8::1", "[2001:db8::7]:80").bind(netnstest.BindNoPort), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40029")
			base.Hold(t, 7)
			tt.other.Hold(t, 5)

			r := collect(t)
			want := 30 - 7
			if tt.shared {
				want -= 5
			}
			if got := freeTo(r, base.source, base.Destination); got != want {
				t.Errorf("free to the first destination: got %d, want %d", got, want)
			}
			checkConnect(t, base, 0)
			if !tt.shared {
				checkConnect(t, tt.other, 0)
			}
		})
	}
}

// TestOracleBindParity checks that the parity distinguishes clients that may bind first from clients
// that only connect.
func TestOracleBindParity(t *testing.T) {
	for _, low := range []int{40000, 40001} {
		for _, tt := range []struct {
			name string
			bind netnstest.Bind
			want int
		}{
			{"connect", netnstest.BindNoPort, 0},
			{"bind", netnstest.BindFirst, 400},
		} {
			t.Run(fmt.Sprintf("low %d/%s", low, tt.name), func(t *testing.T) {
				t.Parallel()
				netnstest.New(t)
				netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("%d %d", low, low+999))
				c := clientTo("198.51.100.1", "198.51.100.7:80").bind(tt.bind)
				c.Hold(t, 400)
				src := sourceOf(t, collect(t), c.source)
				if src.Ports != 400 || src.MayBound != tt.want {
					t.Errorf("ports %d, of which %d may be bound, want 400 and %d", src.Ports, src.MayBound, tt.want)
				}
			})
		}
	}
}

// TestOracleBindFirstBlocksConnect checks a limitation in modes.md: connect() cannot choose ports
// that other clients bound before they connected, and a dump does not show which these are. The
// possible utilization has them.
func TestOracleBindFirstBlocksConnect(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	clientTo("198.51.100.1", "198.51.100.8:80").bind(netnstest.BindFirst).Hold(t, 30)

	c := clientTo("198.51.100.1", "198.51.100.7:80")
	r := collect(t)
	granted, _ := c.Fill(t, 200)
	if free := freeTo(r, c.source, c.Destination); granted != free-30 {
		t.Errorf("connect() granted %d, want the %d that the report calls free less 30 bound ones", granted, free)
	}
	if got := sourceOf(t, r, c.source).MayBound; got != 30 || r.MaxPossibleUtilization != 0.3 {
		t.Errorf("%d ports of the source may be bound, possible utilization %v, want 30, 0.3", got, r.MaxPossibleUtilization)
	}
}

// TestOracleStates puts ten sockets into each state and counts them.
func TestOracleStates(t *testing.T) {
	const n = 10
	dst := clientTo("198.51.100.1", "198.51.100.7:80")
	hole := clientTo("198.51.100.1", "192.0.2.7:80") // packets are lost
	leave := func(t *testing.T, fd int) { t.Cleanup(func() { unix.Close(fd) }) }

	tests := []struct {
		name  string
		c     oracleClient
		state tcpstate.State
		make  func(t *testing.T, c netnstest.Client, listener int)
	}{
		{"established", dst, tcpstate.Established, func(t *testing.T, c netnstest.Client, listener int) {
			client, server := netnstest.Pair(t, c, listener)
			leave(t, client)
			leave(t, server)
		}},
		{"syn_sent", hole, tcpstate.SynSent, func(t *testing.T, c netnstest.Client, _ int) {
			fd, err := c.Dial()
			if err != nil {
				t.Fatal(err)
			}
			leave(t, fd)
		}},
		{"fin_wait1", hole, tcpstate.FinWait1, func(t *testing.T, c netnstest.Client, _ int) {
			fd, err := c.Connect()
			if err != nil {
				t.Fatal(err)
			}
			leave(t, fd)
			const repairOff = -1 // TCP_REPAIR_OFF_NO_WP
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, repairOff); err != nil {
				t.Fatal(err)
			}
			if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
				t.Fatal(err)
			}
		}},
		{"fin_wait2", dst, tcpstate.FinWait2, func(t *testing.T, c netnstest.Client, listener int) {
			client, server := netnstest.Pair(t, c, listener)
			leave(t, client)
			leave(t, server)
			if err := unix.Shutdown(client, unix.SHUT_WR); err != nil {
				t.Fatal(err)
			}
		}},
		{"fin_wait2 mini-socket", dst, tcpstate.FinWait2, func(t *testing.T, c netnstest.Client, listener int) {
			client, server := netnstest.Pair(t, c, listener)
			leave(t, server)
			unix.Close(client)
		}},
		{"close_wait", dst, tcpstate.CloseWait, func(t *testing.T, c netnstest.Client, listener int) {
			client, server := netnstest.Pair(t, c, listener)
			leave(t, client)
			netnstest.Hangup(server)
		}},
		{"time_wait", dst, tcpstate.TimeWait, func(t *testing.T, c netnstest.Client, listener int) {
			netnstest.TimeWait(t, c, listener, 1)
		}},
		{"mapped time_wait", dst.mapped(), tcpstate.TimeWait, func(t *testing.T, c netnstest.Client, listener int) {
			netnstest.TimeWait(t, c, listener, 1)
		}},
		{"IPv6 time_wait", clientTo("2001:db8::1", "[2001:db8::7]:80").bind(netnstest.BindNoPort), tcpstate.TimeWait, func(t *testing.T, c netnstest.Client, listener int) {
			netnstest.TimeWait(t, c, listener, 1)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40029")
			// A reuse of FIN_WAIT2 mini-sockets would show here. Without a delay, the next second would end what
			// the test compares: TestOracleFinWait2 is about these kernels.
			if netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "0"); hasReuseDelay() {
				netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "1")
				setReuseDelay(t, time.Minute)
			}
			listener := netnstest.Listen(t, "[::]:80", false)
			for range n {
				tt.make(t, tt.c.Client, listener)
			}

			var want [len(pool.States)]int
			want[slices.Index(pool.States[:], tt.state)] = n
			var d pool.Destination
			// The peer acknowledges a FIN after up to 200 ms (TCP_DELACK_MAX).
			for deadline := time.Now().Add(30 * time.Second); d.Ports != want && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
				r := collect(t)
				if len(r.Destinations) != 1 {
					t.Fatalf("destinations: got %+v, want one", r.Destinations)
				}
				d = r.Destinations[0]
			}
			if diff := cmp.Diff(want, d.Ports); diff != "" {
				t.Errorf("ports by state (-want +got):\n%s", diff)
			}
			if d.Held != n || d.Reusable != 0 {
				t.Errorf("held %d, reusable %d, want %d and 0", d.Held, d.Reusable, n)
			}
			checkConnect(t, tt.c, 0)
		})
	}
}

// TestOracleInbound checks that connections to a listener in the range belong to no pool.
func TestOracleInbound(t *testing.T) {
	for _, listen := range []string{"198.51.100.7:40010", "0.0.0.0:40010", "[::]:40010"} {
		t.Run(listen, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40029")
			listener := netnstest.Listen(t, listen, false)
			out := clientTo("198.51.100.1", "198.51.100.7:40010")
			for range 12 {
				client, server := netnstest.Pair(t, out.Client, listener)
				t.Cleanup(func() { unix.Close(client) })
				t.Cleanup(func() { unix.Close(server) })
			}

			r := collect(t)
			if len(r.Destinations) != 1 || r.Destinations[0].Address != out.Destination || r.Destinations[0].Held != 12 {
				t.Errorf("destinations: got %+v, want %v with 12 ports", r.Destinations, out.Destination)
			}
			if len(r.Sources) != 1 || r.Sources[0].Address != out.source || r.Sources[0].Ports != 12 {
				t.Errorf("sources: got %+v, want %v with 12 ports", r.Sources, out.source)
			}
			if r.BlockedPorts != 1 || r.CapacityPorts != 29 {
				t.Errorf("blocked %d, capacity %d, want 1 and 29", r.BlockedPorts, r.CapacityPorts)
			}
			checkConnect(t, out, 0)
		})
	}
}

// TestOracleWithoutIPv6 scans a host on which IPv6 is disabled.
func TestOracleWithoutIPv6(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv6/conf/all/disable_ipv6", "1")
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40029")
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	c.Hold(t, 3)
	if got := freeTo(collect(t), c.source, c.Destination); got != 27 {
		t.Errorf("free: got %d, want 27", got)
	}
	checkConnect(t, c, 0)
}

// hasReuseDelay reports whether the kernel has tcp_tw_reuse_delay: since Linux 6.14.
func hasReuseDelay() bool {
	_, err := os.Stat("/proc/sys/net/ipv4/tcp_tw_reuse_delay")
	return err == nil
}

// setReuseDelay sets tcp_tw_reuse_delay and returns after which age a port is reusable for sure: 1 s on
// kernels that do not have the sysctl.
func setReuseDelay(t *testing.T, delay time.Duration) time.Duration {
	t.Helper()
	if !hasReuseDelay() {
		return time.Second
	}
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse_delay", strconv.FormatInt(delay.Milliseconds(), 10))
	return delay
}

// setReuse sets tcp_tw_reuse once begin is called, with a short delay. begin returns when all ports in TIME_WAIT by
// then are old enough. Before, no connection takes over the port of another.
func setReuse(t *testing.T, reuse int) (begin func()) {
	t.Helper()
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "0")
	return func() {
		t.Helper()
		netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", strconv.Itoa(reuse))
		time.Sleep(setReuseDelay(t, time.Millisecond) + 30*time.Millisecond) // the kernel's clock has ticks of up to 10 ms
	}
}

// TestOracleReuse checks which ports in TIME_WAIT connect() takes over.
func TestOracleReuse(t *testing.T) {
	clients := []struct {
		name     string
		c        oracleClient
		listen   string
		loopback bool
	}{
		{"IPv4", clientTo("198.51.100.1", "198.51.100.7:80"), "198.51.100.7:80", false},
		{"IPv6", clientTo("2001:db8::1", "[2001:db8::7]:80").bind(netnstest.BindNoPort), "[2001:db8::7]:80", false},
		{"mapped", clientTo("198.51.100.1", "198.51.100.7:80").mapped(), "198.51.100.7:80", false},
		{"loopback IPv4", clientTo("127.0.0.1", "127.0.0.9:80"), "127.0.0.9:80", true},
		{"loopback IPv6", clientTo("::1", "[::1]:80"), "[::1]:80", true},
		{"loopback mapped", clientTo("127.0.0.1", "127.0.0.9:80").mapped(), "127.0.0.9:80", true},
		{"loopback destination only", clientTo("198.51.100.1", "127.0.0.9:80").bind(netnstest.BindNoPort), "127.0.0.9:80", true},
		{"loopback device", clientTo("198.51.100.1", "198.51.100.7:80").on("lo"), "198.51.100.7:80", true},
	}
	for _, reuse := range []int{0, 1, 2} {
		for _, timestamps := range []int{0, 1} {
			for _, older := range []bool{false, true} {
				if !older && !hasReuseDelay() {
					continue // any moment can be the end of a second: TestOracleReuseMoment
				}
				for _, cli := range clients {
					name := fmt.Sprintf("tcp_tw_reuse %d/tcp_timestamps %d/older %v/%s", reuse, timestamps, older, cli.name)
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						netnstest.New(t)
						netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40029")
						netnstest.Sysctl(t, "ipv4/tcp_timestamps", strconv.Itoa(timestamps))
						begin := setReuse(t, reuse)
						listener := netnstest.Listen(t, cli.listen, false)
						netnstest.TimeWait(t, cli.c.Client, listener, 20)
						if older {
							begin()
						} else {
							netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", strconv.Itoa(reuse))
							setReuseDelay(t, time.Minute)
						}

						want := 0
						if older && timestamps != 0 && (reuse == 1 || reuse == 2 && cli.loopback) {
							want = 20
						}
						r := collect(t)
						if len(r.Destinations) != 1 || r.Destinations[0].Held != 20 || r.Destinations[0].Reusable != want {
							t.Errorf("destinations: got %+v, want one with 20 ports, %d of them reusable", r.Destinations, want)
						}
						checkConnect(t, cli.c, 0)
					})
				}
			}
		}
	}
}

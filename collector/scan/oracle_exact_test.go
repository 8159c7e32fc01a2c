//go:build linux

package scan

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// The exact reader must be right where a dump cannot be: about ports that are bound and connections
// without timestamps.

// explicit returns the client with a source port of its choice.
func (c oracleClient) explicit(port uint16) oracleClient {
	c = c.bind(netnstest.BindFirst)
	c.Source = netip.AddrPortFrom(c.source, port)
	return c
}

// bindWith returns a socket of a source with an option, bound and not connected.
func bindWith(t *testing.T, family, option int, source string) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1),
		unix.Bind(fd, netnstest.Sockaddr(netip.MustParseAddrPort(source), family == unix.AF_INET6)))
	if err != nil {
		t.Fatalf("bind %s: %v", source, err)
	}
	return fd
}

// connectWith makes a connection from an address and port with an option, for the rest of the test.
func connectWith(t *testing.T, option int, source, destination string) {
	t.Helper()
	fd := bindWith(t, unix.AF_INET, option, source)
	t.Cleanup(func() { netnstest.CloseRepaired(fd) })
	err := errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1),
		unix.Connect(fd, netnstest.Sockaddr(netip.MustParseAddrPort(destination), false)))
	if err != nil {
		t.Fatalf("connect %s to %s: %v", source, destination, err)
	}
}

// accept makes connections to a listener whose port lies in the range, from ports outside of it, and
// closes the listener. The caller closes both ends.
func accept(t *testing.T, listen string, n int) (accepted, peers []int) {
	t.Helper()
	at := netip.MustParseAddrPort(listen)
	family, source := unix.AF_INET, "198.51.100.9:%d"
	if at.Addr().Is6() {
		family, source = unix.AF_INET6, "[2001:db8::9]:%d"
	}
	listener := bindWith(t, family, unix.SO_REUSEADDR, listen)
	if err := unix.Listen(listener, n); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		c := netnstest.Client{Bind: netnstest.BindFirst, Source: netip.MustParseAddrPort(fmt.Sprintf(source, 30000+i)), Destination: at}
		peer, server := netnstest.Pair(t, c, listener)
		accepted, peers = append(accepted, server), append(peers, peer)
	}
	netnstest.Hangup(listener)
	return accepted, peers
}

// TestOracleBound checks that the exact reader counts the ports that are lost to connect() because
// someone is bound to them: as many as the kernel withholds, for pools with and without sockets.
func TestOracleBound(t *testing.T) {
	netnstest.HostRoot(t)
	v4, other := clientTo("198.51.100.1", "198.51.100.7:80"), clientTo("198.51.100.1", "198.51.100.8:80")
	v6 := clientTo("2001:db8::1", "[2001:db8::7]:80")
	elsewhere := clientTo("203.0.113.1", "198.51.100.8:80")
	tests := []struct {
		name  string
		make  func(t *testing.T, listener int) // listener has port 80 on all addresses
		bound int
	}{
		{"nothing", func(*testing.T, int) {}, 0},
		{"connect", func(t *testing.T, _ int) { other.Hold(t, 9) }, 0},
		{"no port", func(t *testing.T, _ int) { v4.bind(netnstest.BindNoPort).Hold(t, 9) }, 0},
		{"bind to another destination", func(t *testing.T, _ int) { other.bind(netnstest.BindFirst).Hold(t, 9) }, 9},
		{"bind to the same destination", func(t *testing.T, _ int) { v4.bind(netnstest.BindFirst).Hold(t, 9) }, 9},
		{"bind on another address", func(t *testing.T, _ int) { elsewhere.bind(netnstest.BindFirst).Hold(t, 9) }, 9},
		{"bind of the other family", func(t *testing.T, _ int) { v6.bind(netnstest.BindFirst).Hold(t, 9) }, 9},
		{"bind mapped", func(t *testing.T, _ int) { other.mapped().bind(netnstest.BindFirst).Hold(t, 9) }, 9},
		{"bind beside connect", func(t *testing.T, _ int) {
			v4.Hold(t, 5)
			v4.bind(netnstest.BindFirst).Hold(t, 4)
			other.bind(netnstest.BindFirst).Hold(t, 3)
			other.Hold(t, 6)
		}, 7},
		{"explicit ports", func(t *testing.T, _ int) {
			for port := uint16(40003); port < 40009; port++ {
				other.explicit(port).Hold(t, 1)
			}
		}, 6},
		{"explicit ports out of range, reserved, or of a listener", func(t *testing.T, _ int) {
			for _, port := range []uint16{39999, 40032, 40030, 40002} {
				other.explicit(port).Hold(t, 1)
			}
		}, 0},
		{"one port to several servers", func(t *testing.T, _ int) {
			for i := range 5 {
				connectWith(t, unix.SO_REUSEADDR, "198.51.100.1:40003", fmt.Sprintf("198.51.100.%d:80", 10+i))
				connectWith(t, unix.SO_REUSEADDR, "198.51.100.1:40004", fmt.Sprintf("198.51.100.%d:80", 10+i))
			}
		}, 2},
		{"one port on several addresses", func(t *testing.T, _ int) {
			elsewhere.explicit(40003).Hold(t, 1)
			other.explicit(40003).Hold(t, 1)
		}, 1},
		{"SO_REUSEPORT", func(t *testing.T, _ int) {
			for i := range 5 {
				connectWith(t, unix.SO_REUSEPORT, "198.51.100.1:40003", fmt.Sprintf("198.51.100.%d:80", 10+i))
			}
		}, 1},
		{"bound port of a connect() on another address", func(t *testing.T, _ int) {
			other.Hold(t, 1)
			for port := uint16(40000); port < 40030; port++ { // one of them is that of other
				elsewhere.explicit(port).Hold(t, 1)
			}
		}, 29},
		{"bound port of a connect() on another address, SO_REUSEADDR", func(t *testing.T, _ int) {
			other.Hold(t, 1)
			for port := 40000; port < 40030; port++ { // this one has a negative fastreuse
				connectWith(t, unix.SO_REUSEADDR, fmt.Sprintf("203.0.113.1:%d", port), "198.51.100.8:80")
			}
		}, 29},
		{"accepted, listener gone", func(t *testing.T, _ int) {
			for _, listen := range []string{"198.51.100.1:40003", "[2001:db8::1]:40004"} {
				accepted, peers := accept(t, listen, 4)
				for _, fd := range slices.Concat(accepted, peers) {
					t.Cleanup(func() { unix.Close(fd) })
				}
			}
		}, 2},
		{"accepted and closed first, listener gone", func(t *testing.T, _ int) {
			accepted, peers := accept(t, "198.51.100.1:40003", 4)
			for i, fd := range accepted {
				netnstest.Hangup(fd)
				netnstest.Hangup(peers[i])
			}
		}, 1},
		{"bound and closed", func(t *testing.T, listener int) {
			netnstest.TimeWait(t, other.bind(netnstest.BindFirst).Client, listener, 9)
		}, 9},
		{"bound and closed, same destination", func(t *testing.T, listener int) {
			netnstest.TimeWait(t, v4.bind(netnstest.BindFirst).Client, listener, 9)
		}, 9},
		{"bound and closed IPv6", func(t *testing.T, listener int) {
			netnstest.TimeWait(t, v6.bind(netnstest.BindFirst).Client, listener, 9)
		}, 9},
		{"bound and gone", func(t *testing.T, _ int) {
			t.Run("hold", func(t *testing.T) {
				fd, err := other.bind(netnstest.BindFirst).Connect()
				if err != nil {
					t.Fatal(err)
				}
				netnstest.CloseRepaired(fd)
			})
		}, 0},
	}
	for _, reuse := range []int{0, 1} {
		for _, tt := range tests {
			for _, c := range []struct {
				name   string
				client oracleClient
			}{{"IPv4", v4}, {"mapped", v4.mapped()}, {"IPv6", v6.bind(netnstest.BindNoPort)}} {
				t.Run(fmt.Sprintf("tcp_tw_reuse %d/%s/%s", reuse, tt.name, c.name), func(t *testing.T) {
					t.Parallel()
					netnstest.New(t)
					netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40031")
					netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "40030")
					begin := setReuse(t, reuse)
					netnstest.Listen(t, "127.0.9.9:40002", false) // bind(ip, 0) tries odd ports first
					tt.make(t, netnstest.Listen(t, "[::]:80", false))
					begin()
					r := collectExact(t)
					if !r.BoundKnown || r.BoundPorts != tt.bound || r.CapacityPorts != 30 {
						t.Errorf("bound %d, known %v, capacity %d, want %d, true, 30", r.BoundPorts, r.BoundKnown, r.CapacityPorts, tt.bound)
					}
					checkExact(t, c.client)
				})
			}
		}
	}
}

// peerNamespace makes a network namespace with a listener on port 80, at 10.77.0.2 and
// fd77::2, that sends no timestamps if that is set. It returns the listener.
func peerNamespace(t *testing.T, timestamps int) (listener int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "peer")
	netnstest.Mount(t, path, func() {
		netnstest.Sysctl(t, "ipv4/tcp_timestamps", strconv.Itoa(timestamps))
		listener = netnstest.Listen(t, "[::]:80", false)
	})
	netnstest.IP(t, "link add a0 type veth peer name a1 netns "+path,
		"addr add 10.77.0.1/24 dev a0", "addr add fd77::1/64 dev a0 nodad", "link set a0 up")
	netnstest.In(t, path, func() {
		netnstest.IP(t, "addr add 10.77.0.2/24 dev a1", "addr add fd77::2/64 dev a1 nodad", "link set a1 up")
	})
	return listener
}

// waitTimeWait waits until n sockets are in TIME_WAIT, by the reports of the exact reader.
func waitTimeWait(t *testing.T, n int) {
	t.Helper()
	got := 0
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		got = 0
		for _, d := range collectExact(t).Destinations {
			got += d.Ports[slices.Index(pool.States[:], tcpstate.TimeWait)]
		}
		if got == n {
			return
		}
	}
	t.Fatalf("%d sockets in TIME_WAIT, want %d", got, n)
}

// TestOracleTimestamps checks that only connections that used timestamps leave ports that
// connect() takes over, whatever the sysctl says by then.
func TestOracleTimestamps(t *testing.T) {
	netnstest.HostRoot(t)
	clients := []struct {
		name string
		c    oracleClient
	}{
		{"IPv4", clientTo("10.77.0.1", "10.77.0.2:80")},
		{"mapped", clientTo("10.77.0.1", "10.77.0.2:80").mapped()},
		{"IPv6", clientTo("fd77::1", "[fd77::2]:80")},
	}
	for _, peer := range []int{0, 1} {
		for _, after := range []int{0, 1} { // tcp_timestamps once the connections are closed
			for _, bound := range []bool{false, true} {
				for _, cli := range clients {
					t.Run(fmt.Sprintf("peer %d/after %d/bound %v/%s", peer, after, bound, cli.name), func(t *testing.T) {
						t.Parallel()
						netnstest.New(t)
						netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40029")
						begin := setReuse(t, 1)
						c := cli.c
						want := 20 * peer
						if bound {
							c = c.bind(netnstest.BindFirst)
							want = 0
						}
						netnstest.TimeWait(t, c.Client, peerNamespace(t, peer), 20)
						waitTimeWait(t, 20)
						begin()
						netnstest.Sysctl(t, "ipv4/tcp_timestamps", strconv.Itoa(after))

						r := collectExact(t)
						// Before Linux 6.17, the iterator may skip a socket while the tests beside this one open and close theirs.
						for try := 0; try < 10 && (len(r.Destinations) != 1 || r.Destinations[0].Held != 20); try++ {
							r = collectExact(t)
						}
						if len(r.Destinations) != 1 || r.Destinations[0].Held != 20 || r.Destinations[0].Reusable != want {
							t.Errorf("destinations: got %+v, want one with 20 ports, %d of them reusable", r.Destinations, want)
						}
						const without = 30. / 60 // connections per second, if each holds its port for the whole of TIME_WAIT
						if c := r.Destinations[0].Ceiling; want == 0 && c > without || want != 0 && after != 0 && c <= without {
							t.Errorf("ceiling %v with %d reusable ports", c, want)
						}
						checkExact(t, cli.c)
					})
				}
			}
		}
	}
}

// TestOracleTimestampsMixed has both kinds of connections in one pool.
func TestOracleTimestampsMixed(t *testing.T) {
	netnstest.HostRoot(t)
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40029")
	begin := setReuse(t, 1)
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	listener := netnstest.Listen(t, "198.51.100.7:80", false)
	netnstest.TimeWait(t, c.Client, listener, 7)
	netnstest.Sysctl(t, "ipv4/tcp_timestamps", "0")
	netnstest.TimeWait(t, c.Client, listener, 5)
	netnstest.Sysctl(t, "ipv4/tcp_timestamps", "1")
	begin()
	if d := collectExact(t).Destinations[0]; d.Held != 12 || d.Reusable != 7 {
		t.Errorf("held %d, reusable %d, want 12 and 7", d.Held, d.Reusable)
	}
	checkExact(t, c)
}

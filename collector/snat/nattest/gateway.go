//go:build linux

package nattest

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/netns/netnstest"

	"golang.org/x/sys/unix"
)

// Addresses for packets of Send, Reply and Open. They belong to no host: nobody but the test
// answers. The gateway routes them to the client's and to the server's namespace.
var (
	Clients4 = netip.MustParsePrefix("10.3.0.0/16")
	Clients6 = netip.MustParsePrefix("fd03::/64")
	Servers4 = netip.MustParsePrefix("10.4.0.0/16")
	Servers6 = netip.MustParsePrefix("fd04::/64")
)

// Addresses for sockets, and those to which the gateway masquerades.
var (
	Client4  = netip.MustParseAddr("10.1.0.2")
	Client6  = netip.MustParseAddr("fd01::2")
	Server4  = netip.MustParseAddr("10.2.0.2")
	Server6  = netip.MustParseAddr("fd02::2")
	Gateway4 = netip.MustParseAddr("10.2.0.1")
	Gateway6 = netip.MustParseAddr("fd02::1")
)

// Host returns the address of host n of a prefix, counted from 0. Host 0 has address 1, because address 0
// of an IPv6 network is that of its routers (RFC 4291 section 2.6.1).
func Host(prefix netip.Prefix, n int) netip.Addr {
	b := prefix.Addr().AsSlice()
	binary.BigEndian.PutUint16(b[len(b)-2:], uint16(n+1))
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// A Gateway is the network namespace of the calling test. It forwards between the namespaces of a
// client and of a server.
type Gateway struct {
	tb             testing.TB
	client, server side
	lastID         uint16
}

// New moves the calling test to a new namespace, makes it a gateway, and loads a ruleset of nft(8).
// The interface to the client is named "client", that to the server is named "server".
func New(tb testing.TB, ruleset string) *Gateway {
	tb.Helper()
	netnstest.New(tb)
	g := &Gateway{
		tb:     tb,
		client: newSide(tb, "client", "1", Client4, Client6, Clients4, Clients6),
		server: newSide(tb, "server", "2", Server4, Server6, Servers4, Servers6),
	}
	netnstest.Sysctl(tb, "ipv4/ip_forward", "1")
	netnstest.Sysctl(tb, "ipv6/conf/all/forwarding", "1")
	g.warmUp()
	NFT(tb, ruleset)
	return g
}

// NFT changes the ruleset of the calling test's namespace with a script of nft(8).
func NFT(tb testing.TB, script string) {
	tb.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("nft -f - of %q: %v: %s", script, err, out)
	}
}

// Postrouting returns a ruleset that has one rule for TCP and UDP packets to the server, e.g.
// "masquerade to :40000-40099".
func Postrouting(rule string) string {
	return `
table inet nat {
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "server" meta l4proto { tcp, udp } ` + rule + `
	}
}
`
}

// InClient calls f in the client's namespace. Sockets that it opens belong to it.
func (g *Gateway) InClient(f func()) { netnstest.In(g.tb, g.client.path, f) }

// InServer calls f in the server's namespace.
func (g *Gateway) InServer(f func()) { netnstest.In(g.tb, g.server.path, f) }

// Send sends a packet from the client's side. If the gateway forwards it, Send returns it as it
// arrives at the server, with its translated source. If conntrack drops it, forwarded is false.
func (g *Gateway) Send(p Packet) (arrived Packet, forwarded bool) {
	g.tb.Helper()
	return g.pass(p, g.client, g.server)
}

// Reply sends a packet from the server's side to the translated source of a flow. It returns the
// packet as it arrives at the client.
func (g *Gateway) Reply(p Packet) (arrived Packet, forwarded bool) {
	g.tb.Helper()
	return g.pass(p, g.server, g.client)
}

// Hairpin sends a packet from the client's side that the gateway sends back there, to another client.
func (g *Gateway) Hairpin(p Packet) (arrived Packet, forwarded bool) {
	g.tb.Helper()
	return g.pass(p, g.client, g.client)
}

// patience is how long one packet may take. It is longer than on any busy host: only a broken setup
// reaches it.
const patience = time.Minute

func (g *Gateway) pass(p Packet, from, to side) (arrived Packet, forwarded bool) {
	g.tb.Helper()
	before := ReadStatistics(g.tb).Drop
	p.id = g.nextID()
	to.drain(g.tb)
	from.send(g.tb, p)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if arrived, ok := to.receive(g.tb, p.id, time.Millisecond); ok {
			return arrived, true
		}
		if ReadStatistics(g.tb).Drop != before {
			return Packet{}, false
		}
	}
	g.tb.Fatalf("%+v was neither forwarded nor dropped in %v", p, patience)
	return Packet{}, false
}

// warmUp waits until the gateway forwards: the kernel activates interfaces some time after the command.
// Without a ruleset, these packets leave no flows.
func (g *Gateway) warmUp() {
	g.tb.Helper()
	for i := range g.client.prefixes {
		p := Packet{
			Protocol:    unix.IPPROTO_UDP,
			Source:      netip.AddrPortFrom(Host(g.client.prefixes[i], 0), 9),
			Destination: netip.AddrPortFrom(Host(g.server.prefixes[i], 0), 9),
		}
		back := p
		back.Source, back.Destination = p.Destination, p.Source
		end := time.Now().Add(patience)
		for !g.forwards(p, g.client, g.server) || !g.forwards(back, g.server, g.client) {
			if time.Now().After(end) {
				g.tb.Fatalf("the gateway did not forward %+v in %v", p, patience)
			}
		}
	}
}

func (g *Gateway) forwards(p Packet, from, to side) bool {
	g.tb.Helper()
	p.id = g.nextID()
	from.send(g.tb, p)
	_, ok := to.receive(g.tb, p.id, 10*time.Millisecond)
	return ok
}

func (g *Gateway) nextID() uint16 {
	g.lastID++
	return g.lastID
}

// A side is a namespace next to the gateway.
type side struct {
	path     string
	ip4, ip6 int // raw sockets, which send packets
	tap      int // packet socket, which sees those that arrive
	prefixes []netip.Prefix
}

// newSide creates a namespace with the addresses of one host and connects it to the calling test's
// by an interface of that name. Prefixes are routed to it. The network is the second part of its IPv4 addresses.
func newSide(tb testing.TB, name, network string, host4, host6 netip.Addr, prefixes ...netip.Prefix) side {
	tb.Helper()
	const nearMAC, farMAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
	// Not TempDir of the test: ip(8) takes the "#" of some as the start of a comment.
	dir, err := os.MkdirTemp("", "nattest-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	s := side{path: filepath.Join(dir, name), prefixes: prefixes}
	netnstest.Mount(tb, s.path, nil)
	near4, near6 := "10."+network+".0.1", "fd0"+network+"::1"
	// The neighbors are known, so that no packet waits for their discovery.
	netnstest.IP(tb,
		"link add "+name+" address "+nearMAC+" type veth peer name eth0 address "+farMAC+" netns "+s.path,
		"addr add "+near4+"/24 dev "+name,
		"addr add "+near6+"/64 dev "+name+" nodad",
		"link set "+name+" up",
		"neigh add "+host4.String()+" lladdr "+farMAC+" dev "+name,
		"neigh add "+host6.String()+" lladdr "+farMAC+" dev "+name,
	)
	netnstest.In(tb, s.path, func() {
		netnstest.IP(tb,
			"addr add "+host4.String()+"/24 dev eth0",
			"addr add "+host6.String()+"/64 dev eth0 nodad",
			"link set eth0 up",
			"neigh add "+near4+" lladdr "+nearMAC+" dev eth0",
			"neigh add "+near6+" lladdr "+nearMAC+" dev eth0",
			"route add default via "+near4,
			"route add default via "+near6,
		)
		s.ip4 = socket(tb, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		s.ip6 = socket(tb, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW)
		s.tap = socket(tb, unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
		if err := unix.SetsockoptInt(s.tap, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			tb.Fatalf("PACKET_IGNORE_OUTGOING: %v", err)
		}
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			tb.Fatal(err)
		}
		protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if err := unix.Bind(s.tap, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: eth0.Index}); err != nil {
			tb.Fatalf("bind packet socket: %v", err)
		}
	})
	for i, via := range []netip.Addr{host4, host6} {
		netnstest.IP(tb, "route add "+prefixes[i].String()+" via "+via.String())
	}
	return s
}

func socket(tb testing.TB, family, kind, protocol int) int {
	tb.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		tb.Fatalf("socket: %v", err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	return fd
}

func (s side) send(tb testing.TB, p Packet) {
	tb.Helper()
	fd := s.ip4
	if p.Destination.Addr().Is6() {
		fd = s.ip6
	}
	// The port of a raw socket is a protocol number.
	to := netip.AddrPortFrom(p.Destination.Addr(), 0)
	if err := unix.Sendto(fd, p.marshal(), 0, netnstest.Sockaddr(to, false)); err != nil {
		tb.Fatalf("send %+v: %v", p, err)
	}
}

// receive returns the packet with an id if it has arrived, and else waits once for packets. It forgets others.
func (s side) receive(tb testing.TB, id uint16, wait time.Duration) (Packet, bool) {
	tb.Helper()
	waited := false
	for {
		var b [2048]byte
		n, _, err := unix.Recvfrom(s.tap, b[:], 0)
		switch {
		case errors.Is(err, unix.EAGAIN) && waited:
			return Packet{}, false
		case errors.Is(err, unix.EAGAIN):
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(s.tap), Events: unix.POLLIN}}, int(wait.Milliseconds()))
			waited = true
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			tb.Fatalf("receive: %v", err)
		}
		if p, ok := unmarshal(b[:n]); ok && p.id == id && s.routed(p.Destination.Addr()) {
			return p, true
		}
	}
}

// drain forgets packets that nobody waited for, such as those for sockets: they leave no room for others.
func (s side) drain(tb testing.TB) {
	tb.Helper()
	for {
		var b [2048]byte
		switch _, _, err := unix.Recvfrom(s.tap, b[:], 0); {
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil && !errors.Is(err, unix.EINTR):
			tb.Fatalf("receive: %v", err)
		}
	}
}

// routed reports whether packets to an address come to this side, and to no host.
func (s side) routed(addr netip.Addr) bool {
	for _, prefix := range s.prefixes {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

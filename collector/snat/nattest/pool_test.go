//go:build linux

package nattest_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/snat/nattest"

	"golang.org/x/sys/unix"
)

// These tests state the facts about source NAT on which the model of its pools rests.

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// A range whose size divides 65536 is searched to its last port with the first packet (the kernel
// counts the ports that it tries modulo 65536). Up to 128 ports are all tried.
const (
	portRange = "40000-40063"
	ports     = 64
)

var server = netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), 80)

// A source returns the source of connection i.
type source func(i int) netip.AddrPort

// clients returns sources with one port and different addresses, from number first on.
func clients(first int, port uint16) source {
	return func(i int) netip.AddrPort {
		return netip.AddrPortFrom(nattest.Host(nattest.Clients4, first+i), port)
	}
}

// sockets returns sources with one address and different ports.
func sockets(client int, firstPort uint16) source {
	return func(i int) netip.AddrPort {
		return netip.AddrPortFrom(nattest.Host(nattest.Clients4, client), firstPort+uint16(i))
	}
}

// fill sends the first packets of so many connections. It returns the translated sources of those
// that the gateway grants.
func fill(t *testing.T, g *nattest.Gateway, protocol uint8, from source, to netip.AddrPort, connections int) map[netip.AddrPort]bool {
	t.Helper()
	granted := map[netip.AddrPort]bool{}
	for i := range connections {
		packet := nattest.Packet{Protocol: protocol, Source: from(i), Destination: to, Flags: nattest.SYN}
		if arrived, ok := g.Send(packet); ok {
			if granted[arrived.Source] {
				t.Fatalf("%v was granted twice", arrived.Source)
			}
			granted[arrived.Source] = true
		}
	}
	return granted
}

// TestFull fills pools to the last port and one packet beyond it.
func TestFull(t *testing.T) {
	server6 := netip.AddrPortFrom(nattest.Host(nattest.Servers6, 0), 80)
	clients6 := func(i int) netip.AddrPort { return netip.AddrPortFrom(nattest.Host(nattest.Clients6, i), 20000) }
	for _, rule := range []string{
		"masquerade to :" + portRange,
		"masquerade to :" + portRange + " random",
		"masquerade to :" + portRange + " fully-random",
		"masquerade to :" + portRange + " persistent",
		"snat ip to 10.2.0.1:" + portRange,
	} {
		t.Run(rule, func(t *testing.T) {
			g := nattest.New(t, nattest.Postrouting(rule))
			for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
				before := nattest.ReadStatistics(t)
				if n := len(fill(t, g, protocol, clients(0, 20000), server, ports+3)); n != ports {
					t.Errorf("protocol %d: %d connections granted, want %d", protocol, n, ports)
				}
				after := nattest.ReadStatistics(t)
				if after.InsertFailed-before.InsertFailed != 3 || after.Drop-before.Drop != 3 {
					t.Errorf("protocol %d: statistics %+v, then %+v, want 3 more failed inserts and drops", protocol, before, after)
				}
			}
		})
	}
	t.Run("IPv6", func(t *testing.T) {
		g := nattest.New(t, nattest.Postrouting("masquerade to :"+portRange))
		for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			if n := len(fill(t, g, protocol, clients6, server6, ports+3)); n != ports {
				t.Errorf("protocol %d: %d connections granted, want %d", protocol, n, ports)
			}
		}
	})
}

// TestPool fills a pool and then tests which connections find ports all the same.
func TestPool(t *testing.T) {
	zones := func(statement string) string {
		return `
table ip zones {
	chain prerouting {
		type filter hook prerouting priority raw
		iifname "client" ` + statement + ` ip saddr map { 10.3.1.0/24 : 1, 10.3.2.0/24 : 2 }
	}
}
`
	}
	for _, tt := range []struct {
		name    string
		ruleset string
		to      netip.AddrPort // of other connections
		udp     bool           // whether they use UDP
		want    int            // of them find a port
	}{
		{name: "other clients", to: server, want: 0},
		{name: "other destination port", to: netip.AddrPortFrom(server.Addr(), 81), want: ports},
		{name: "other destination address", to: netip.AddrPortFrom(nattest.Host(nattest.Servers4, 1), 80), want: ports},
		{name: "other protocol", to: server, udp: true, want: ports},
		{
			name: "DNAT to the same destination",
			ruleset: `
table ip services {
	chain prerouting {
		type nat hook prerouting priority dstnat
		ip daddr 10.4.9.9 tcp dport 8080 dnat to 10.4.0.1:80
	}
}
`,
			to:   netip.MustParseAddrPort("10.4.9.9:8080"),
			want: 0,
		},
		{name: "other zone", ruleset: zones("ct zone set"), to: server, want: ports},
		{name: "other zone in the original direction only", ruleset: zones("ct original zone set"), to: server, want: 0},
		{
			name: "other mark",
			ruleset: `
table ip marks {
	chain prerouting {
		type filter hook prerouting priority mangle
		iifname "client" ct mark set ip saddr map { 10.3.1.0/24 : 1, 10.3.2.0/24 : 2 }
	}
}
`,
			to:   server,
			want: 0,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := nattest.New(t, nattest.Postrouting("masquerade to :"+portRange)+tt.ruleset)
			if n := len(fill(t, g, unix.IPPROTO_TCP, clients(1<<8, 20000), server, ports)); n != ports {
				t.Fatalf("%d connections granted, want %d", n, ports)
			}
			protocol := uint8(unix.IPPROTO_TCP)
			if tt.udp {
				protocol = unix.IPPROTO_UDP
			}
			if n := len(fill(t, g, protocol, clients(2<<8, 20000), tt.to, ports+3)); n != tt.want {
				t.Errorf("%d other connections granted, want %d", n, tt.want)
			}
		})
	}
}

// TestHairpin tests a pool of connections that come back to the client's network.
func TestHairpin(t *testing.T) {
	g := nattest.New(t, `
table ip nat {
	chain prerouting {
		type nat hook prerouting priority dstnat
		ip daddr 10.1.0.1 tcp dport 8080 dnat to 10.3.0.200:80
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "client" ip saddr 10.3.0.0/16 meta l4proto tcp masquerade to :`+portRange+`
	}
}
`)
	granted := 0
	for i := range ports + 3 {
		packet := nattest.Packet{Protocol: unix.IPPROTO_TCP, Source: clients(1<<8, 20000)(i), Destination: netip.MustParseAddrPort("10.1.0.1:8080"), Flags: nattest.SYN}
		if _, ok := g.Hairpin(packet); ok {
			granted++
		}
	}
	if granted != ports {
		t.Errorf("%d connections granted, want %d", granted, ports)
	}
}

// TestOwnSockets tests that sockets of the gateway use the same ports, although nothing translates
// their source.
func TestOwnSockets(t *testing.T) {
	g := nattest.New(t, nattest.Postrouting("ip saddr 10.3.0.0/16 masquerade to :"+portRange))
	const own = 5
	for i := range own {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		local := netip.AddrPortFrom(nattest.Gateway4, uint16(40010+i))
		if err := unix.Bind(fd, netnstest.Sockaddr(local, false)); err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendto(fd, []byte{0}, 0, netnstest.Sockaddr(server, false)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(fill(t, g, unix.IPPROTO_UDP, clients(0, 20000), server, ports)); n != ports-own {
		t.Errorf("beside %d own sockets, %d connections granted, want %d", own, n, ports-own)
	}
}

// TestAddresses tests that a client's address decides which of several translated addresses it gets,
// and that a client is refused although another address has free ports.
func TestAddresses(t *testing.T) {
	g := nattest.New(t, nattest.Postrouting("snat ip to 10.2.0.11-10.2.0.13:"+portRange))
	addresses := map[netip.Addr]int{}
	for source := range fill(t, g, unix.IPPROTO_UDP, sockets(1, 20000), server, 3*ports) {
		addresses[source.Addr()]++
	}
	if len(addresses) != 1 || addresses[firstKey(addresses)] != ports {
		t.Errorf("one client got ports of %v, want %d of one address", addresses, ports)
	}
	// A hash of the addresses decides. This many clients meet all three.
	for source := range fill(t, g, unix.IPPROTO_UDP, clients(1<<8, 20000), server, 12*ports) {
		addresses[source.Addr()]++
	}
	if len(addresses) != 3 {
		t.Errorf("all clients got ports of %v, want 3 addresses", addresses)
	}
	for addr, n := range addresses {
		if n != ports {
			t.Errorf("%v: %d connections granted, want %d", addr, n, ports)
		}
	}
}

func firstKey(m map[netip.Addr]int) (key netip.Addr) {
	for key = range m {
		break
	}
	return key
}

// TestPorts tests which ports a client gets: by its own port, if the rule names no range.
func TestPorts(t *testing.T) {
	for _, tt := range []struct {
		rule        string
		port        uint16 // of the clients
		first, last uint16
	}{
		{"masquerade", 1, 1, 511},
		{"masquerade", 511, 1, 511},
		{"masquerade", 600, 600, 1023},
		{"masquerade", 1023, 600, 1023},
		{"masquerade fully-random", 512, 600, 1023},
		{"masquerade to :600-663", 1, 600, 663},
		{"masquerade to :600-663", 20000, 600, 663},
		{"masquerade to :40000", 20000, 40000, 40000},
	} {
		t.Run(fmt.Sprintf("%s port %d", tt.rule, tt.port), func(t *testing.T) {
			g := nattest.New(t, nattest.Postrouting(tt.rule))
			want := int(tt.last) - int(tt.first) + 1
			granted := map[netip.AddrPort]bool{}
			// With more than 128 ports, a packet may be lost although one is free.
			for round := 0; len(granted) < want && round < 20; round++ {
				for source := range fill(t, g, unix.IPPROTO_UDP, clients(round<<10, tt.port), server, 1<<10) {
					granted[source] = true
				}
			}
			for source := range granted {
				if source.Port() < tt.first || source.Port() > tt.last {
					t.Errorf("got %v, want a port in %d-%d", source, tt.first, tt.last)
				}
			}
			if len(granted) != want {
				t.Errorf("%d connections granted, want %d", len(granted), want)
			}
		})
	}
	t.Run("masquerade port 1024", func(t *testing.T) {
		g := nattest.New(t, nattest.Postrouting("masquerade fully-random"))
		for source := range fill(t, g, unix.IPPROTO_UDP, clients(0, 1024), server, 2000) {
			if source.Port() < 1024 {
				t.Errorf("got %v, want a port in 1024-65535", source)
			}
		}
	})
}

// TestTakeover tests which flows yield their port to a new connection, where the kernel has that (Linux
// 6.5, nf_nat_used_tuple_harder): closed ones, if the new connection's sequence number is after theirs.
// Where it does not, none do.
func TestTakeover(t *testing.T) {
	const seq, few = 1 << 30, 8
	takesOver := nattest.TakesOver(t)
	for _, tt := range []struct {
		state nattest.State
		want  bool
	}{
		{nattest.SynSent, false},
		{nattest.SynSent2, takesOver},
		{nattest.SynRecv, false},
		{nattest.Established, false},
		{nattest.FinWait, false},
		{nattest.CloseWait, false},
		{nattest.LastAck, false},
		{nattest.TimeWait, takesOver},
		{nattest.Close, takesOver},
	} {
		t.Run(string(tt.state), func(t *testing.T) {
			g := nattest.New(t, nattest.Postrouting("masquerade to :40000-40007"))
			for i := range few {
				if _, ok := g.Open(tt.state, clients(0, 20000)(i), server, seq); !ok {
					t.Fatalf("connection %d was not granted", i)
				}
			}
			if rows := nattest.Flows(t, "tcp", " "+string(tt.state)+" "); len(rows) != few {
				t.Fatalf("%d flows are in %s, want %d", len(rows), tt.state, few)
			}
			if _, ok := g.Open(nattest.SynSent, clients(1<<8, 20000)(0), server, seq-1000); ok {
				t.Error("granted with an earlier sequence number")
			}
			if _, ok := g.Open(nattest.SynSent, clients(1<<8, 20000)(1), server, seq+1000); ok != tt.want {
				t.Errorf("granted with a later sequence number: %v, want %v", ok, tt.want)
			}
		})
	}
}

// TestReopen tests that a client that uses its port again keeps the translated one.
func TestReopen(t *testing.T) {
	g := nattest.New(t, nattest.Postrouting("masquerade to :"+portRange))
	for i := range 3 {
		if _, ok := g.Open(nattest.TimeWait, clients(0, 20000)(0), server, uint32(i)<<20); !ok {
			t.Fatalf("connection %d was not granted", i)
		}
		if rows := nattest.Flows(t, "tcp"); len(rows) != 1 {
			t.Errorf("flows after connection %d: %q, want 1", i, rows)
		}
	}
}

// TestRefuse tests that a refused connection frees its port.
func TestRefuse(t *testing.T) {
	g := nattest.New(t, nattest.Postrouting("masquerade to :"+portRange))
	translated, ok := g.Open(nattest.SynSent, clients(0, 20000)(0), server, 1)
	if !ok {
		t.Fatal("not granted")
	}
	g.Refuse(translated, server, 1)
	if rows := nattest.Flows(t, "tcp"); len(rows) != 0 {
		t.Errorf("flows after the reset: %q, want none", rows)
	}
}

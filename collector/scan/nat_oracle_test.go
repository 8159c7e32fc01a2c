//go:build linux

package scan

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/conntrack/conntracktest"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
	"ephemeral_port_exporter/collector/snat/nattest"
)

// The oracle for source NAT is the real kernel too: it must grant as many ports as the report says are
// free, and the first packet of each further connection is lost.

// natScanner returns a Scanner that counts the ports of source NAT in a range.
func natScanner(tb testing.TB, ports ...pool.PortRange) *Scanner {
	tb.Helper()
	cfg := testConfig()
	cfg.SNAT, cfg.SNATPorts = true, ports
	return newScanner(tb, cfg)
}

// newNATGateway makes the test a gateway with a ruleset, whose flows last longer than any test.
func newNATGateway(t *testing.T, ruleset string) *nattest.Gateway {
	t.Helper()
	g := nattest.New(t, ruleset)
	for _, timeout := range []string{"udp_timeout", "tcp_timeout_close", "tcp_timeout_last_ack", "tcp_timeout_syn_recv", "tcp_timeout_time_wait"} {
		netnstest.Sysctl(t, "netfilter/nf_conntrack_"+timeout, "600")
	}
	return g
}

// scanNAT returns what a Scanner tells of the test's namespace. Without flows, that is an empty report.
func scanNAT(t *testing.T, s *Scanner) (snat.Report, Conntrack) {
	t.Helper()
	n := s.Scan(t.Context()).Namespaces[0]
	switch {
	case n.TCP.Err != nil || n.Conntrack.Outcome != Collected || !n.Conntrack.Counted:
		t.Fatalf("scan: %v, %v, %+v", n.TCP.Err, n.Conntrack.Err, n.Conntrack)
	case n.NAT.Outcome == "":
		return snat.Report{CapacityPorts: snat.Settings{PortRanges: s.cfg.SNATPorts}.Ports()}, n.Conntrack
	case n.NAT.Err != nil:
		t.Fatalf("scan: %v", n.NAT.Err)
	}
	return n.NAT.Report, n.Conntrack
}

// natPoolOf returns a pool, if the report has it.
func natPoolOf(r snat.Report, protocol snat.Protocol, source netip.Addr, destination netip.AddrPort) (p snat.Pool, ok bool) {
	for _, p := range r.Pools {
		if p.Protocol == protocol && p.Source == source && p.Address == destination {
			return p, true
		}
	}
	return snat.Pool{}, false
}

// natFree returns how many ports of a pool are free, or can be taken over, by the report.
func natFree(r snat.Report, protocol snat.Protocol, source netip.Addr, destination netip.AddrPort) int {
	p, _ := natPoolOf(r, protocol, source, destination)
	return r.CapacityPorts - p.Held + p.Reusable
}

// natClients are connections through a gateway.
type natClients struct {
	protocol snat.Protocol
	from     func(i int) netip.AddrPort // the source of connection i
	to       netip.AddrPort
	behind   netip.AddrPort // the destination after DNAT, if that is another
	hairpin  bool           // back to the side of the clients

	next int // connection
}

// seqLater is after the sequence numbers of all flows that are closed, so that a connection can take
// over their ports.
const seqLater = 1 << 30

// open sends the first packet of the next connection.
func (c *natClients) open(g *nattest.Gateway) (translated netip.AddrPort, granted bool) {
	p := nattest.Packet{Protocol: unix.IPPROTO_TCP, Source: c.from(c.next), Destination: c.to, Flags: nattest.SYN, Seq: seqLater}
	if c.protocol == snat.UDP {
		p.Protocol = unix.IPPROTO_UDP
	}
	c.next++
	send := g.Send
	if c.hairpin {
		send = g.Hairpin
	}
	arrived, granted := send(p)
	return arrived.Source, granted
}

// hold opens n connections.
func (c *natClients) hold(t *testing.T, g *nattest.Gateway, n int) {
	t.Helper()
	for i := range n {
		if _, granted := c.open(g); !granted {
			t.Fatalf("connection %d to %v was not granted", i, c.to)
		}
	}
}

// hosts returns sources with one port and different addresses of a prefix, from number first on.
func hosts(prefix netip.Prefix, first int, port uint16) func(i int) netip.AddrPort {
	return func(i int) netip.AddrPort { return netip.AddrPortFrom(nattest.Host(prefix, first+i), port) }
}

// checkNAT opens connections until the gateway has dropped so many in a row. It compares the number that it
// granted, of each translated address, with the free ports of the report, and the counters with the drops.
func checkNAT(t *testing.T, g *nattest.Gateway, s *Scanner, c *natClients, drops int) {
	t.Helper()
	before, countersBefore := scanNAT(t, s)
	granted := map[netip.Addr]int{}
	dropped := 0
	for row := 0; row < drops; {
		translated, ok := c.open(g)
		if !ok {
			row, dropped = row+1, dropped+1
			continue
		}
		row = 0
		granted[translated.Addr()]++
	}
	after, counters := scanNAT(t, s)

	if got := counters.InsertFailed - countersBefore.InsertFailed; got != uint64(dropped) {
		t.Errorf("insert_failed rose by %d with %d drops", got, dropped)
	}
	if got := counters.Dropped - countersBefore.Dropped; got != uint64(dropped) {
		t.Errorf("drop rose by %d with %d drops", got, dropped)
	}
	destination := c.to
	if c.behind.IsValid() {
		destination = c.behind
	}
	for _, p := range before.Pools {
		if p.Protocol == c.protocol && p.Address == destination {
			granted[p.Source] += 0
		}
	}
	if len(granted) == 0 {
		t.Fatal("no pool was there before, and no connection was granted")
	}
	for source, n := range granted {
		if free := natFree(before, c.protocol, source, destination); n != free {
			t.Errorf("%v: the report says that %d ports are free, NAT granted %d", source, free, n)
		}
		used := float64(before.CapacityPorts-natFree(before, c.protocol, source, destination)) / float64(before.CapacityPorts)
		if p, _ := natPoolOf(before, c.protocol, source, destination); math.Abs(p.Utilization-used) > 1e-9 {
			t.Errorf("%v: utilization was %v, want %v", source, p.Utilization, used)
		}
		if p, _ := natPoolOf(after, c.protocol, source, destination); p.Utilization != 1 || p.SearchFailure != 1 {
			t.Errorf("%v: utilization %v, search failure %v after drops, want 1, 1", source, p.Utilization, p.SearchFailure)
		}
	}
	if after.MaxUtilization != 1 {
		t.Errorf("greatest utilization is %v after drops, want 1", after.MaxUtilization)
	}
}

// Ranges of at most 128 ports are searched completely. Where the size does not divide 65536, a packet is
// lost now and then although a port is free.
var (
	range64   = pool.PortRange{Low: 40000, High: 40063}
	range100  = pool.PortRange{Low: 40000, High: 40099}
	range128  = pool.PortRange{Low: 40000, High: 40127}
	range1000 = pool.PortRange{Low: 40000, High: 40999}
)

// portsOf returns a range as nft(8) writes it.
func portsOf(r pool.PortRange) string { return fmt.Sprintf("%d-%d", r.Low, r.High) }

// A natFamily has addresses of one family for clients and servers.
type natFamily struct {
	name             string
	clients, servers netip.Prefix
	snat             string // the statement of nft(8) up to the address
	one, several     string // translated addresses, with a verb for the ports
}

var natFamilies = []natFamily{
	{"IPv4", nattest.Clients4, nattest.Servers4, "snat ip to ", "10.2.0.9:%s", "10.2.0.11-10.2.0.13:%s"},
	{"IPv6", nattest.Clients6, nattest.Servers6, "snat ip6 to ", "[fd02::9]:%s", "[fd02::11]-[fd02::13]:%s"},
}

// TestOracleNATRules fills pools for each kind of rule. Before that, two clients have ports of the pool, and
// one of them has others for another destination and of the other protocol.
func TestOracleNATRules(t *testing.T) {
	type rule struct {
		name  string
		ports pool.PortRange
		text  func(f natFamily) string
		drops int // in a row, after which no port is free
	}
	masquerade := func(flags string) func(natFamily) string {
		return func(natFamily) string { return "masquerade to :%s" + flags }
	}
	rules := []rule{
		{"masquerade", range64, masquerade(""), 1},
		{"masquerade 128 ports", range128, masquerade(""), 1},
		{"masquerade 100 ports", range100, masquerade(""), 20},
		{"random", range64, masquerade(" random"), 1},
		{"fully-random", range64, masquerade(" fully-random"), 1},
		{"persistent", range64, masquerade(" persistent"), 1},
		{"snat", range64, func(f natFamily) string { return f.snat + f.one }, 1},
		{"snat to several addresses", range64, func(f natFamily) string { return f.snat + f.several }, 100},
	}
	for _, r := range rules {
		for _, f := range natFamilies {
			t.Run(r.name+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				g := newNATGateway(t, nattest.Postrouting(fmt.Sprintf(r.text(f), portsOf(r.ports))))
				s := natScanner(t, r.ports)
				to := netip.AddrPortFrom(nattest.Host(f.servers, 0), 80)
				other := netip.AddrPortFrom(nattest.Host(f.servers, 1), 80)
				pairs := []natClients{
					{protocol: snat.TCP, from: hosts(f.clients, 0x100, 20000), to: to},
					{protocol: snat.TCP, from: hosts(f.clients, 0x200, 20000), to: to},
					{protocol: snat.TCP, from: hosts(f.clients, 0x200, 20001), to: other},
					{protocol: snat.UDP, from: hosts(f.clients, 0x200, 20000), to: to},
				}
				for i := range pairs {
					pairs[i].hold(t, g, 5+i)
				}
				for _, protocol := range []snat.Protocol{snat.TCP, snat.UDP} {
					checkNAT(t, g, s, &natClients{protocol: protocol, from: hosts(f.clients, 0x300, 20000), to: to}, r.drops)
				}
			})
		}
	}
}

// TestOracleNATPools fills pools beside flows of which it depends on more than the addresses whether they
// take ports of the pool.
func TestOracleNATPools(t *testing.T) {
	to := netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), 80)
	clients := func(first int) *natClients {
		return &natClients{protocol: snat.TCP, from: hosts(nattest.Clients4, first, 20000), to: to}
	}
	via := func(first int, service string) *natClients {
		c := clients(first)
		c.to, c.behind = netip.MustParseAddrPort(service), to
		return c
	}
	masquerade := nattest.Postrouting("masquerade to :" + portsOf(range64))
	tests := []struct {
		name    string
		ruleset string
		before  func(t *testing.T, g *nattest.Gateway)
		clients *natClients
		held    int // by the flows before
	}{
		{
			name: "DNAT to the same destination",
			ruleset: masquerade + `table ip services { chain prerouting {
				type nat hook prerouting priority dstnat
				ip daddr 10.4.9.9 tcp dport 8080 dnat to 10.4.0.1:80
			}
			}`,
			before:  func(t *testing.T, g *nattest.Gateway) { clients(0x100).hold(t, g, 20) },
			clients: via(0x200, "10.4.9.9:8080"),
			held:    20,
		},
		{
			name: "hairpin",
			ruleset: `table ip nat {
				chain prerouting {
					type nat hook prerouting priority dstnat
					ip daddr 10.1.0.1 tcp dport 8080 dnat to 10.3.0.200:80
				}
				chain postrouting {
					type nat hook postrouting priority srcnat
					oifname "client" ip saddr 10.3.0.0/16 meta l4proto tcp masquerade to :` + portsOf(range64) + `
				}
			}`,
			before: func(*testing.T, *nattest.Gateway) {},
			clients: &natClients{
				protocol: snat.TCP, from: hosts(nattest.Clients4, 0x100, 20000), hairpin: true,
				to: netip.MustParseAddrPort("10.1.0.1:8080"), behind: netip.MustParseAddrPort("10.3.0.200:80"),
			},
		},
		{
			name: "zones",
			ruleset: masquerade + `table ip zones { chain prerouting {
				type filter hook prerouting priority raw
				iifname "client" ct zone set ip saddr map { 10.3.1.0/24 : 1, 10.3.2.0/24 : 2 }
			}
			}`,
			before: func(t *testing.T, g *nattest.Gateway) {
				clients(0x100).hold(t, g, 20)
				clients(0x200).hold(t, g, 40)
			},
			clients: clients(0x240),
			held:    40, // of the fullest zone
		},
		{
			name: "zones of the original direction",
			ruleset: masquerade + `table ip zones { chain prerouting {
				type filter hook prerouting priority raw
				iifname "client" ct original zone set ip saddr map { 10.3.1.0/24 : 1, 10.3.2.0/24 : 2 }
			}
			}`,
			before:  func(t *testing.T, g *nattest.Gateway) { clients(0x100).hold(t, g, 20) },
			clients: clients(0x200),
			held:    20,
		},
		{
			name: "marks",
			ruleset: masquerade + `table ip marks { chain prerouting {
				type filter hook prerouting priority mangle
				iifname "client" ct mark set ip saddr map { 10.3.1.0/24 : 1, 10.3.2.0/24 : 2 }
			}
			}`,
			before:  func(t *testing.T, g *nattest.Gateway) { clients(0x100).hold(t, g, 20) },
			clients: clients(0x200),
			held:    20,
		},
		{
			name: "ports below 1024 of other clients",
			ruleset: `table ip nat { chain postrouting {
				type nat hook postrouting priority srcnat
				tcp sport < 1024 masquerade
				tcp sport >= 1024 masquerade to :` + portsOf(range64) + `
			}
			}`,
			before: func(t *testing.T, g *nattest.Gateway) {
				low := clients(0x100)
				low.from = hosts(nattest.Clients4, 0x100, 600)
				low.hold(t, g, 20)
				clients(0x200).hold(t, g, 10)
			},
			clients: clients(0x300),
			held:    10,
		},
		{
			name:    "own sockets",
			ruleset: nattest.Postrouting("ip saddr 10.3.0.0/16 masquerade to :" + portsOf(range64)),
			before: func(t *testing.T, g *nattest.Gateway) {
				for i := range 5 {
					own := socketAt(t, netip.AddrPortFrom(nattest.Gateway4, uint16(40010+i)))
					if err := unix.Sendto(own, []byte{0}, 0, netnstest.Sockaddr(to, false)); err != nil {
						t.Fatal(err)
					}
				}
				c := clients(0x100)
				c.protocol = snat.UDP
				c.hold(t, g, 10)
			},
			clients: &natClients{protocol: snat.UDP, from: hosts(nattest.Clients4, 0x200, 20000), to: to},
			held:    15,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newNATGateway(t, tt.ruleset)
			s := natScanner(t, range64)
			tt.before(t, g)
			r, _ := scanNAT(t, s)
			held := 0
			if len(r.Pools) > 0 {
				held = r.Pools[0].Held
			}
			if held != tt.held || len(r.Pools) > 1 {
				t.Errorf("%d pools, %d ports of the first, want 1 with %d: %+v", len(r.Pools), held, tt.held, r.Pools)
			}
			checkNAT(t, g, s, tt.clients, 1)
		})
	}
}

// TestOracleNATHelper has data connections of FTP, which a helper of connection tracking expects: the rule's range is not for
// them, and says nothing of the flag.
func TestOracleNATHelper(t *testing.T) {
	t.Parallel()
	g := newNATGateway(t, nattest.Postrouting("masquerade to :"+portsOf(range64))+`
table ip helper {
	ct helper ftp { type "ftp" protocol tcp; }
	chain prerouting {
		type filter hook prerouting priority filter
		tcp dport 21 ct helper set "ftp"
	}
}
`)
	var control, data net.Listener
	g.InServer(func() { control, data = listenTCP(t, "10.2.0.2:21"), listenTCP(t, "10.2.0.2:50000") })
	client, server := dialTCP(t, g, control)
	say := func(line string) {
		t.Helper()
		if _, err := io.WriteString(server, line+"\r\n"); err != nil {
			t.Fatal(err)
		}
		got, err := client.ReadString('\n')
		if err != nil || strings.TrimSpace(got) != line {
			t.Fatalf("got %q, %v, want %q", got, err, line)
		}
	}
	const connections = 3
	say("220 ready")
	for range connections {
		say("227 Entering Passive Mode (10,2,0,2,195,80).") // port 50000
		dialTCP(t, g, data)
	}
	s := natScanner(t, range64)
	s.cfg.Limits.MinPorts = 1
	r, _ := scanNAT(t, s)
	if r.Flows != 1+connections || r.Outside != 0 || r.UnknownPools != 0 || len(r.Pools) != 1 || r.Pools[0].Address.Port() != 21 || r.Pools[0].Held != 1 {
		t.Errorf("%d flows, %d outside, %d unknown pools, and %+v; want %d, none, and the pool of the control connection", r.Flows, r.Outside, r.UnknownPools, r.Pools, 1+connections)
	}
}

// listenTCP returns a listener until the end of the test.
func listenTCP(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dialTCP returns both ends of a connection from the client's namespace, until the end of the test.
func dialTCP(t *testing.T, g *nattest.Gateway, l net.Listener) (client *bufio.Reader, server net.Conn) {
	t.Helper()
	g.InClient(func() {
		c, err := net.DialTimeout("tcp", l.Addr().String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		client = bufio.NewReader(c)
	})
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// socketAt returns a UDP socket that is bound, until the end of the test.
func socketAt(t *testing.T, local netip.AddrPort) (fd int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, netnstest.Sockaddr(local, false)); err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestOracleNATStates has ten flows in each state. Those that are closed yield their ports where the
// kernel takes them over.
func TestOracleNATStates(t *testing.T) {
	const n = 10
	takesOver := nattest.TakesOver(t)
	to := netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), 80)
	for i, state := range []nattest.State{
		nattest.SynSent, nattest.SynRecv, nattest.Established, nattest.FinWait, nattest.CloseWait,
		nattest.LastAck, nattest.TimeWait, nattest.Close, nattest.SynSent2,
	} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			g := newNATGateway(t, nattest.Postrouting("masquerade to :"+portsOf(range64)))
			s := natScanner(t, range64)
			from := hosts(nattest.Clients4, 0x100, 20000)
			for i := range n {
				if _, granted := g.Open(state, from(i), to, 1); !granted {
					t.Fatalf("connection %d was not granted", i)
				}
			}
			r, _ := scanNAT(t, s)
			p, _ := natPoolOf(r, snat.TCP, nattest.Gateway4, to)
			reusable := 0
			if takesOver && (state == nattest.TimeWait || state == nattest.Close || state == nattest.SynSent2) {
				reusable = n
			}
			if p.Ports[snat.State(i)] != n || p.Held != n || p.Reusable != reusable {
				t.Errorf("%v, %d held, %d reusable, want %d in state %v and %d reusable", p.Ports, p.Held, p.Reusable, n, snat.State(i), reusable)
			}
			// The kernel takes over a port in every second search, if only one is reusable.
			checkNAT(t, g, s, &natClients{protocol: snat.TCP, from: hosts(nattest.Clients4, 0x200, 20000), to: to}, 1+60*min(reusable, 1))
		})
	}
	t.Run("TIME_WAIT of own sockets", func(t *testing.T) {
		t.Parallel()
		g := newNATGateway(t, nattest.Postrouting("ip saddr 10.3.0.0/16 masquerade to :"+portsOf(range64)))
		s := natScanner(t, range64)
		var listener int
		g.InServer(func() {
			netnstest.IP(t, "addr add "+to.Addr().String()+"/32 dev lo")
			listener = netnstest.Listen(t, to.String(), false)
		})
		for i := range n {
			own := netnstest.Client{Bind: netnstest.BindFirst, Source: netip.AddrPortFrom(nattest.Gateway4, uint16(40010+i)), Destination: to}
			netnstest.TimeWait(t, own, listener, 1)
		}
		c := natClients{protocol: snat.TCP, from: hosts(nattest.Clients4, 0x200, 20000), to: to}
		c.hold(t, g, 1) // without which this would be no pool
		waitForState(t, s, to, snat.TimeWait, n)
		checkNAT(t, g, s, &c, 20)
	})
	t.Run("reopened", func(t *testing.T) {
		t.Parallel()
		g := newNATGateway(t, nattest.Postrouting("masquerade to :"+portsOf(range64)))
		s := natScanner(t, range64)
		from := hosts(nattest.Clients4, 0x100, 20000)
		for seq := range uint32(3) {
			if _, granted := g.Open(nattest.TimeWait, from(0), to, seq<<20); !granted {
				t.Fatal("not granted")
			}
		}
		checkNAT(t, g, s, &natClients{protocol: snat.TCP, from: hosts(nattest.Clients4, 0x200, 20000), to: to}, 60)
	})
}

// waitForState waits until the pool for a destination has so many flows in a state.
func waitForState(t *testing.T, s *Scanner, to netip.AddrPort, state snat.State, want int) {
	t.Helper()
	waitUntil(t, fmt.Sprintf("%d flows in %v", want, state), func() bool {
		r, _ := scanNAT(t, s)
		p, _ := natPoolOf(r, snat.TCP, nattest.Gateway4, to)
		return p.Ports[state] == want
	})
}

// patience is longer than anything takes on any busy host.
const patience = time.Minute

// waitUntil waits until something has happened.
func waitUntil(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !happened(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// natFlow returns flow i of a client to a destination, masqueraded to Gateway4 with a port.
func natFlow(i int, port uint16, to netip.AddrPort) conntracktest.Flow {
	f := conntracktest.Flow{
		Protocol: unix.IPPROTO_TCP, State: 3, Timeout: 3600,
		Original: conntracktest.Tuple{Source: netip.AddrPortFrom(nattest.Host(nattest.Clients4, i), 20000), Destination: to},
	}
	f.Reply = f.Original.Reverse()
	f.Reply.Destination = netip.AddrPortFrom(nattest.Gateway4, port)
	return f
}

// fillNAT creates flows that hold these ports for a destination.
func fillNAT(t *testing.T, ports []uint16, to netip.AddrPort) {
	t.Helper()
	err := conntracktest.Open(t).Create(len(ports), func(i int) conntracktest.Flow { return natFlow(i, ports[i], to) })
	if err != nil {
		t.Fatal(err)
	}
}

// TestOracleNATWide fills ranges that the kernel does not search completely. A client whose own port is
// free keeps it, so each free port can be had.
func TestOracleNATWide(t *testing.T) {
	to := netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), 80)
	const free = 40
	for _, tt := range []struct {
		name, rule string
		ports      pool.PortRange
	}{
		{"1000 ports", "masquerade to :" + portsOf(range1000), range1000},
		{"no range", "masquerade", pool.PortRange{Low: 1024, High: 65535}},
		{"all ports", "masquerade to :1-65535", pool.PortRange{Low: 1, High: 65535}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newNATGateway(t, nattest.Postrouting(tt.rule))
			s := natScanner(t, tt.ports)
			var ports []uint16
			for p := int(tt.ports.Low); p <= int(tt.ports.High); p++ {
				ports = append(ports, uint16(p))
			}
			newRandom(t).Shuffle(len(ports), func(i, j int) { ports[i], ports[j] = ports[j], ports[i] })
			for i, end := range []uint16{tt.ports.Low, tt.ports.High} { // these are free
				j := slices.Index(ports, end)
				ports[i], ports[j] = ports[j], ports[i]
			}
			fillNAT(t, ports[free:], to)
			checkNAT(t, g, s, &natClients{protocol: snat.TCP, to: to, from: func(i int) netip.AddrPort {
				return netip.AddrPortFrom(nattest.Host(nattest.Clients4, 0xff00+i), ports[i])
			}}, 20)
		})
	}
}

// TestOracleNATSearches compares the reported share of searches that fail with that of the kernel.
func TestOracleNATSearches(t *testing.T) {
	random := newRandom(t)
	to := netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), 80)
	for _, tt := range []struct {
		name, rule string
		ports      pool.PortRange
		taken      func(port int) bool
	}{
		{"100 ports, one free", "masquerade to :" + portsOf(range100) + " fully-random", range100, func(p int) bool { return p != 40042 }},
		{"1000 ports, 2% free, in a row", "masquerade to :" + portsOf(range1000) + " fully-random", range1000, func(p int) bool { return p%1000 >= 20 }},
		{"1000 ports, 2% free, apart", "masquerade to :" + portsOf(range1000) + " fully-random", range1000, func(p int) bool { return p%50 != 0 }},
		{"1000 ports, 80% taken, in a row", "masquerade to :" + portsOf(range1000) + " fully-random", range1000, func(p int) bool { return p%1000 < 800 }},
		{"no range, that of Linux clients and 97% of the others", "masquerade fully-random", pool.PortRange{Low: 1024, High: 65535}, func(p int) bool {
			return p >= 32768 && p <= 60999 || random.IntN(30) != 0
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newNATGateway(t, nattest.Postrouting(tt.rule))
			var ports []uint16
			for p := int(tt.ports.Low); p <= int(tt.ports.High); p++ {
				if tt.taken(p) {
					ports = append(ports, uint16(p))
				}
			}
			fillNAT(t, ports, to)
			r, before := scanNAT(t, natScanner(t, tt.ports))
			p, _ := natPoolOf(r, snat.TCP, nattest.Gateway4, to)

			const searches = 2000
			failed := 0
			for i := range searches {
				from := netip.AddrPortFrom(nattest.Host(nattest.Clients4, i), 20001)
				if translated, granted := g.Open(nattest.SynSent, from, to, 1); granted {
					g.Refuse(translated, to, 1) // so each search finds the same ports
				} else {
					failed++
				}
			}
			want, got := p.SearchFailure, float64(failed)/searches
			t.Logf("%d of %d ports: %.4f of the searches failed, reported %.4f", p.Held, r.CapacityPorts, got, want)
			// 6 standard deviations, and what model.md says of sizes that do not divide 65536.
			if tolerance := 6*math.Sqrt(want*(1-want)/searches) + 0.005; math.Abs(got-want) > tolerance {
				t.Errorf("%.4f of the searches failed, reported %.4f ± %.4f", got, want, tolerance)
			}
			if _, after := scanNAT(t, natScanner(t, tt.ports)); after.InsertFailed-before.InsertFailed != uint64(failed) {
				t.Errorf("insert_failed rose by %d with %d drops", after.InsertFailed-before.InsertFailed, failed)
			}
		})
	}
}

// TestOracleNATClients compares the owners with the connections that each client has.
func TestOracleNATClients(t *testing.T) {
	t.Parallel()
	g := newNATGateway(t, nattest.Postrouting("masquerade to :"+portsOf(range128)))
	to := netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), 80)
	want := map[netip.Addr]int{}
	for client, n := range []int{3, 20, 1, 30, 10} {
		addr := nattest.Host(nattest.Clients4, 0x100+client)
		c := natClients{protocol: snat.TCP, to: to, from: func(i int) netip.AddrPort { return netip.AddrPortFrom(addr, uint16(20000+i)) }}
		c.hold(t, g, n)
		if n >= 10 {
			want[addr] = n
		}
	}
	r, _ := scanNAT(t, natScanner(t, range128))
	got := map[netip.Addr]int{}
	for _, c := range r.Pools[0].Clients {
		got[c.Address] = c.Ports
	}
	if !maps.Equal(got, want) {
		t.Errorf("clients %v, want %v", got, want)
	}
}

// TestOracleNATRanges fills the blocks of several rules, one of which each client has by its address.
func TestOracleNATRanges(t *testing.T) {
	blocks := []pool.PortRange{{Low: 4928, High: 4943}, {Low: 9024, High: 9039}, {Low: 13120, High: 13135}, {Low: 17216, High: 17231}}
	var rules strings.Builder
	for i, b := range blocks {
		fmt.Fprintf(&rules, "oifname \"server\" meta l4proto { tcp, udp } ip saddr & 0.0.0.3 == 0.0.0.%d snat to 10.2.0.9:%s\n", i, portsOf(b))
	}
	ruleset := "table ip nat { chain postrouting {\ntype nat hook postrouting priority srcnat\n" + rules.String() + "}\n}"
	to := netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), 80)
	clients := func(protocol snat.Protocol, first int) *natClients {
		return &natClients{protocol: protocol, from: hosts(nattest.Clients4, first, 20000), to: to}
	}
	every := func(n int, c *natClients) *natClients { // clients of the first block alone
		from := c.from
		c.from = func(i int) netip.AddrPort { return from(n * i) }
		return c
	}
	poolOf := func(t *testing.T, r snat.Report, protocol snat.Protocol) snat.Pool {
		t.Helper()
		for _, p := range r.Pools {
			if p.Protocol == protocol {
				return p
			}
		}
		t.Fatalf("no pool of %s: %+v", protocol, r)
		return snat.Pool{}
	}

	for _, protocol := range []snat.Protocol{snat.TCP, snat.UDP} {
		t.Run(string(protocol), func(t *testing.T) {
			t.Parallel()
			g := newNATGateway(t, ruleset)
			s := natScanner(t, blocks...)
			every(len(blocks), clients(protocol, 0x100)).hold(t, g, 16)
			r, _ := scanNAT(t, s)
			if p := poolOf(t, r, protocol); p.Utilization != 0.25 || p.SearchFailure != 0.25 || r.Outside != 0 {
				t.Errorf("one of four blocks is full: %+v", r)
			}
			checkNAT(t, g, s, clients(protocol, 0x200), 2*len(blocks))
		})
	}

	t.Run("wrong flag", func(t *testing.T) {
		t.Parallel()
		g := newNATGateway(t, ruleset)
		clients(snat.TCP, 0x100).hold(t, g, 40)
		for _, tt := range []struct {
			name    string
			flag    []pool.PortRange
			outside int
			known   bool
		}{
			{"all blocks", blocks, 0, true},
			{"another range", []pool.PortRange{range64}, 40, false},
			{"one block less", blocks[1:], 10, false},
			{"no flag", []pool.PortRange{{Low: 1024, High: 65535}}, 0, true},
		} {
			r, _ := scanNAT(t, natScanner(t, tt.flag...))
			p := poolOf(t, r, snat.TCP)
			if p.Known() != tt.known || math.IsNaN(r.MaxUtilization) == tt.known || r.Outside != tt.outside || p.Outside != tt.outside || p.Held != 40-tt.outside {
				t.Errorf("%s: %+v", tt.name, r)
			}
		}
	})

	t.Run("ports that a client chose", func(t *testing.T) {
		t.Parallel()
		g := newNATGateway(t, strings.Replace(ruleset, "oifname", "tcp dport 81 snat to 10.2.0.9\noifname", 1))
		s := natScanner(t, pool.PortRange{Low: 1024, High: 65535})
		scanNAT(t, s)
		every(len(blocks), clients(snat.TCP, 0x100)).hold(t, g, 16)
		if _, granted := every(len(blocks), clients(snat.TCP, 0x200)).open(g); granted {
			t.Fatal("a full block granted a port")
		}
		chosen := &natClients{protocol: snat.TCP, to: netip.AddrPortFrom(to.Addr(), 81), from: func(i int) netip.AddrPort {
			return netip.AddrPortFrom(nattest.Host(nattest.Clients4, 0x300), uint16(2000+1000*(i/8)+i%8))
		}}
		chosen.hold(t, g, 24)
		r, _ := scanNAT(t, s)
		p, ok := natPoolOf(r, snat.TCP, netip.MustParseAddr("10.2.0.9"), chosen.to)
		if !ok || p.FullBlocks != nil || p.Held != 24 || r.UnknownPools != 0 {
			t.Errorf("a pool of 2000-2007, 3000-3007 and 4000-4007: %+v", r)
		}
	})

	t.Run("no flag", func(t *testing.T) {
		t.Parallel()
		g := newNATGateway(t, ruleset)
		s := natScanner(t, pool.PortRange{Low: 1024, High: 65535})
		c := clients(snat.TCP, 0x100)
		c.hold(t, g, 64)
		r, _ := scanNAT(t, s)
		if p := poolOf(t, r, snat.TCP); p.FullBlocks != nil || !p.Known() {
			t.Errorf("without drops: %+v", p)
		}
		if _, granted := c.open(g); granted {
			t.Fatal("a full pool granted a port")
		}
		r, _ = scanNAT(t, s)
		if p := poolOf(t, r, snat.TCP); !slices.Equal(p.FullBlocks, blocks) || p.Known() {
			t.Errorf("all blocks are full: %+v", p)
		}
		if r, _ := scanNAT(t, natScanner(t, pool.PortRange{Low: 1024, High: 65535})); poolOf(t, r, snat.TCP).FullBlocks != nil {
			t.Error("packets that were dropped before the first scan")
		}
		if r, _ = scanNAT(t, s); poolOf(t, r, snat.TCP).FullBlocks == nil {
			t.Error("the next scan forgets the drops")
		}
		// Ports of other clients, which lie in no blocks.
		other := &natClients{protocol: snat.TCP, from: hosts(nattest.Clients4, 0x1000, 20000), to: netip.AddrPortFrom(nattest.Host(nattest.Servers4, 1), 80)}
		other.hold(t, g, 20)
		r, _ = scanNAT(t, s)
		for _, p := range r.Pools {
			if p.Address == other.to && (p.FullBlocks != nil || !p.Known()) {
				t.Errorf("part of the blocks is taken: %+v", p)
			}
		}
	})
}

//go:build linux

package scan

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat/nattest"
)

// A hostTest is a host in which something is wrong, and a cure for it. It is furnished like a real one: servers of both
// protocols and families in the range and outside, node ports that a rule leads elsewhere, a reserved rest, and another
// network namespace. Of the ports 29990-65535, 40000-40059 are the range, and further ones up to 100 are free.
type hostTest struct {
	t             *testing.T
	scanner       *Scanner
	servers       []*server
	client        oracleClient // to the server that accepts on all addresses
	clients       []oracleClient
	udp           pool.UDPFamily
	other         string // the path of another namespace
	before        map[string]string
	cure          advice.Cure
	fds           []int         // of connections to the destination
	kept          []int         // of others, and where the prediction is about ports that are free
	delay         time.Duration // of reuse
	needless      bool          // see wrong
	neverReusable int           // ports in TIME_WAIT of connections without timestamps
}

const (
	hostRange    = "40000 40059"
	hostReserved = "1024-29989,30010-39949,40020-40029,40100-65535"
	// Ports of these answer for others.
	hostRules = `table ip services {
	chain prerouting {
		type filter hook prerouting priority -300
		tcp dport { 30000-30009, 40020-40024 } tcp dport set 8080
	}
	chain output {
		type filter hook output priority -300
		tcp sport 8080 tcp dport 801 tcp sport set 40020
	}
}
`
)

// hostSysctls are those that a cure may change.
var hostSysctls = []string{"ip_local_port_range", "ip_local_reserved_ports", "tcp_tw_reuse", "tcp_timestamps", "tcp_max_tw_buckets", "ip_unprivileged_port_start", "tcp_fin_timeout"}

// A server waits on a port.
type server struct {
	at     netip.AddrPort
	udp    bool
	v6only bool
	fd     int
}

// open begins to wait.
func (s *server) open() (err error) {
	if s.udp {
		s.fd, err = netnstest.UDP{IPv6: s.at.Addr().Is6(), V6Only: s.v6only, Local: s.at}.Open()
		return err
	}
	family := unix.AF_INET
	if s.at.Addr().Is6() {
		family = unix.AF_INET6
	}
	if s.fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil && s.v6only {
		err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(s.fd, netnstest.Sockaddr(s.at, false))
	}
	if err == nil {
		err = unix.Listen(s.fd, 1024)
	}
	return err
}

// newHost returns a host before anything is wrong.
func newHost(t *testing.T) *hostTest {
	t.Helper()
	netnstest.New(t)
	h := &hostTest{t: t, scanner: newScanner(t, testConfig()), client: clientTo("198.51.100.1", "198.51.100.7:81"), udp: pool.UDPDualStack}
	h.clients = []oracleClient{h.client}
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", hostRange)
	netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", hostReserved)
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "0")
	h.delay = setReuseDelay(t, 100*time.Millisecond)
	nattest.NFT(t, hostRules)
	for _, s := range []struct {
		at          string
		udp, v6only bool
	}{
		{"[::]:81", false, false}, {"0.0.0.0:8080", false, false}, {"[::1]:9000", false, false},
		{"0.0.0.0:29995", false, false}, {"[::]:29996", false, true}, {"127.0.0.9:39951", false, false}, {"[2001:db8::1]:39952", false, false},
		{"0.0.0.0:40003", false, false}, {"[::]:40004", false, false}, {"127.0.0.9:40025", false, false}, {"203.0.113.1:50000", false, false},
		{"127.0.0.1:53", true, false}, {"0.0.0.0:29997", true, false}, {"[::]:29998", true, true}, {"127.0.0.9:39961", true, false}, {"[2001:db8::1]:39962", true, false},
		{"[::]:40015", true, false}, {"0.0.0.0:40016", true, false}, {"0.0.0.0:8472", true, false},
	} {
		server := &server{at: netip.MustParseAddrPort(s.at), udp: s.udp, v6only: s.v6only}
		if err := server.open(); err != nil {
			t.Fatalf("%s: %v", s.at, err)
		}
		h.servers = append(h.servers, server)
	}
	t.Cleanup(func() {
		for _, s := range h.servers {
			unix.Close(s.fd)
		}
		abort(h.fds)
		abort(h.kept)
	})
	h.other = filepath.Join(t.TempDir(), "other")
	netnstest.Mount(t, h.other, func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "50000 50059")
		netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "50001")
	})
	return h
}

// sysctls returns the settings of both namespaces.
func (h *hostTest) sysctls() map[string]string {
	h.t.Helper()
	values := map[string]string{}
	read := func(netns string) {
		for _, name := range hostSysctls {
			value, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
			if err != nil {
				h.t.Fatal(err)
			}
			values[netns+name] = string(value)
		}
	}
	read("")
	netnstest.In(h.t, h.other, func() { read("other ") })
	return values
}

// shell runs a line, which must succeed.
func (h *hostTest) shell(line string) {
	h.t.Helper()
	if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
		h.t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// full has connections take all ports.
func (h *hostTest) full(clients ...oracleClient) {
	h.t.Helper()
	h.fds = append(h.fds, h.fill(200, clients...)...)
}

// fill connects from each of the clients until no port is free, but at most so often. All connections must be answered.
func (h *hostTest) fill(most int, clients ...oracleClient) (fds []int) {
	h.t.Helper()
	for _, c := range clients {
		for len(fds) < most {
			fd, err := c.Dial()
			if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE) {
				break
			}
			if err != nil {
				h.t.Fatal(err)
			}
			fds = append(fds, fd)
		}
	}
	for _, fd := range fds {
		h.checkConnected(fd)
	}
	return fds
}

// checkConnected checks that a connection is answered.
func (h *hostTest) checkConnected(fd int) {
	h.t.Helper()
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(poll, 10000); err != nil || n == 0 {
		local, _ := unix.Getsockname(fd)
		h.t.Fatalf("a connection hangs: %+v, %v", local, err)
	}
}

// abort closes connections without TIME_WAIT.
func abort(fds []int) {
	for _, fd := range fds {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(fd)
	}
}

// release ends what is wrong.
func (h *hostTest) release() {
	abort(h.fds)
	h.fds = nil
}

// serverAt returns the server with a port.
func (h *hostTest) serverAt(port uint16) *server {
	return h.servers[slices.IndexFunc(h.servers, func(s *server) bool { return s.at.Port() == port })]
}

// accept returns so many connections that a client has made.
func (h *hostTest) accept(n int) (fds []int) {
	h.t.Helper()
	for range n {
		fd, _, err := unix.Accept4(h.serverAt(81).fd, unix.SOCK_CLOEXEC)
		if err != nil {
			h.t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// closedFirst is how many connections hosts close: more than half of the ports.
const closedFirst = 30

// timeWait has connections that this host closes first.
func (h *hostTest) timeWait(n int) {
	h.t.Helper()
	netnstest.TimeWait(h.t, h.client.Client, h.serverAt(81).fd, n)
}

// skipTimeWait has one connection skip TIME_WAIT, and then as many within the time between two scans.
func (h *hostTest) skipTimeWait(n int) {
	h.t.Helper()
	netnstest.Sysctl(h.t, "ipv4/tcp_max_tw_buckets", "3")
	h.timeWait(4)
	selfReport(h.t, h.scanner)
	time.Sleep(minOverflowWindow)
	h.timeWait(n)
}

// adviseTimeWait returns what a scan advises for TIME_WAIT.
func (h *hostTest) adviseTimeWait() *advice.Advice {
	h.t.Helper()
	n := h.scanner.Scan(h.t.Context()).Namespaces[0]
	t := &n.TimeWait
	if t.Recent == 0 || t.Overflows != t.Recent+1 {
		h.t.Fatalf("%+v", t)
	}
	return advice.FullTimeWait(&n.TCP.Report, advice.TimeWaitSockets{Sockets: t.Sockets, Limit: t.Limit, Overflows: t.Overflows, Recent: t.Recent, Window: t.Window})
}

// advise returns what a scan advises for TCP.
func (h *hostTest) advise(failing bool) *advice.Advice {
	h.t.Helper()
	r := selfReport(h.t, h.scanner)
	for i := range r.Destinations {
		if d := &r.Destinations[i]; d.Address == h.client.Destination && d.Source == h.client.source {
			return advice.TCP(&r, d, failing)
		}
	}
	h.t.Fatalf("no such destination: %+v", r.Destinations)
	return nil
}

// adviseUDP returns what a scan advises for UDP.
func (h *hostTest) adviseUDP() *advice.Advice {
	h.t.Helper()
	u := collectUDP(h.t, h.scanner)
	p := udpPool(h.t, u, h.udp)
	// The rules of the host have no connection tracking, but this test has.
	return advice.UDP(&u.Report, &p)
}

// adviseSource returns what a scan advises for clients that bind first.
func (h *hostTest) adviseSource() *advice.Advice {
	h.t.Helper()
	r := selfReport(h.t, h.scanner)
	s := sourceOf(h.t, r, h.client.source)
	return advice.BindFirst(&r, &s)
}

// A wrong is what is wrong with a host.
type wrong struct {
	name     string
	setUp    func(h *hostTest)
	advise   func(h *hostTest) *advice.Advice
	cures    []string          // that are run
	check    func(h *hostTest) // that of TCP if it is nil
	needless bool              // ports are reserved without a reason
}

// wrongs are hosts. Together, they have each cure.
var wrongs = []wrong{
	{
		name: "open connections", setUp: func(h *hostTest) { h.full(h.client) }, advise: (*hostTest).tcp,
		cures: []string{"Widen the range", "Move listeners out of the range", "More source addresses", "More destination addresses or ports", "Give back reserved ports"},
	},
	{
		name: "open connections over IPv6, privileged ports", setUp: func(h *hostTest) {
			netnstest.Sysctl(h.t, "ipv4/ip_local_reserved_ports", strings.TrimPrefix(hostReserved, "1024-29989,"))
			netnstest.Sysctl(h.t, "ipv4/ip_unprivileged_port_start", "29990")
			h.client = clientTo("2001:db8::1", "[2001:db8::7]:81").bind(netnstest.BindNoPort)
			h.clients = []oracleClient{h.client}
			h.full(h.client)
		}, advise: (*hostTest).tcp, cures: []string{"Widen the range", "More source addresses"},
	},
	{
		name: "closed connections", setUp: func(h *hostTest) { h.timeWait(closedFirst) }, advise: (*hostTest).tcp,
		cures: []string{"Keep connections alive", "Reuse ports in TIME_WAIT", "Widen the range", "Let the other side close first"},
	},
	{
		name: "closed connections without timestamps", setUp: func(h *hostTest) {
			netnstest.Sysctl(h.t, "ipv4/tcp_timestamps", "0")
			h.timeWait(closedFirst)
			h.neverReusable = closedFirst
		}, advise: (*hostTest).tcp, cures: []string{"Reuse ports in TIME_WAIT"},
	},
	{
		name: "connections that no application closes", setUp: func(h *hostTest) {
			h.full(h.client)
			for _, fd := range h.accept(len(h.fds)) {
				netnstest.Hangup(fd)
			}
		}, advise: (*hostTest).tcp, cures: []string{"Close what the destination has closed"},
	},
	{
		name: "connections that a program has half closed", setUp: func(h *hostTest) {
			h.full(h.client)
			for _, fd := range h.fds {
				if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
					h.t.Fatal(err)
				}
			}
			for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				if r := selfReport(h.t, h.scanner); r.Destinations[0].HalfClosed == len(h.fds) {
					break
				}
			}
		}, advise: (*hostTest).tcp, cures: []string{"Close both directions"},
	},
	{
		name: "both ends on one host", setUp: func(h *hostTest) {
			h.client = clientTo("127.0.0.1", "127.0.0.1:81")
			h.clients = []oracleClient{h.client}
			h.full(h.client)
		}, advise: (*hostTest).tcp, cures: []string{"Use a Unix socket"}, check: func(h *hostTest) {
			if !h.cure.Then.NoPort {
				h.t.Errorf("%+v", h.cure)
			}
		},
	},
	{
		name: "listeners that are not reserved", setUp: func(*hostTest) {}, advise: func(h *hostTest) *advice.Advice {
			r := selfReport(h.t, h.scanner)
			c, _ := advice.ReserveListeners(&r)
			return &advice.Advice{Cures: []advice.Cure{c}}
		}, cures: []string{"Reserve the ports of listeners"}, check: func(*hostTest) {},
	},
	{
		name: "connections without an answer", setUp: func(h *hostTest) {
			h.client = clientTo("198.51.100.1", "192.0.2.7:81").bind(netnstest.BindNoPort)
			for {
				fd, err := h.client.Dial()
				if err != nil {
					break
				}
				h.fds = append(h.fds, fd)
			}
		}, advise: (*hostTest).tcp, cures: []string{"Give up earlier without an answer"},
	},
	{
		name: "others that bind first", setUp: func(h *hostTest) {
			other := clientTo("203.0.113.1", "198.51.100.8:81").bind(netnstest.BindFirst)
			for _, n := range []int{1, 30} {
				h.kept = append(h.kept, h.fill(n, other)...)
				selfReport(h.t, h.scanner)
			}
			h.full(h.client)
		}, advise: (*hostTest).tcp, cures: []string{"Widen the range", "Connect without binding a port"},
	},
	{
		name: "clients that bind first", setUp: func(h *hostTest) {
			h.client = h.client.bind(netnstest.BindFirst)
			h.clients = []oracleClient{h.client}
			for _, n := range []int{1, 30, 200} {
				h.kept = append(h.kept, h.fill(n, h.client)...)
				selfReport(h.t, h.scanner)
			}
		}, advise: (*hostTest).adviseSource, cures: []string{"Connect without binding a port", "Widen the range", "More source addresses"},
	},
	{
		name: "all ports bound", setUp: func(h *hostTest) {
			other := clientTo("203.0.113.1", "198.51.100.8:81").bind(netnstest.BindFirst)
			for _, n := range []int{0, 1, 30, 200} { // those from before the first scan stay unknown
				h.kept = append(h.kept, h.fill(n, other)...)
				selfReport(h.t, h.scanner)
			}
		}, advise: func(h *hostTest) *advice.Advice {
			r := selfReport(h.t, h.scanner)
			return advice.Bound(&r)
		}, cures: []string{"Bind on another address", "Widen the range"},
	},
	{
		name: "clients with a range of their own", setUp: func(h *hostTest) {
			c := h.client
			c.Low, c.High = 40040, 40049
			if fd, err := c.Dial(); errors.Is(err, unix.ENOPROTOOPT) {
				h.fds = h.fill(10, h.client) // as if it had the option, which this kernel does not have
			} else if err != nil {
				h.t.Fatal(err)
			} else {
				h.fds = append(h.fill(9, c), fd)
				h.fds = append(h.fds, h.fill(1, c)...)
			}
			if len(h.fds) != 10 {
				h.t.Fatalf("%d connections from 10 ports", len(h.fds))
			}
		}, advise: func(h *hostTest) *advice.Advice { return h.advise(true) }, cures: []string{"Let clients use the whole range"},
	},
	{
		name: "reserved ports without a reason", needless: true, setUp: func(h *hostTest) {
			nattest.NFT(h.t, "flush ruleset")
			h.full(h.client)
		}, advise: (*hostTest).tcp, cures: []string{"Give back reserved ports"},
	},
	{
		name: "connections that skip TIME_WAIT", setUp: func(h *hostTest) {
			netnstest.Sysctl(h.t, "ipv4/ip_local_port_range", "39800 40059")
			netnstest.Sysctl(h.t, "ipv4/ip_local_reserved_ports", "30000-32767,40020-40029")
			h.skipTimeWait(1)
		}, check: (*hostTest).checkTimeWait, advise: (*hostTest).adviseTimeWait, cures: []string{"Keep connections alive", "Let the other side close first", "Raise the limit of TIME_WAIT"},
	},
	{
		name: "UDP sockets", setUp: func(h *hostTest) { h.kept = h.fillUDP(h.udp) }, check: (*hostTest).checkUDP, advise: (*hostTest).adviseUDP,
		cures: []string{"Close UDP sockets", "Widen the range", "Give back reserved ports"},
	},
	{
		name: "UDP sockets over IPv4", setUp: func(h *hostTest) {
			h.udp = pool.UDPIPv4
			h.kept = h.fillUDP(h.udp)
		}, check: (*hostTest).checkUDP, advise: (*hostTest).adviseUDP, cures: []string{"Widen the range"},
	},
}

func (h *hostTest) tcp() *advice.Advice { return h.advise(false) }

// fillUDP opens UDP sockets until no port is free.
func (h *hostTest) fillUDP(family pool.UDPFamily) (fds []int) {
	h.t.Helper()
	for {
		fd, err := udpClients[family].Open()
		if errors.Is(err, unix.EAGAIN) {
			return fds
		}
		if err != nil {
			h.t.Fatal(err)
		}
		fds = append(fds, fd)
		if len(fds) == 1000 {
			h.t.Fatal("UDP sockets find more ports than there are")
		}
	}
}

// byHand are the cures that are no command. They may change how connections are made.
var byHand = map[string]func(h *hostTest){
	"Close what the destination has closed": (*hostTest).release,
	"Give up earlier without an answer":     (*hostTest).release,
	"Close both directions":                 (*hostTest).release,
	"Use a Unix socket":                     func(*hostTest) {},
	"Bind on another address": func(h *hostTest) {
		h.clients = []oracleClient{h.client.bind(netnstest.BindFirst)}
	},
	"Close UDP sockets": func(h *hostTest) {
		abort(h.kept)
		h.kept = nil
		for _, port := range []uint16{40015, 40016} { // they have the same owner
			i := slices.Index(h.servers, h.serverAt(port))
			unix.Close(h.servers[i].fd)
			h.servers = slices.Delete(h.servers, i, i+1)
		}
	},
	"Keep connections alive":          func(*hostTest) {},
	"Let the other side close first":  func(*hostTest) {},
	"Let clients use the whole range": func(*hostTest) {},
	"Connect without binding a port": func(h *hostTest) {
		abort(h.kept)
		h.kept = nil
		h.clients = []oracleClient{h.client.bind(netnstest.BindNoPort)}
	},
	"More source addresses": func(h *hostTest) {
		for i := range h.cure.N {
			source := fmt.Sprintf("198.51.100.%d", 100+i)
			if h.client.source.Is6() {
				source = fmt.Sprintf("2001:db8::%d", 100+i)
			}
			c := clientTo(source, h.client.Destination.String())
			c.Bind = h.client.Bind
			if c.Bind == netnstest.NoBind {
				c.Bind = netnstest.BindNoPort
			}
			h.clients = append(h.clients, c.bind(c.Bind))
		}
	},
	"More destination addresses or ports": func(h *hostTest) {
		for i := range h.cure.N {
			destination := fmt.Sprintf("198.51.100.%d:81", 100+i)
			if h.client.source.Is6() {
				destination = fmt.Sprintf("[2001:db8::%d]:81", 100+i)
			}
			h.clients = append(h.clients, clientTo(h.client.source.String(), destination))
		}
	},
	"Move listeners out of the range": func(h *hostTest) {
		for _, s := range h.servers {
			if port := s.at.Port(); !s.udp && 40000 <= port && port < 40020 {
				unix.Close(s.fd)
				s.at = netip.AddrPortFrom(s.at.Addr(), port-30000)
				if err := s.open(); err != nil {
					h.t.Fatal(err)
				}
			}
		}
	},
	"Give back reserved ports": func(h *hostTest) {
		netnstest.Sysctl(h.t, "ipv4/ip_local_reserved_ports", strings.Replace(hostReserved, "40020-40029", "40025", 1))
	},
}

// TestCures runs each cure that advice prints for a host, and checks that it does what it says and harms nothing. Each
// cure that a host or the runbook has must be run for one of them.
func TestCures(t *testing.T) {
	printed, run := map[string]bool{}, map[string]bool{}
	for _, w := range wrongs {
		for _, title := range w.cures {
			t.Run(w.name+"/"+title, func(t *testing.T) {
				h := newHost(t)
				h.needless = w.needless
				w.setUp(h)
				a := w.advise(h)
				if a == nil {
					t.Fatal("no advice")
				}
				for i, c := range a.Cures {
					printed[c.Title] = true
					if c.Title == title {
						h.cure, run[title] = c, true
					}
					if c.Title == "Give back reserved ports" {
						h.checkGiveBack(c, i)
					}
				}
				if h.cure.Title == "" {
					t.Fatalf("not in the advice: %+v", a)
				}
				if title == "Give back reserved ports" && !w.needless {
					return // its condition is not met
				}
				h.apply()
				if w.check != nil {
					w.check(h)
				} else {
					h.check()
				}
				h.checkServers()
				h.undo()
			})
		}
	}
	runbook, err := os.ReadFile("../../deploy/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapters, _ := strings.Cut(string(runbook), "\n## Cures\n")
	chapters, _, _ = strings.Cut(chapters, "\n### Make a sysctl last")
	for _, chapter := range strings.Split(chapters, "\n### ")[1:] {
		title, _, _ := strings.Cut(chapter, "\n")
		printed[title] = true
	}
	for title := range printed {
		if !run[title] {
			t.Errorf("the cure %q is not run", title)
		}
	}
}

// TestCureRefused has the kernel refuse the second part of a command, because a setting has changed since: then it has
// changed nothing, and fails.
func TestCureRefused(t *testing.T) {
	h := newHost(t)
	h.full(h.client)
	for _, c := range h.tcp().Cures {
		if c.Title != "Widen the range" {
			continue
		}
		netnstest.Sysctl(t, "ipv4/ip_unprivileged_port_start", "29990")
		before := h.sysctls()
		if out, err := exec.Command("sh", "-c", c.Command).CombinedOutput(); err == nil {
			t.Errorf("%s: %s", c.Command, out)
		}
		if diff := cmp.Diff(before, h.sysctls()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		return
	}
	t.Error("no such cure")
}

// TestCureNotRaised has connections skip TIME_WAIT, which the ports would not suffice for if they did not. There the limit
// is not to be raised: whoever does has connects fail.
func TestCureNotRaised(t *testing.T) {
	h := newHost(t)
	h.skipTimeWait(closedFirst)
	for _, c := range h.adviseTimeWait().Cures {
		if c.Title == "Raise the limit of TIME_WAIT" {
			t.Errorf("%+v", c)
		}
	}
	h.shell("sysctl -w net.ipv4.tcp_max_tw_buckets=1000")
	h.timeWait(closedFirst) // 48 ports suffice for these, and not for the next
	if granted := len(h.fill(closedFirst, h.client)); granted >= closedFirst {
		t.Errorf("%d of %d connections found a port", granted, closedFirst)
	}
}

// checkGiveBack checks the cure that can harm: it comes after others, and has a condition. Its command changes nothing.
func (h *hostTest) checkGiveBack(c advice.Cure, i int) {
	h.t.Helper()
	before := h.sysctls()
	_ = exec.Command("sh", "-c", c.Command).Run() // what it does not find is an error of grep
	if i == 0 || !strings.Contains(c.Condition, "no rule leads their packets elsewhere") || !cmp.Equal(before, h.sysctls()) {
		h.t.Errorf("%d: %+v", i, c)
	}
}

// apply applies the cure.
func (h *hostTest) apply() {
	h.t.Helper()
	h.before = h.sysctls()
	if h.cure.Command != "" && h.cure.Title != "Give back reserved ports" {
		h.shell(h.cure.Command)
	}
	if h.cure.Title == "Reuse ports in TIME_WAIT" {
		time.Sleep(h.delay + 2*tick)
	}
	if act, ok := byHand[h.cure.Title]; ok {
		act(h)
	} else if h.cure.Command == "" {
		h.t.Errorf("the cure %q has no command, and nobody knows how to apply it", h.cure.Title)
	}
}

// check compares the host with the prediction, and checks that nothing is worse.
func (h *hostTest) check() {
	h.t.Helper()
	h.release()
	closed := max(h.inTimeWait(), h.neverReusable)
	granted := h.fill(1000, h.clients...)
	h.compare(len(granted) + closed)
	if h.cure.Title == "Reuse ports in TIME_WAIT" {
		h.close(granted)
		time.Sleep(h.delay + 2*tick)
		granted = h.fill(1000, h.clients...)
		h.compare(len(granted) + h.neverReusable)
	}
	h.fds = granted
}

// checkUDP is check for UDP.
func (h *hostTest) checkUDP() {
	h.t.Helper()
	h.fds = h.fillUDP(h.udp)
	h.compare(len(h.fds))
}

// checkTimeWait is check for the limit of TIME_WAIT, which is to be twice what is needed.
func (h *hostTest) checkTimeWait() {
	h.t.Helper()
	if h.cure.Command == "" {
		return
	}
	before := h.scanner.Scan(h.t.Context()).Namespaces[0].TimeWait
	h.timeWait(h.cure.Then.Ports / 2)
	if after := h.scanner.Scan(h.t.Context()).Namespaces[0].TimeWait; after.Overflows != before.Overflows || after.Limit != h.cure.Then.Ports {
		h.t.Errorf("there is to be place for %d sockets: %+v, then %+v", h.cure.Then.Ports, before, after)
	}
}

// close closes connections first.
func (h *hostTest) close(fds []int) {
	h.t.Helper()
	accepted := h.accept(len(fds))
	for _, fd := range fds {
		netnstest.Hangup(fd)
	}
	for _, fd := range accepted {
		if _, err := unix.Read(fd, make([]byte, 1)); err != nil {
			h.t.Fatal(err)
		}
		netnstest.Hangup(fd)
	}
}

// inTimeWait returns how many ports of the pool are in TIME_WAIT, and not free for connect().
func (h *hostTest) inTimeWait() (n int) {
	h.t.Helper()
	for _, d := range selfReport(h.t, h.scanner).Destinations {
		if d.Address == h.client.Destination && d.Source == h.client.source {
			n = d.Ports[slices.Index(pool.States[:], tcpstate.TimeWait)] - d.Reusable
		}
	}
	return n
}

// compare compares a number of ports with the prediction. Of two ports with UDP servers that a wider range leaves out, the
// prediction does not know whether others have bound them anyway.
func (h *hostTest) compare(ports int) {
	h.t.Helper()
	more := 0
	if h.cure.Title == "Widen the range" && len(h.kept) > 0 {
		more = 2
	}
	if then := h.cure.Then.Ports; ports < then || ports > then+more {
		h.t.Errorf("there are to be %d ports, the kernel grants %d", then, ports)
	}
}

// checkServers checks that all servers still get what is sent to them, and that they can restart while clients use
// each port that they can get.
func (h *hostTest) checkServers() {
	h.t.Helper()
	for _, s := range h.servers {
		h.checkReached(s, 800)
	}
	if !h.needless {
		h.checkReached(&server{at: netip.MustParseAddrPort("198.51.100.7:40020")}, 801)
	}
	for _, s := range h.servers {
		if h.mustRestart(s) {
			unix.Close(s.fd)
		}
	}
	tcp := h.fill(1000, clientTo("198.51.100.1", "198.51.100.200:9999"), clientTo("2001:db8::1", "[2001:db8::200]:9999"))
	defer abort(tcp)
	defer abort(h.fillUDP(pool.UDPDualStack))
	for _, s := range h.servers {
		if h.mustRestart(s) {
			if err := s.open(); err != nil {
				h.t.Errorf("after %q, the server at %v cannot restart: %v", h.cure.Title, s.at, err)
			}
		}
	}
}

// mustRestart reports whether a server could restart for certain before the cure, or the cure is to see to it.
func (h *hostTest) mustRestart(s *server) bool {
	port := s.at.Port()
	return port < 40000 || port > 40059 || 40020 <= port && port <= 40029 || h.cure.Title == "Widen the range" ||
		h.cure.Title == "Reserve the ports of listeners" && !s.udp
}

// checkReached checks that packets from a port come to a server.
func (h *hostTest) checkReached(s *server, port uint16) {
	h.t.Helper()
	to := s.at
	if to.Addr().IsUnspecified() {
		to = netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), to.Port())
		if s.at.Addr().Is6() {
			to = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::7"), to.Port())
		}
	}
	from := netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	if to.Addr().Is6() {
		from = netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	}
	if !s.udp {
		fd, err := netnstest.Client{Bind: netnstest.BindReuseAddr, Source: from, Destination: to}.Dial()
		if err != nil {
			h.t.Errorf("no connection to %v: %v", to, err)
			return
		}
		h.checkConnected(fd)
		if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); n != 0 || err != nil {
			h.t.Errorf("no connection to %v: %v, %v", to, unix.Errno(n), err)
		}
		abort([]int{fd})
		return
	}
	fd, err := netnstest.UDP{IPv6: to.Addr().Is6(), V6Only: to.Addr().Is6(), Local: from, Remote: to}.Open()
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		h.t.Error(err)
	}
	poll := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 10000); n != 1 || err != nil {
		h.t.Errorf("no packet for %v: %v", to, err)
	}
}

// undo undoes the cure: then all settings are as before.
func (h *hostTest) undo() {
	h.t.Helper()
	after := h.sysctls()
	if h.cure.Undo != "" {
		h.shell(h.cure.Undo)
	}
	if (h.cure.Undo != "") == cmp.Equal(h.before, after) {
		h.t.Errorf("%q: undo %q, but the settings were %q and are %q", h.cure.Title, h.cure.Undo, h.before, after)
	}
	if diff := cmp.Diff(h.before, h.sysctls()); diff != "" {
		h.t.Errorf("%q undone (-want +got):\n%s", h.cure.Title, diff)
	}
}

//go:build linux

package scan

import (
	"fmt"
	"math"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
	"ephemeral_port_exporter/collector/snat/nattest"
)

// A natCureTest is a pool of source NAT without a free port, and a cure for it.
type natCureTest struct {
	t       *testing.T
	gateway *nattest.Gateway
	ports   pool.PortRange // of the rule
	to      netip.AddrPort
	udp     bool
	clients int // that have connected
	port    uint16
	cure    advice.Cure
}

// newNATCureTest returns a gateway with a rule that names these ports.
func newNATCureTest(t *testing.T, ports pool.PortRange, rule string) *natCureTest {
	return &natCureTest{
		t: t, gateway: nattest.New(t, nattest.Postrouting(fmt.Sprintf("%s:%d-%d", rule, ports.Low, ports.High))),
		ports: ports, to: netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), 80), port: 20000,
	}
}

// connect sends the first packet of a connection of a further client, and returns its translated source.
func (n *natCureTest) connect() (netip.AddrPort, bool) {
	n.clients++
	p := nattest.Packet{
		Protocol: unix.IPPROTO_TCP, Flags: nattest.SYN, Destination: n.to,
		Source: netip.AddrPortFrom(nattest.Host(nattest.Clients4, n.clients), n.port),
	}
	if n.udp {
		p.Protocol = unix.IPPROTO_UDP
	}
	arrived, ok := n.gateway.Send(p)
	return arrived.Source, ok
}

// granted returns how many of so many connections find a port.
func (n *natCureTest) granted(connections int) (granted int) {
	for range connections {
		if _, ok := n.connect(); ok {
			granted++
		}
	}
	return granted
}

// diagnose finds a cure in the advice for the pool.
func (n *natCureTest) diagnose(title string) {
	n.t.Helper()
	r := n.report(n.ports)
	a := advice.SNAT(&r, &r.Pools[0])
	if a == nil {
		n.t.Fatalf("no advice for %+v", r.Pools[0])
	}
	for _, c := range a.Cures {
		if c.Title == title {
			n.cure = c
			return
		}
	}
	n.t.Fatalf("%q is not in the advice: %+v", title, a)
}

// report returns what a scan with --snat.port-range finds. It must find pools.
func (n *natCureTest) report(ports pool.PortRange) snat.Report {
	n.t.Helper()
	cfg := testConfig()
	cfg.SNAT, cfg.SNATPorts = true, []pool.PortRange{ports}
	self := newScanner(n.t, cfg).Scan(n.t.Context()).Namespaces[0]
	if self.NAT.Outcome == "" || self.NAT.Err != nil || len(self.NAT.Report.Pools) == 0 {
		n.t.Fatalf("source NAT: %+v", self.NAT)
	}
	return self.NAT.Report
}

// rule replaces the rule.
func (n *natCureTest) rule(rule string) {
	n.t.Helper()
	nattest.NFT(n.t, "flush chain inet nat postrouting\n"+
		`add rule inet nat postrouting oifname "server" meta l4proto { tcp, udp } `+rule)
}

// TestNATAdvice fills pools of source NAT, applies a cure, and checks that the gateway then grants as many
// connections as the advice said. A range of 64 ports is searched completely by each connection.
func TestNATAdvice(t *testing.T) {
	t.Parallel()
	ports := pool.PortRange{Low: 40000, High: 40063}
	size := ports.Size()
	full := func(t *testing.T, rule, title string, udp bool) *natCureTest {
		n := newNATCureTest(t, ports, rule)
		n.udp = udp
		if got := n.granted(size + 1); got != size {
			t.Fatalf("%d connections granted, want %d", got, size)
		}
		n.diagnose(title)
		return n
	}
	check := func(t *testing.T, what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d ports, want %d", what, got, want)
		}
	}
	t.Run("More translated addresses", func(t *testing.T) {
		n := full(t, "snat ip to 10.2.0.11", "More translated addresses", false)
		n.rule(fmt.Sprintf("snat ip to 10.2.0.11-10.2.0.%d:%d-%d", 11+n.cure.N, ports.Low, ports.High))
		check(t, "predicted", n.cure.Then.Ports, 3*size)
		check(t, "granted", size+n.granted(12*size), n.cure.Then.Ports) // a hash of the address decides
	})
	t.Run("More destination addresses or ports", func(t *testing.T) {
		n := full(t, "masquerade to ", "More destination addresses or ports", false)
		got := size
		for range n.cure.N {
			n.to = netip.AddrPortFrom(n.to.Addr(), n.to.Port()+1)
			got += n.granted(size + 1)
		}
		check(t, "predicted", n.cure.Then.Ports, 3*size)
		check(t, "granted", got, n.cure.Then.Ports)
	})
	t.Run("Let NAT use all ports", func(t *testing.T) {
		n := full(t, "masquerade to ", "Let NAT use all ports", false)
		n.rule("masquerade fully-random")
		const more = 1000
		check(t, "granted", n.granted(more), more)
		r := n.report(pool.PortRange{Low: 1024, High: 65535})
		check(t, "predicted", n.cure.Then.Ports, r.CapacityPorts)
		check(t, "held", r.Pools[0].Held, size+more)
	})
	t.Run("Do not translate inside the network", func(t *testing.T) {
		n := full(t, "masquerade to ", "Do not translate inside the network", false)
		n.rule(fmt.Sprintf("ip daddr != %v masquerade to :%d-%d", n.to.Addr(), ports.Low, ports.High))
		for range 3 * size {
			if source, ok := n.connect(); !ok || source != netip.AddrPortFrom(nattest.Host(nattest.Clients4, n.clients), n.port) {
				t.Fatalf("granted %v, source %v", ok, source)
			}
		}
		if !n.cure.Then.NoPort {
			t.Error("connections were to need a port")
		}
	})
	t.Run("Shorter timeouts of connection tracking", func(t *testing.T) {
		if testing.Short() {
			t.Skip("waits for a timeout of 10 s")
		}
		n := full(t, "masquerade to ", "Shorter timeouts of connection tracking", true)
		if now, then := n.cure.Now.Ceiling, n.cure.Then.Ceiling; math.Abs(now-float64(size)/30) > 1e-9 || math.Abs(then-float64(size)/10) > 1e-9 {
			t.Errorf("ceiling %v, then %v", now, then)
		}
		shell := func(line string) (timeout string) {
			out, err := exec.Command("sh", "-c", line+" && cat /proc/sys/net/netfilter/nf_conntrack_udp_timeout").CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v: %s", line, err, out)
			}
			return string(out)
		}
		before := shell(":")
		shell(n.cure.Command)
		t.Cleanup(func() {
			if after := shell(n.cure.Undo); !strings.HasSuffix(after, "\n"+before) {
				t.Errorf("%s: %s, want %s", n.cure.Undo, after, before)
			}
		})
		hold := time.Duration(float64(size) / n.cure.Then.Ceiling * float64(time.Second))
		for { // a busy host can take longer than the old timeout
			n.to = netip.AddrPortFrom(n.to.Addr(), n.to.Port()+1)
			start := time.Now()
			check(t, "granted", n.granted(size), size)
			time.Sleep(hold + 2*time.Second)
			again := n.granted(size)
			if time.Since(start) < 30*time.Second {
				check(t, "granted again", again, size)
				break
			}
		}
	})
}

// TestNATAdviceFullyRandom has a client keep its own ports, which lie in a block. It compares the share of searches
// that fail with the advice, before and after the cure.
func TestNATAdviceFullyRandom(t *testing.T) {
	t.Parallel()
	const block = 970
	ports := pool.PortRange{Low: 40000, High: 40999}
	n := newNATCureTest(t, ports, "masquerade to ")
	fill := func() {
		client := nattest.Host(nattest.Clients4, 0)
		for granted := 0; granted < block; {
			p := nattest.Packet{Protocol: unix.IPPROTO_TCP, Flags: nattest.SYN, Source: netip.AddrPortFrom(client, ports.Low+uint16(granted)), Destination: n.to}
			if _, ok := n.gateway.Send(p); ok {
				granted++
			}
		}
	}
	failing := func() float64 {
		const searches = 500
		failed := 0
		for range searches {
			n.port = 50000 // not in the range
			source, ok := n.connect()
			if !ok {
				failed++
				continue
			}
			n.gateway.Refuse(source, n.to, 0) // frees the port
		}
		return float64(failed) / searches
	}
	fill()
	n.diagnose("Choose the ports fully at random")
	// 6 standard deviations of a share of 500 are 0.134 at most.
	if got := failing(); math.Abs(got-n.cure.Now.SearchFailure) > 0.14 {
		t.Errorf("%.3f of the searches fail, the advice says %.3f", got, n.cure.Now.SearchFailure)
	}
	n.rule(fmt.Sprintf("masquerade to :%d-%d fully-random", ports.Low, ports.High))
	// How the ports lie is random: of one pool, 90% of the shares are from 0.05 to 0.26.
	const pools = 10
	mean := 0.0
	for range pools {
		n.to = netip.AddrPortFrom(n.to.Addr(), n.to.Port()+1)
		fill()
		mean += failing() / pools
	}
	if math.Abs(mean-n.cure.Then.SearchFailure) > 0.12 {
		t.Errorf("%.3f of the searches fail, the advice says %.3f, and %.3f before", mean, n.cure.Then.SearchFailure, n.cure.Now.SearchFailure)
	}
}

//go:build linux

package scan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

const boundPorts = 60

// bindAll has clients of 198.51.100.1 bind all ports of a new namespace, each port for a destination of its own. It
// returns them, and what a scanner says that has seen them come, and the exact reader.
func bindAll(t *testing.T) (*load, map[string]pool.Report) {
	t.Helper()
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("40000 %d", 40000+boundPorts-1))
	netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "1024-39999,40100-65535")
	cfg := testConfig()
	cfg.Limits.MinPorts = 0 // the default
	s := newScanner(t, cfg)
	selfReport(t, s)
	l := newLoad(t)
	for i := range boundPorts {
		if l.connect(boundClient(i, netnstest.BindFirst), 1) != 1 {
			t.Fatalf("%d ports bound", i)
		}
		if i%20 == 0 {
			selfReport(t, s)
		}
	}
	reports := map[string]pool.Report{"dump": selfReport(t, s)}
	if netnstest.IsHostRoot() {
		reports["exact"] = collectExact(t)
	}
	return l, reports
}

// boundClient returns the client of a destination, on the address of all that bind.
func boundClient(i int, how netnstest.Bind) netnstest.Client {
	return clientTo("198.51.100.1", fmt.Sprintf("198.51.100.7:%d", 1000+i)).bind(how).Client
}

// TestAllBound has clients bind all ports. Each plain connect() fails then, and the cures keep what they promise.
func TestAllBound(t *testing.T) {
	const other = "198.51.100.2"
	plain := clientTo(other, "198.51.100.9:443").bind(netnstest.BindNoPort)
	tests := []struct {
		title string
		apply func(t *testing.T, l *load, cure advice.Cure) (victim netnstest.Client)
	}{
		{"Connect without binding a port", func(_ *testing.T, l *load, _ advice.Cure) netnstest.Client {
			l.close(len(l.open))
			for i := range boundPorts {
				l.connect(boundClient(i, netnstest.BindNoPort), 1)
			}
			return plain.Client
		}},
		{"Bind on another address", func(t *testing.T, _ *load, _ advice.Cure) netnstest.Client {
			// Not on the address of those that bind.
			for _, how := range []netnstest.Bind{netnstest.BindFirst, netnstest.BindReuseAddr} {
				if _, err := boundClient(boundPorts, how).Connect(); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("bind() on the address of the others: %v, want EADDRINUSE", err)
				}
			}
			return clientTo(other, "198.51.100.9:443").bind(netnstest.BindFirst).Client
		}},
		{"Widen the range", func(t *testing.T, _ *load, cure advice.Cure) netnstest.Client {
			if out, err := exec.Command("sh", "-c", cure.Command).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", cure.Command, err, out)
			}
			return plain.Client
		}},
	}
	for _, tt := range tests {
		t.Run(tt.title, func(t *testing.T) {
			l, reports := bindAll(t)
			for _, c := range []oracleClient{
				plain, clientTo("198.51.100.1", "198.51.100.9:443"), clientTo("198.51.100.1", "198.51.100.7:1000"),
				plain.mapped(), clientTo("2001:db8::1", "[2001:db8::7]:80").bind(netnstest.BindNoPort),
			} {
				if _, err := c.Connect(); !errors.Is(err, unix.EADDRNOTAVAIL) {
					t.Errorf("plain connect() from %v to %v: %v, want EADDRNOTAVAIL", c.source, c.Destination, err)
				}
			}
			var cure advice.Cure
			for reader, r := range reports {
				if r.BoundPorts != boundPorts || r.CapacityPorts != boundPorts || advice.ReachedBound(&r).Level() != advice.Exhausted {
					t.Errorf("%s: %d of %d ports are bound", reader, r.BoundPorts, r.CapacityPorts)
				}
				if unreported := advice.ReachedUnreported(&r); unreported != nil {
					t.Errorf("%s: a destination that limits leave out has %v", reader, unreported)
				}
				if sources := advice.BoundSources(&r); len(sources) != 1 || sources[0].Address.String() != "198.51.100.1" || sources[0].Bound != boundPorts {
					t.Errorf("%s: bound on %+v", reader, sources)
				}
				if len(r.BoundOwners) != 1 || r.BoundOwners[0].Ports != boundPorts {
					t.Errorf("%s: bound by %+v", reader, r.BoundOwners)
				}
				for _, c := range advice.Bound(&r).Cures {
					if c.Title == tt.title {
						cure = c
					}
				}
			}
			if cure.Now.Ports != 0 || cure.Then.Ports == 0 {
				t.Fatalf("%+v", cure)
			}
			victim := tt.apply(t, l, cure)
			if granted, refusal := victim.Fill(t, cure.Then.Ports+1); granted != cure.Then.Ports || refusal == nil {
				t.Errorf("%d ports granted, %v, want %d", granted, refusal, cure.Then.Ports)
			}
		})
	}
}

// TestBindWithoutPort has a Go program set the option that the runbook names, before LocalAddr is bound: no port of its connections
// is lost to others.
func TestBindWithoutPort(t *testing.T) {
	netnstest.New(t)
	server, err := net.Listen("tcp4", "198.51.100.1:81")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	dialer := net.Dialer{
		LocalAddr: &net.TCPAddr{IP: net.IPv4(198, 51, 100, 2)},
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			controlled := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, 24, 1) })
			return errors.Join(controlled, err)
		},
	}
	s := newScanner(t, testConfig())
	selfReport(t, s)
	for range 20 {
		c, err := dialer.Dial("tcp4", "198.51.100.1:81")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	reports := []pool.Report{selfReport(t, s)}
	if netnstest.IsHostRoot() {
		reports = append(reports, collectExact(t))
	}
	for _, r := range reports {
		if src := sourceOf(t, r, netip.MustParseAddr("198.51.100.2")); r.BoundPorts != 0 || src.Ports != 20 {
			t.Errorf("%d bound ports, source %+v", r.BoundPorts, src)
		}
	}
}

// TestAutobindReuse has ip_autobind_reuse set: where clients with SO_REUSEADDR have bound all ports of their address,
// bind() goes on for those that have it, and fails for others. So no threshold of the source says that it fails.
func TestAutobindReuse(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	netnstest.Sysctl(t, "ipv4/ip_autobind_reuse", "1")
	s := newScanner(t, testConfig())
	selfReport(t, s)
	client := func(destination string, how netnstest.Bind) oracleClient {
		return clientTo("198.51.100.1", destination).bind(how)
	}
	for range 10 {
		client("198.51.100.7:80", netnstest.BindReuseAddr).Hold(t, 10)
		selfReport(t, s)
	}
	r := selfReport(t, s)
	src := sourceOf(t, r, netip.MustParseAddr("198.51.100.1"))
	if src.Ports != 100 || src.Capacity != 100 || src.Bound != 100 || r.BoundPorts != 100 {
		t.Errorf("%d ports are bound, source %+v", r.BoundPorts, src)
	}
	if reached := advice.ReachedSource(&r, &src); reached.Level() != advice.Warning || reached.Alerts() != nil {
		t.Errorf("the source has reached %v", reached)
	}
	for i := range 100 { // each with a destination of its own: bind() does not know whether the port has this one already
		client(fmt.Sprintf("198.51.100.8:%d", 1000+i), netnstest.BindReuseAddr).Hold(t, 1)
	}
	if _, err := client("198.51.100.9:80", netnstest.BindFirst).Connect(); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("bind() without SO_REUSEADDR: %v, want EADDRINUSE", err)
	}
	if _, err := client("198.51.100.9:80", netnstest.BindNoPort).Connect(); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("plain connect(): %v, want EADDRNOTAVAIL", err)
	}
}

// TestListenerUnreserved has a service in the range restart. Meanwhile a connection takes its port, so that the service cannot start.
// With the cure, none does.
func TestListenerUnreserved(t *testing.T) {
	for _, reserve := range []bool{false, true} {
		t.Run(fmt.Sprint("reserved ", reserve), func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40009")
			netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "8080,40009")
			service, err := net.Listen("tcp4", "198.51.100.1:40004")
			if err != nil {
				t.Fatal(err)
			}
			r := collect(t)
			cure, ok := advice.ReserveListeners(&r)
			if !ok || r.BlockedPorts != 1 || r.CapacityPorts != 8 {
				t.Fatalf("%+v, %d blocked ports, capacity %d", cure, r.BlockedPorts, r.CapacityPorts)
			}
			if reserve {
				if out, err := exec.Command("sh", "-c", cure.Command).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", cure.Command, err, out)
				}
				r := collect(t)
				if cure, ok := advice.ReserveListeners(&r); ok || r.BlockedPorts != 0 || r.CapacityPorts != 8 {
					t.Errorf("after the cure: %+v, %d blocked ports, capacity %d", cure, r.BlockedPorts, r.CapacityPorts)
				}
			}
			service.Close()
			granted := 0
			for ; granted < 20; granted++ {
				// Not in TCP_REPAIR mode, as Fill does: the sockets would share their ports.
				fd, err := clientTo("198.51.100.1", "192.0.2.7:443").bind(netnstest.BindNoPort).Dial()
				if err != nil {
					break
				}
				t.Cleanup(func() { unix.Close(fd) })
			}
			if want := map[bool]int{false: 9, true: 8}[reserve]; granted != want {
				t.Errorf("%d connections, want %d", granted, want)
			}
			service, err = net.Listen("tcp4", "198.51.100.1:40004")
			if reserve && err != nil || !reserve && !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("the service starts again: %v", err)
			}
			if err == nil {
				service.Close()
			}
		})
	}
}

// TestNoSuchAddress has the error of exhausted ports where all ports are free: the host does not have the address, or IPv6
// is off.
func TestNoSuchAddress(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv6/conf/all/disable_ipv6", "1")
	for _, c := range []oracleClient{
		clientTo("10.9.9.9", "198.51.100.7:80").bind(netnstest.BindFirst),
		clientTo("10.9.9.9", "198.51.100.7:80").bind(netnstest.BindNoPort),
		clientTo("::1", "[::1]:80"),
	} {
		if _, err := c.Connect(); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("from %v to %v: %v, want EADDRNOTAVAIL", c.source, c.Destination, err)
		}
	}
	if r := collect(t); r.MaxUtilization != 0 {
		t.Errorf("the greatest utilization is %v", r.MaxUtilization)
	}
}

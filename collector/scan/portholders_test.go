//go:build linux

package scan

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestPort asks who has a port: nobody, a listener with the connections that it accepted, and clients of two destinations.
func TestPort(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40001")
	netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "40001,81")
	s := newScanner(t, testConfig())
	ask := func(number uint16) Port {
		t.Helper()
		p, err := s.Port(t.Context(), number)
		if err != nil || p.Number != number || p.Time.IsZero() || p.More != 0 {
			t.Fatalf("port %d: %+v, %v", number, p, err)
		}
		return p
	}
	if p := ask(40001); !p.InRange || !p.Reserved || len(p.Holders) != 0 {
		t.Errorf("nobody has it: %+v", p)
	}
	listener := netnstest.Listen(t, "198.51.100.1:81", false)
	client, server := netnstest.Pair(t, clientTo("198.51.100.1", "198.51.100.1:81").Client, listener)
	t.Cleanup(func() { unix.Close(server); unix.Close(client) })
	clientTo("198.51.100.1", "198.51.100.9:443").Hold(t, 1)
	if p := ask(81); p.InRange || !p.Reserved || !p.Listener() || len(p.Holders) != 1 || p.Connections != 1 {
		t.Errorf("a listener, and what it accepted: %+v", p)
	}
	p := ask(40000)
	remotes := map[netip.AddrPort]bool{}
	for _, h := range p.Holders {
		remotes[h.Remote] = true
		if h.Listens || h.State != tcpstate.Established || h.Local != netip.MustParseAddrPort("198.51.100.1:40000") {
			t.Errorf("%+v", h)
		}
		if s.cgroups != nil && h.Cgroup.Path == "" {
			t.Errorf("no control group: %+v", h)
		}
	}
	if !p.InRange || p.Reserved || p.Listener() || len(p.Holders) != 2 || len(remotes) != 2 {
		t.Errorf("two clients: %+v", p)
	}
}

//go:build linux

package scan

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat/nattest"
	"ephemeral_port_exporter/collector/sockdiag"
)

// TestListenerPorts lists listeners in the range and outside, with both readers.
func TestListenerPorts(t *testing.T) {
	for name, newScanner := range map[string]func(*testing.T, Config) *Scanner{
		"netlink": func(t *testing.T, cfg Config) *Scanner { return newScanner(t, cfg) },
		"exact":   newExactScanner,
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40019")
			netnstest.Listen(t, "127.0.0.9:40003", false)
			netnstest.Listen(t, "[::1]:80", true)
			netnstest.Listen(t, "0.0.0.0:65535", false)
			r := selfReport(t, newScanner(t, testConfig()))
			if diff := cmp.Diff([]uint16{80, 40003, 65535}, r.ListenerPorts); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
			if r.CapacityPorts != 19 || r.BlockedPorts != 1 {
				t.Errorf("capacity %d, blocked %d, want 19 and 1", r.CapacityPorts, r.BlockedPorts)
			}
		})
	}
}

// TestServersOfBoth has the report of each protocol know the servers of the other. UDP sockets that are few are read only if
// ports of TCP are in use.
func TestServersOfBoth(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40999")
	s := newScanner(t, testConfig())
	if r := selfReport(t, s); !r.UDPServersKnown || r.UDPServerPorts != nil {
		t.Errorf("without UDP sockets: %v, known %v", r.UDPServerPorts, r.UDPServersKnown)
	}
	netnstest.Listen(t, "127.0.0.9:8080", false)
	for _, at := range []string{"0.0.0.0:53", "[::]:40001"} {
		u := netnstest.UDP{Local: netip.MustParseAddrPort(at)}
		u.IPv6 = u.Local.Addr().Is6()
		u.Hold(t, 1)
	}
	client := clientTo("198.51.100.1", "198.51.100.7:80")
	client.Hold(t, 100)
	if r := selfReport(t, s); r.UDPServersKnown || r.UDPServerPorts != nil {
		t.Errorf("calm: %v, known %v", r.UDPServerPorts, r.UDPServersKnown)
	}
	client.Hold(t, 150)
	if r := selfReport(t, s); !r.UDPServersKnown || !slices.Equal(r.UDPServerPorts, []uint16{53, 40001}) {
		t.Errorf("pressed: %v, known %v", r.UDPServerPorts, r.UDPServersKnown)
	}
	dial, dials := s.dial, 0
	s.dial = func(buffer []byte) (*sockdiag.Conn, error) {
		if dials++; dials > 1 {
			return nil, os.ErrDeadlineExceeded
		}
		return dial(buffer)
	}
	late := s.Scan(t.Context())
	if r := late.Namespaces[0].TCP.Report; r.UDPServersKnown || !late.CutShort() {
		t.Errorf("no time for UDP: known %v, cut short: %v", r.UDPServersKnown, late.CutShort())
	}
	s.dial = dial
	udpClients[pool.UDPIPv4].Hold(t, 100)
	n := s.Scan(t.Context()).Namespaces[0]
	if r := n.TCP.Report; !r.UDPServersKnown || !slices.Equal(r.UDPServerPorts, []uint16{53, 40001}) {
		t.Errorf("with many UDP sockets: %v, known %v", r.UDPServerPorts, r.UDPServersKnown)
	}
	if r := n.UDP.Report; !r.ListenersKnown || !slices.Equal(r.ListenerPorts, []uint16{8080}) {
		t.Errorf("listeners: %v, known %v", r.ListenerPorts, r.ListenersKnown)
	}
}

// TestMayRedirect takes flows of connection tracking, and network interfaces of service proxies, for a sign of rules.
func TestMayRedirect(t *testing.T) {
	netnstest.New(t)
	if selfReport(t, newScanner(t, testConfig())).Settings.MayRedirect {
		t.Error("a sign in a new namespace")
	}
	for _, name := range []string{"cilium_host", "kube-ipvs0"} {
		netnstest.IP(t, "link add "+name+" type veth peer name peer0")
		if !selfReport(t, newScanner(t, testConfig())).Settings.MayRedirect {
			t.Errorf("%s is no sign", name)
		}
		netnstest.IP(t, "link delete "+name)
	}
	nattest.NFT(t, "table ip t {\nchain c {\ntype nat hook prerouting priority -100\ntcp dport 30000 redirect to :8080\n}\n}\n")
	listener := netnstest.Listen(t, "198.51.100.7:80", false)
	client, server := netnstest.Pair(t, clientTo("198.51.100.1", "198.51.100.7:80").Client, listener)
	defer netnstest.Hangup(client)
	defer netnstest.Hangup(server)
	if !selfReport(t, newScanner(t, testConfig())).Settings.MayRedirect {
		t.Error("no sign of a rule")
	}
}

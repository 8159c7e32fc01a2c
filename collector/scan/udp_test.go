//go:build linux

package scan

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// The oracle for UDP: the kernel must give as many sockets a port as the report says.

// collectUDP returns what a scan of the test's namespace learns of UDP.
func collectUDP(t *testing.T, s *Scanner) UDP {
	t.Helper()
	snapshot, err := s.Check()
	if err != nil || snapshot.Namespaces[0].UDP.Err != nil {
		t.Fatalf("collect: %v, %v", err, snapshot.Namespaces[0].UDP.Err)
	}
	return snapshot.Namespaces[0].UDP
}

// udpPool returns the pool of a family.
func udpPool(t *testing.T, u UDP, family pool.UDPFamily) pool.UDPPool {
	t.Helper()
	for _, p := range u.Report.Pools {
		if p.Family == family {
			return p
		}
	}
	t.Fatalf("no pool %s in %+v", family, u)
	return pool.UDPPool{}
}

// udpClients are sockets that get their port in connect(), by the family whose pool they use.
var udpClients = map[pool.UDPFamily]netnstest.UDP{
	pool.UDPIPv4:      {Remote: netip.MustParseAddrPort("198.51.100.7:53")},
	pool.UDPIPv6:      {IPv6: true, V6Only: true, Remote: netip.MustParseAddrPort("[2001:db8::7]:53")},
	pool.UDPDualStack: {IPv6: true, Remote: netip.MustParseAddrPort("[2001:db8::7]:53")},
}

// checkUDP makes sockets of a family until the kernel refuses. It compares their number with the free
// ports of the report before, and then closes them.
func checkUDP(t *testing.T, s *Scanner, family pool.UDPFamily) {
	t.Helper()
	free := freeUDP(t, s, family)
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for {
		fd, err := udpClients[family].Open()
		if err != nil {
			if !errors.Is(err, unix.EAGAIN) {
				t.Errorf("%s: connect() ended with %v, want EAGAIN", family, err)
			}
			break
		}
		if fds = append(fds, fd); len(fds) > free+10 {
			break
		}
	}
	if len(fds) != free {
		t.Errorf("%s: the report says that %d ports are free, connect() granted %d", family, free, len(fds))
	}
	u := collectUDP(t, s)
	if u.Outcome == Idle {
		if u.Sockets != 0 {
			t.Errorf("%s: %d sockets were not read", family, u.Sockets)
		}
		return // no port at all
	}
	if p := udpPool(t, u, family); p.Utilization != 1 || p.Ports != u.Report.CapacityPorts {
		t.Errorf("%s: after connect() failed, utilization is %v and %d of %d ports are held", family, p.Utilization, p.Ports, u.Report.CapacityPorts)
	}
}

// freeUDP returns how many ports of a family are free by the report.
func freeUDP(t *testing.T, s *Scanner, family pool.UDPFamily) int {
	t.Helper()
	u := collectUDP(t, s)
	if u.Outcome == Idle && u.Sockets == 0 {
		ns, err := s.proc.Namespace()
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		settings, err := readPorts(ns)
		if err != nil {
			t.Fatal(err)
		}
		return pool.Capacity(settings)
	}
	if u.Outcome != Collected {
		t.Fatalf("outcome %s with %d sockets", u.Outcome, u.Sockets)
	}
	return u.Report.CapacityPorts - udpPool(t, u, family).Ports
}

// TestOracleUDP tests each combination of range, reserved ports, sockets that hold ports, and family.
// It is not parallel: while another test starts a process, the child has copies of all descriptors for
// a moment, and close() of ours does not free their ports yet.
func TestOracleUDP(t *testing.T) {
	at := netip.MustParseAddrPort
	ranges := []string{"40000 40019", "40000 40020", "40004 40004"}
	reserved := []string{"", "40002,40010-40013", "39990-40003,40019-40100"}
	v4, v6, dual := udpClients[pool.UDPIPv4], udpClients[pool.UDPIPv6], udpClients[pool.UDPDualStack]
	mapped := netnstest.UDP{IPv6: true, Remote: at("198.51.100.7:53")}
	reuseAddr, reusePort := v4, v4
	reuseAddr.ReuseAddr, reusePort.ReusePort = true, true
	holdings := []struct {
		name string
		held []netnstest.UDP
	}{
		{"nothing", nil},
		{"connected IPv4", []netnstest.UDP{v4, v4, v4}},
		{"connected dual-stack", []netnstest.UDP{dual, dual}},
		{"connected mapped", []netnstest.UDP{mapped, mapped}},
		{"bound to another address", []netnstest.UDP{{Local: at("127.0.0.9:40004")}}},
		{"bound to the wildcard", []netnstest.UDP{{Local: at("0.0.0.0:40004")}}},
		{"bound dual-stack", []netnstest.UDP{{IPv6: true, Local: at("[::]:40004")}}},
		{"bound v6only", []netnstest.UDP{{IPv6: true, V6Only: true, Local: at("[::]:40004")}}},
		{"bound to an IPv6 address", []netnstest.UDP{{IPv6: true, Local: at("[2001:db8::1]:40004")}}},
		{"bound mapped", []netnstest.UDP{{IPv6: true, Local: at("[::ffff:198.51.100.1]:40004")}}},
		{"bound and connected", []netnstest.UDP{{Local: at("198.51.100.1:40004"), Remote: v4.Remote}}},
		{"bound dual-stack and connected", []netnstest.UDP{{IPv6: true, Local: at("[::]:40004"), Remote: v6.Remote}}},
		{"one port on two addresses", []netnstest.UDP{{Local: at("127.0.0.8:40004")}, {Local: at("127.0.0.9:40004")}}},
		{"one port for IPv4 and IPv6", []netnstest.UDP{{Local: at("0.0.0.0:40004")}, {IPv6: true, V6Only: true, Local: at("[::]:40004")}}},
		{"SO_REUSEADDR on one port", []netnstest.UDP{{Local: at("0.0.0.0:40004"), ReuseAddr: true}, {Local: at("0.0.0.0:40004"), ReuseAddr: true}}},
		{"SO_REUSEPORT on one port", []netnstest.UDP{{Local: at("0.0.0.0:40004"), ReusePort: true}, {Local: at("0.0.0.0:40004"), ReusePort: true}}},
		{"SO_REUSEADDR connected", []netnstest.UDP{reuseAddr, reuseAddr, reuseAddr}},
		{"SO_REUSEPORT connected", []netnstest.UDP{reusePort, reusePort, reusePort}},
		{"bound to a device", []netnstest.UDP{{Device: "lo", Local: at("0.0.0.0:40004")}}},
		{"UDP-Lite", []netnstest.UDP{{Lite: true, Local: at("0.0.0.0:40004")}}},
		{"outside of the range", []netnstest.UDP{{Local: at("0.0.0.0:50004")}, {IPv6: true, Local: at("[::]:1")}}},
		{"without a port", []netnstest.UDP{{}}},
		{"one of each", []netnstest.UDP{v4, dual, mapped, {Local: at("127.0.0.9:40004")}, {IPv6: true, V6Only: true, Local: at("[::]:40004")}, {IPv6: true, V6Only: true, Local: at("[::]:40005")}}},
	}
	for _, ports := range ranges {
		for _, res := range reserved {
			for _, h := range holdings {
				t.Run(fmt.Sprintf("%s/reserved %s/%s", ports, res, h.name), func(t *testing.T) {
					netnstest.New(t)
					netnstest.Sysctl(t, "ipv4/ip_local_port_range", ports)
					netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", res)
					for _, u := range h.held {
						// In a range of one port, the second has none.
						if _, err := u.Fill(t, 1); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EADDRINUSE) && !u.Lite {
							t.Fatal(err)
						}
					}
					s := newScanner(t, testConfig())
					for _, family := range pool.UDPFamilies {
						checkUDP(t, s, family)
					}
				})
			}
		}
	}
}

// TestOracleUDPCures applies each cure to a pool that is out of ports: the kernel must give as many
// sockets a port as it says. It is not parallel, like TestOracleUDP.
func TestOracleUDPCures(t *testing.T) {
	for _, title := range []string{"Close UDP sockets", "Widen the range", "Give back reserved ports"} {
		for _, family := range pool.UDPFamilies {
			t.Run(title+"/"+string(family), func(t *testing.T) {
				netnstest.New(t)
				netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40049")
				netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "1024-39399,40012-40017,40100-65499")
				servers := []netnstest.UDP{
					{Local: netip.MustParseAddrPort("0.0.0.0:39500")},
					{IPv6: true, V6Only: true, Local: netip.MustParseAddrPort("[::]:39501")},
					{IPv6: true, Local: netip.MustParseAddrPort("[::]:65500")},
					{Local: netip.MustParseAddrPort("127.0.0.9:40013")}, // reserved
					{Local: netip.MustParseAddrPort("127.0.0.9:1053")},
				}
				for _, u := range servers {
					u.Hold(t, 1)
				}
				client := udpClients[family]
				var fds []int
				for {
					fd, err := client.Open()
					if errors.Is(err, unix.EAGAIN) {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					fds = append(fds, fd)
				}
				defer func() {
					for _, fd := range fds {
						unix.Close(fd)
					}
				}()

				s := newScanner(t, testConfig())
				u := collectUDP(t, s)
				p := udpPool(t, u, family)
				a := advice.UDP(&u.Report, &p)
				if a == nil {
					t.Fatal("no advice")
				}
				i := slices.IndexFunc(a.Cures, func(c advice.Cure) bool { return c.Title == title })
				if i < 0 {
					t.Fatalf("no such cure: %+v", a.Cures)
				}
				cure := a.Cures[i]
				if title == "Give back reserved ports" {
					netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "1024-39399,40013,40100-65499")
				} else if cure.Command == "" {
					for _, fd := range fds {
						unix.Close(fd)
					}
					fds = nil
				} else if out, err := exec.Command("sh", "-c", cure.Command).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", cure.Command, err, out)
				}
				if free := freeUDP(t, s, family); free != cure.Then.Ports || cure.Now.Ports != 0 {
					t.Errorf("the cure promised %d free ports and 0 before, the report then says %d: %+v", cure.Then.Ports, free, cure)
				}
				checkUDP(t, s, family)
			})
		}
	}
}

// TestUDPNamespaces checks other namespaces: one is busy if UDP or TCP makes it so, and its UDP sockets are
// read if they are not few. In an idle one, none are.
func TestUDPNamespaces(t *testing.T) {
	dir := t.TempDir()
	client := udpClients[pool.UDPIPv4]
	for name, held := range map[string]struct{ udp, tcp int }{
		"none": {}, "few": {9, 0}, "enough": {10, 0}, "both few": {9, 9}, "tcp": {9, 10}, "full": {1000, 0},
	} {
		netnstest.Mount(t, filepath.Join(dir, name), func() {
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "30000 30999")
			client.Hold(t, held.udp)
			clientTo("198.51.100.1", "198.51.100.7:80").Hold(t, held.tcp)
		})
	}
	found := byName(namedScanner(t, dir))
	for name, want := range map[string]struct {
		outcome, udp Outcome
		sockets      int
		utilization  float64 // of ipv4 and dual_stack
	}{
		"self":     {Collected, Idle, 0, 0},
		"none":     {Idle, "", 0, 0},
		"few":      {Idle, "", 0, 0},
		"both few": {Idle, "", 0, 0},
		"enough":   {Collected, Collected, 10, 0.01},
		"tcp":      {Collected, Idle, 9, 0},
		"full":     {Collected, Collected, 1000, 1},
	} {
		n := found[name]
		if n.TCP.Outcome != want.outcome || n.UDP.Outcome != want.udp || n.UDP.Sockets != want.sockets || n.TCP.Err != nil || n.UDP.Err != nil {
			t.Errorf("%s: got %q, %+v, want %+v", name, n.TCP.Outcome, n.UDP, want)
		}
		if r := n.UDP.Report; r.Pools[0].Utilization != want.utilization || r.Pools[1].Utilization != 0 || r.Pools[2].Utilization != want.utilization {
			t.Errorf("%s: got %+v, want utilization %v", name, r.Pools, want.utilization)
		}
	}
}

// TestUDPUnknown checks what a dump does not tell: whether a socket with a peer is IPV6_V6ONLY. It counts
// as dual-stack, so the kernel may give IPv4 sockets more ports than the report says, never fewer.
func TestUDPUnknown(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40019")
	udpClients[pool.UDPIPv6].Hold(t, 3)
	s := newScanner(t, testConfig())
	free := freeUDP(t, s, pool.UDPIPv4)
	if granted, refusal := udpClients[pool.UDPIPv4].Fill(t, 100); free != 17 || granted != 20 || !errors.Is(refusal, unix.EAGAIN) {
		t.Errorf("the report says that %d ports are free, connect() granted %d, then %v", free, granted, refusal)
	}
}

// TestOracleUDPSend checks that sendto() of a socket without a port fails where connect() does.
func TestOracleUDPSend(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40009")
	client := udpClients[pool.UDPIPv4]
	client.Hold(t, 7)
	s := newScanner(t, testConfig())
	free := freeUDP(t, s, pool.UDPIPv4)
	to := netnstest.Sockaddr(client.Remote, false)
	for granted := 0; ; granted++ {
		fd, err := netnstest.UDP{}.Open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Sendto(fd, nil, 0, to); err != nil {
			if granted != free || !errors.Is(err, unix.EAGAIN) {
				t.Errorf("the report says that %d ports are free, sendto() granted %d, then %v", free, granted, err)
			}
			break
		}
	}
	if u := udpPool(t, collectUDP(t, s), pool.UDPIPv4).Utilization; u != 1 {
		t.Errorf("utilization is %v after sendto() failed, want 1", u)
	}
	// bind() to another address has ports that sockets with a peer do not hold there.
	if granted, err := (netnstest.UDP{Local: netip.MustParseAddrPort("203.0.113.1:0")}).Fill(t, 1); granted != 1 {
		t.Errorf("bind() to an address: %v", err)
	}
}

// TestUDPOwnersKernel checks the owners against real control groups.
func TestUDPOwnersKernel(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	tree := newCgroupTree(t)
	client := udpClients[pool.UDPIPv4]
	for path, n := range map[string]int{"/dns.service": 50, "/game.service": 30, "/batch": 15, "/few": 2} {
		netnstest.NewCgroup(t, tree.mount+tree.root+path)
		netnstest.HoldInCgroup(t, tree.mount+tree.root+path, netnstest.Holding{UDP: &client, Count: n})
	}
	cfg := testConfig()
	cfg.Cgroup = tree.mount
	snapshot := newScanner(t, cfg).Scan(t.Context())
	if snapshot.CgroupsErr != nil {
		t.Error(snapshot.CgroupsErr)
	}
	got := map[pool.UDPFamily]string{}
	for _, p := range snapshot.Namespaces[0].UDP.Report.Pools {
		for _, o := range snapshot.Resolve(p.Owners) {
			got[p.Family] += fmt.Sprintf("%s %d ", strings.TrimPrefix(o.Path, tree.root), o.Ports)
		}
	}
	const owners = "/dns.service 50 /game.service 30 /batch 15 "
	if diff := cmp.Diff(map[pool.UDPFamily]string{pool.UDPIPv4: owners, pool.UDPDualStack: owners}, got); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
}

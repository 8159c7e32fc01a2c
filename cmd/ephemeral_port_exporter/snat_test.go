//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// A gateway is a network namespace whose sockets are behind source NAT: each has one of 64 ports.
type gateway struct {
	path string
	next int // source port
}

const gatewayServer = "192.0.2.7:443"

// newGateway mounts the namespace.
func newGateway(t *testing.T, path string) *gateway {
	t.Helper()
	netnstest.Mount(t, path, func() {
		nft(t, `table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat
		ip daddr 192.0.2.7 meta l4proto udp snat to 198.51.100.1:40000-40063
	}
}
`)
		netnstest.Sysctl(t, "netfilter/nf_conntrack_udp_timeout", "600") // longer than the test
	})
	return &gateway{path: path, next: 20000}
}

// send sends the first packets of n flows. It returns how many were granted a port.
func (g *gateway) send(t *testing.T, n int) (granted int) {
	t.Helper()
	netnstest.In(t, g.path, func() {
		for range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			local := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(g.next))
			g.next++
			if err := unix.Bind(fd, netnstest.Sockaddr(local, false)); err != nil {
				t.Fatal(err)
			}
			err = unix.Sendto(fd, []byte{0}, 0, netnstest.Sockaddr(netip.MustParseAddrPort(gatewayServer), false))
			if err != nil && !errors.Is(err, unix.EPERM) { // which is what the sender sees of a drop
				t.Fatal(err)
			}
			if err == nil {
				granted++
			}
			unix.Close(fd)
		}
	})
	return granted
}

// TestSNAT checks what the program exports of a gateway whose ports run out. The counters move
// exactly when the pool is full.
func TestSNAT(t *testing.T) {
	dir := openTempDir(t)
	g := newGateway(t, filepath.Join(dir, "gateway"))
	cmd := command(t, "--snat", "--snat.port-range=40000-40063", "--namespaces=named", "--namespaces.dir="+dir, "--web.listen-address=127.0.0.1:10271")
	unprivileged(t, cmd, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN)
	e := start(t, cmd, "http://127.0.0.1:10271")

	const (
		namespace   = `{netns="gateway"} `
		of          = `{destination_ip="192.0.2.7",destination_port="443",netns="gateway",`
		destination = of + `protocol="udp",source_ip="198.51.100.1"} `
	)
	held, drops := 0.0, 0.0
	for _, step := range []struct{ send, grant int }{{60, 60}, {4, 4}, {3, 0}} {
		if got := g.send(t, step.send); got != step.grant {
			t.Fatalf("%d of %d flows were granted a port, want %d", got, step.send, step.grant)
		}
		held += float64(step.grant)
		drops += float64(step.send - step.grant)
		_, metrics := e.get(t, "/metrics")
		for series, want := range map[string]float64{
			"conntrack_entries" + namespace:                                                                  held,
			"conntrack_insert_failed_total" + namespace:                                                      drops,
			"conntrack_dropped_total" + namespace:                                                            drops,
			"snat_collect_success" + namespace:                                                               1,
			"snat_collect_flows" + namespace:                                                                 held,
			"snat_max_utilization_ratio" + namespace:                                                         held / 64,
			"snat_utilization_ratio" + destination:                                                           held / 64,
			"snat_ports" + of + `protocol="udp",source_ip="198.51.100.1",state="unreplied"} `:                held,
			"snat_owner_ports" + of + `original_ip="198.51.100.1",protocol="udp",source_ip="198.51.100.1"} `: held,
		} {
			if got := sample(t, metrics, "ephemeral_port_"+series); got != want {
				t.Errorf("after %+v: %s%v, want %v", step, series, got, want)
			}
		}
	}
	_, metrics := e.get(t, "/metrics")
	if got := sample(t, metrics, "ephemeral_port_snat_search_failure_ratio"+destination); got != 1 {
		t.Errorf("search failure %v of a full pool, want 1", got)
	}
	checkStatuses(t, scrapeAtOnce(t, e.url+"/metrics", 40, "ephemeral_port_snat_utilization_ratio"+destination+"1\n"), 40, http.StatusOK)
	if strings.Contains(e.log.String(), "level=ERROR") {
		t.Errorf("log:\n%s", e.log)
	}
}

// TestSNATFlood has one client fill more pools than the limit, all of them, to destinations with low addresses. The pools of
// another client keep their series.
func TestSNATFlood(t *testing.T) {
	dir := openTempDir(t)
	path := filepath.Join(dir, "gateway")
	netnstest.Mount(t, path, func() {
		nft(t, `table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat
		ip saddr 203.0.113.0/24 meta l4proto udp snat to 198.51.100.1:40000-40063
	}
}
`)
		netnstest.Sysctl(t, "netfilter/nf_conntrack_udp_timeout", "600") // longer than the test
		// flow begins flows from so many ports of a client to each destination.
		flow := func(client string, ports int, to ...netip.AddrPort) {
			for port := range ports {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				local := netip.AddrPortFrom(netip.MustParseAddr(client), uint16(20000+port))
				if err := unix.Bind(fd, netnstest.Sockaddr(local, false)); err != nil {
					t.Fatal(err)
				}
				for _, to := range to {
					if err := unix.Sendto(fd, []byte{0}, 0, netnstest.Sockaddr(to, false)); err != nil {
						t.Fatal(err)
					}
				}
				unix.Close(fd)
			}
		}
		flow("203.0.113.2", 63, netip.MustParseAddrPort("192.0.2.201:443"))
		flow("203.0.113.2", 30, netip.MustParseAddrPort("192.0.2.200:443"))
		var low []netip.AddrPort
		for n := range byte(150) {
			to := netip.AddrFrom4([4]byte{192, 0, 2, n})
			low = append(low, netip.AddrPortFrom(to, 1), netip.AddrPortFrom(to, 2))
		}
		flow("203.0.113.66", 64, low...)
	})
	cmd := command(t, "--snat", "--snat.port-range=40000-40063", "--namespaces=named", "--namespaces.dir="+dir, "--web.listen-address=127.0.0.1:10334")
	unprivileged(t, cmd, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN)
	_, metrics := start(t, cmd, "http://127.0.0.1:10334").get(t, "/metrics")
	for destination, want := range map[string]float64{"192.0.2.201": 63. / 64, "192.0.2.200": 30. / 64, "192.0.2.0": 1} {
		series := `ephemeral_port_snat_utilization_ratio{destination_ip="` + destination + `"`
		if !strings.Contains(metrics, series) {
			t.Errorf("no %s…", series)
			continue
		}
		_, rest, _ := strings.Cut(metrics, series)
		line, _, _ := strings.Cut(rest, "\n")
		_, value, _ := strings.Cut(line, "} ")
		if got, err := strconv.ParseFloat(value, 64); err != nil || got != want {
			t.Errorf("%s…: %s, want %v", series, value, want)
		}
	}
	for series, want := range map[string]float64{"snat_unreported_pools": 302 - 256, "snat_unreported_max_utilization_ratio": 1} {
		if got := sample(t, metrics, "ephemeral_port_"+series+`{netns="gateway"} `); got != want {
			t.Errorf("%s %v, want %v", series, got, want)
		}
	}
}

// TestSNATStartFails checks that the error names the capability that is missing.
func TestSNATStartFails(t *testing.T) {
	cmd := command(t, "--snat", "--web.listen-address=127.0.0.1:10272")
	unprivileged(t, cmd, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE)
	checkStartFails(t, cmd, "CAP_NET_ADMIN")
}

// snatCollected is a metric of an exporter that could list the flows of its network namespace.
const snatCollected = `ephemeral_port_snat_collect_success{netns="self"} 1`

// trackFlows has the network namespace of the tests track flows until the end of the test, those of scrapes
// too. None is left that ends amid another test.
func trackFlows(tb testing.TB) {
	tb.Helper()
	tb.Cleanup(func() { deleteFlows(tb) })
	nft(tb, `table inet track {
	chain output {
		type filter hook output priority filter
		ct state new accept
	}
}
`)
	tb.Cleanup(func() { nft(tb, "delete table inet track\n") })
}

// deleteFlows deletes all flows of the network namespace.
func deleteFlows(tb testing.TB) {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	const ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
	request := make([]byte, 16+4)                      // struct nlmsghdr and nfgenmsg
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], ctDelete)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	if _, err := unix.Write(fd, request); err != nil {
		tb.Fatal(err)
	}
	answer := make([]byte, 64)
	if _, err := unix.Read(fd, answer); err != nil {
		tb.Fatal(err)
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[16:])); errno != 0 {
		tb.Fatalf("delete flows: %v", unix.Errno(errno))
	}
}

// nft changes the ruleset of the network namespace of the calling thread.
func nft(tb testing.TB, script string) {
	tb.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("nft -f - of %q: %v: %s", script, err, out)
	}
}

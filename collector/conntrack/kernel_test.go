//go:build linux

package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/conntrack/conntracktest"
	"ephemeral_port_exporter/collector/netns/netnstest"
)

// sortFlows makes comparisons ignore the order of a dump, which has no meaning.
var sortFlows = cmpopts.SortSlices(func(a, b Flow) bool { return fmt.Sprint(a) < fmt.Sprint(b) })

// A network is a client, a gateway that is the test's namespace, and a server. The client has
// 10.0.0.2 and fd00::2, the gateway 10.0.0.1 and fd00::1 on that side and 10.1.0.1 and fd00:1::1
// on the other, the server 10.1.0.2 and fd00:1::2.
type network struct{ client, server string } // paths of namespaces

// newNetwork makes a network with these rules on the gateway, in the language of nft(8).
func newNetwork(t *testing.T, rules string) network {
	t.Helper()
	netnstest.New(t)
	dir := t.TempDir()
	n := network{filepath.Join(dir, "client"), filepath.Join(dir, "server")}
	for i, path := range []string{n.client, n.server} {
		netnstest.Mount(t, path, nil)
		v6 := []string{"fd00::", "fd00:1::"}[i]
		netnstest.IP(t,
			fmt.Sprintf("link add g%d type veth peer name e0 netns %s", i, path),
			fmt.Sprintf("addr add 10.%d.0.1/24 dev g%d", i, i),
			fmt.Sprintf("addr add %s1/64 dev g%d nodad", v6, i),
			fmt.Sprintf("link set g%d up", i),
		)
		netnstest.In(t, path, func() {
			netnstest.IP(t,
				fmt.Sprintf("addr add 10.%d.0.2/24 dev e0", i),
				fmt.Sprintf("addr add %s2/64 dev e0 nodad", v6),
				"link set e0 up",
				fmt.Sprintf("route add default via 10.%d.0.1", i),
				fmt.Sprintf("route add default via %s1", v6),
			)
		})
	}
	netnstest.Sysctl(t, "ipv4/ip_forward", "1")
	netnstest.Sysctl(t, "ipv6/conf/all/forwarding", "1")
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(rules)
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	if err := dial(t).Check(); err != nil { // the kernel loads connection tracking
		t.Fatal(err)
	}
	// Nothing expires on a slow machine.
	netnstest.Sysctl(t, "netfilter/nf_conntrack_tcp_timeout_close", "600")
	netnstest.Sysctl(t, "netfilter/nf_conntrack_udp_timeout", "600")
	return n
}

// socket returns a bound socket in a namespace until the end of the test.
func socket(t *testing.T, path string, typ int, local string) (fd int) {
	t.Helper()
	ap := netip.MustParseAddrPort(local)
	family := unix.AF_INET
	if ap.Addr().Is6() {
		family = unix.AF_INET6
	}
	netnstest.In(t, path, func() {
		var err error
		if fd, err = unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		// No test waits long for a packet that does not come.
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 30}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, netnstest.Sockaddr(ap, false)); err != nil {
			t.Fatalf("bind %v: %v", ap, err)
		}
	})
	return fd
}

// connect connects a socket.
func connect(t *testing.T, fd int, to string) {
	t.Helper()
	if err := unix.Connect(fd, netnstest.Sockaddr(netip.MustParseAddrPort(to), false)); err != nil {
		t.Fatalf("connect to %s: %v", to, err)
	}
}

// listener returns a TCP listener in a namespace.
func listener(t *testing.T, path, local string) (fd int) {
	t.Helper()
	fd = socket(t, path, unix.SOCK_STREAM, local)
	if err := unix.Listen(fd, 10); err != nil {
		t.Fatal(err)
	}
	return fd
}

// accept returns the server's end of a connection, until the end of the test.
func accept(t *testing.T, listener int) (fd int) {
	t.Helper()
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// flow returns the flow with these ends.
func flow(protocol Protocol, state State, source, destination, replySource, replyDestination string) Flow {
	p := netip.MustParseAddrPort
	return Flow{
		Protocol: protocol, State: state,
		Original: Tuple{p(source), p(destination)}, Reply: Tuple{p(replySource), p(replyDestination)},
	}
}

// checkFlows compares the flows with source NAT with those that are wanted. It waits until
// the kernel has seen all packets. Status and Expires are not compared: the caller does that.
func checkFlows(t *testing.T, want ...Flow) []Flow {
	t.Helper()
	c := dial(t)
	var got []Flow
	var diff string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var err error
		if got, err = collectFlows(c); err != nil {
			t.Fatal(err)
		}
		got = slices.DeleteFunc(got, func(f Flow) bool { return f.Status&SrcNAT == 0 })
		if diff = cmp.Diff(want, got, compareAddrs, sortFlows, cmpopts.IgnoreFields(Flow{}, "Status")); diff == "" {
			break
		}
	}
	if diff != "" {
		t.Fatalf("flows (-want +got):\n%s", diff)
	}
	return got
}

// TestKernelMasquerade follows real packets of both families through a gateway. Each destination
// gets the only port of the rule's range.
func TestKernelMasquerade(t *testing.T) {
	for _, tool := range []string{"nft", "iptables"} {
		t.Run(tool, func(t *testing.T) {
			rules := ""
			if tool == "nft" {
				rules = `table inet nat { chain post {
					type nat hook postrouting priority srcnat
					oifname "g1" meta l4proto { tcp, udp } masquerade to :2000-2000
				}
				}`
			}
			n := newNetwork(t, rules)
			if tool == "iptables" {
				for _, command := range []string{"iptables-nft", "ip6tables-nft"} {
					for _, protocol := range []string{"tcp", "udp"} {
						run(t, command, "-t", "nat", "-A", "POSTROUTING", "-o", "g1", "-p", protocol, "-j", "MASQUERADE", "--to-ports", "2000")
					}
				}
			}
			var want []Flow
			for _, f := range []struct{ client, gateway, server string }{
				{"10.0.0.2", "10.1.0.1", "10.1.0.2"},
				{"[fd00::2]", "[fd00:1::1]", "[fd00:1::2]"},
			} {
				masqueraded := func(protocol Protocol, state State, from, to int) Flow {
					client, server := fmt.Sprint(f.client, ":", from), fmt.Sprint(f.server, ":", to)
					return flow(protocol, state, client, server, server, f.gateway+":2000")
				}
				l := listener(t, n.server, f.server+":80")
				client := socket(t, n.client, unix.SOCK_STREAM, f.client+":40000")
				connect(t, client, f.server+":80")
				open := checkFlows(t, append(want, masqueraded(TCP, Established, 40000, 80))...)
				for _, f := range open {
					if f.State == Established && f.Status&(SeenReply|Assured|SrcNAT|DstNAT) != SeenReply|Assured|SrcNAT {
						t.Errorf("status %#x of an open connection", f.Status)
					}
				}
				server := accept(t, l)
				shutdown(t, client)
				checkFlows(t, append(want, masqueraded(TCP, CloseWait, 40000, 80))...)
				shutdown(t, server)
				want = append(want, masqueraded(TCP, TimeWait, 40000, 80))
				checkFlows(t, want...)

				l = listener(t, n.server, f.server+":81")
				reset := socket(t, n.client, unix.SOCK_STREAM, f.client+":40001")
				connect(t, reset, f.server+":81")
				accept(t, l)
				abort(t, reset)
				want = append(want, masqueraded(TCP, Close, 40001, 81))

				udp := socket(t, n.client, unix.SOCK_DGRAM, f.client+":40002")
				peer := socket(t, n.server, unix.SOCK_DGRAM, f.server+":82")
				connect(t, udp, f.server+":82")
				connect(t, peer, f.gateway+":2000")
				for _, fd := range []int{udp, peer} {
					if _, err := unix.Write(fd, []byte{1}); err != nil {
						t.Fatal(err)
					}
				}
				want = append(want, masqueraded(UDP, None, 40002, 82))

				// From now on the server has no way back.
				netnstest.In(t, n.server, func() { netnstest.IP(t, "route add blackhole "+strings.Trim(f.gateway, "[]")) })
				silent := socket(t, n.client, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, f.client+":40003")
				if err := unix.Connect(silent, netnstest.Sockaddr(netip.MustParseAddrPort(f.server+":83"), false)); !errors.Is(err, unix.EINPROGRESS) {
					t.Fatalf("connect without an answer: %v", err)
				}
				want = append(want, masqueraded(TCP, SynSent, 40003, 83))
				checkFlows(t, want...)
			}
		})
	}
}

// TestKernelTranslations has NAT of both ends, with zones and marks. The server needs no socket: the
// flow is there with the first packet.
func TestKernelTranslations(t *testing.T) {
	n := newNetwork(t, `
		table inet nat {
			chain raw {
				type filter hook prerouting priority raw
				udp dport 1001 ct zone set 7
				udp dport 1002 ct original zone set 5
				udp dport 1003 ct reply zone set 0x1234
			}
			chain mangle {
				type filter hook prerouting priority mangle
				udp dport 1004 ct mark set 0x12345678
			}
			chain pre {
				type nat hook prerouting priority dstnat
				ip daddr 10.96.0.1 udp dport 443 dnat ip to 10.1.0.2:8443
				ip6 daddr fd00:96::1 udp dport 443 dnat ip6 to [fd00:1::2]:8443
				ip daddr 10.96.0.2 udp dport 80 dnat ip to 10.0.0.2:8080
			}
			chain post {
				type nat hook postrouting priority srcnat
				udp dport 1005 snat ip to 10.1.0.100:3000
				udp dport 1006 return
				ip daddr 10.0.0.2 meta l4proto udp masquerade to :4000-4000
				oifname "g1" meta l4proto udp masquerade to :2000-2000
			}
		}`)
	const client, client6, gateway, gateway6 = "10.0.0.2:50000", "[fd00::2]:50000", "10.1.0.1:2000", "[fd00:1::1]:2000"
	plain := func(to string) Flow { return flow(UDP, None, client, to, to, gateway) }
	with := func(f Flow, change func(*Flow)) Flow { change(&f); return f }
	sent := map[string]Flow{
		"10.96.0.1:443":    flow(UDP, None, client, "10.96.0.1:443", "10.1.0.2:8443", gateway),
		"[fd00:96::1]:443": flow(UDP, None, client6, "[fd00:96::1]:443", "[fd00:1::2]:8443", gateway6),
		"10.96.0.2:80":     flow(UDP, None, client, "10.96.0.2:80", "10.0.0.2:8080", "10.0.0.1:4000"), // hairpin
		"10.1.0.2:1001":    with(plain("10.1.0.2:1001"), func(f *Flow) { f.Zone = 7 }),
		"10.1.0.2:1002":    plain("10.1.0.2:1002"), // zone of the other direction
		"10.1.0.2:1003":    with(plain("10.1.0.2:1003"), func(f *Flow) { f.Zone = 0x1234 }),
		"10.1.0.2:1005":    flow(UDP, None, client, "10.1.0.2:1005", "10.1.0.2:1005", "10.1.0.100:3000"),
		"10.1.0.2:1006":    {}, // no NAT
	}
	fds := map[bool]int{false: socket(t, n.client, unix.SOCK_DGRAM, client), true: socket(t, n.client, unix.SOCK_DGRAM, client6)}
	var want []Flow
	for to, f := range sent {
		ap := netip.MustParseAddrPort(to)
		if err := unix.Sendto(fds[ap.Addr().Is6()], []byte{1}, 0, netnstest.Sockaddr(ap, false)); err != nil {
			t.Fatalf("send to %v: %v", to, err)
		}
		if f.Protocol != 0 {
			want = append(want, f)
		}
	}
	for _, f := range checkFlows(t, want...) {
		if dnat := f.Reply.Source != f.Original.Destination; dnat != (f.Status&DstNAT != 0) {
			t.Errorf("%+v: DstNAT is wrong", f)
		}
	}
}

// TestKernelUnchangedSource shows that SrcNAT means a change: the gateway's own flows and those whose
// source the rule leaves as it was have ports of the same pool without it.
func TestKernelUnchangedSource(t *testing.T) {
	newNetwork(t, `table ip nat { chain post { type nat hook postrouting priority srcnat; masquerade; }; }`)
	fd := socket(t, "/proc/thread-self/ns/net", unix.SOCK_DGRAM, "10.1.0.1:50000")
	if err := unix.Sendto(fd, []byte{1}, 0, netnstest.Sockaddr(netip.MustParseAddrPort("10.1.0.2:53"), false)); err != nil {
		t.Fatal(err)
	}
	flows, err := collectFlows(dial(t))
	want := flow(UDP, None, "10.1.0.1:50000", "10.1.0.2:53", "10.1.0.2:53", "10.1.0.1:50000")
	if diff := cmp.Diff([]Flow{want}, flows, compareAddrs, cmpopts.IgnoreFields(Flow{}, "Status")); err != nil || diff != "" {
		t.Fatalf("%v, flows (-want +got):\n%s", err, diff)
	}
	if flows[0].Status&SrcNAT != 0 {
		t.Errorf("status %#x of a flow whose source is as it was", flows[0].Status)
	}
}

// run runs a program in the test's namespace and returns what it says.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, &stderr)
	}
	return string(out)
}

func shutdown(t *testing.T, fd int) {
	t.Helper()
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
}

// abort sends a RST. The descriptor stays open.
func abort(t *testing.T, fd int) {
	t.Helper()
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		t.Fatal(err)
	}
	other, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	if err := unix.Dup3(other, fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
}

// everyState returns flows of both families and protocols, in every state, with and without NAT
// and zone.
func everyState() []conntracktest.Flow {
	var flows []conntracktest.Flow
	for _, family := range []struct{ client, server, gateway string }{
		{"10.0.0.2", "10.1.0.2", "10.1.0.1"},
		{"fd00::2", "fd00:1::2", "fd00:1::1"},
	} {
		for state := uint8(1); state <= 9; state++ {
			for kind := range uint16(4) {
				f := conntracktest.Flow{
					Protocol: unix.IPPROTO_TCP, State: state, Timeout: 1000 * uint32(state),
					Original: conntracktest.Tuple{
						Source:      netip.AddrPortFrom(netip.MustParseAddr(family.client), 40000+kind),
						Destination: netip.AddrPortFrom(netip.MustParseAddr(family.server), 400+uint16(state)),
					},
				}
				f.Reply = f.Original.Reverse()
				switch kind {
				case 1:
					f.Protocol, f.State = unix.IPPROTO_UDP, 0
					fallthrough
				case 2:
					f.Reply.Destination = netip.AddrPortFrom(netip.MustParseAddr(family.gateway), 2000+kind)
				case 3:
					f.Zone = 300
				}
				flows = append(flows, f)
			}
		}
	}
	return flows
}

// TestKernelStates compares a dump with what was written, and with conntrack(8).
func TestKernelStates(t *testing.T) {
	netnstest.New(t)
	written := everyState()
	if err := conntracktest.Open(t).Create(len(written), func(i int) conntracktest.Flow { return written[i] }); err != nil {
		t.Fatal(err)
	}
	var want []Flow
	for _, w := range written {
		want = append(want, Flow{
			Protocol: Protocol(w.Protocol), State: State(w.State),
			Original: Tuple{w.Original.Source, w.Original.Destination}, Reply: Tuple{w.Reply.Source, w.Reply.Destination},
			Zone: w.Zone,
		})
	}
	got, err := collectFlows(dial(t))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compareAddrs, sortFlows, cmpopts.IgnoreFields(Flow{}, "Status")); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	for _, f := range got {
		if translated := f.Reply.Destination != f.Original.Source; translated != (f.Status&SrcNAT != 0) {
			t.Errorf("%+v: SrcNAT is wrong", f)
		}
	}

	states := []string{"", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"}
	known := map[string]bool{}
	for line := range strings.Lines(run(t, "conntrack", "-L", "-f", "ipv4") + run(t, "conntrack", "-L", "-f", "ipv6")) {
		known[identity(line)] = true
	}
	for _, f := range got {
		text := fmt.Sprintf("%s src=%v dst=%v sport=%d dport=%d src=%v dst=%v sport=%d dport=%d",
			states[f.State], f.Original.Source.Addr(), f.Original.Destination.Addr(), f.Original.Source.Port(), f.Original.Destination.Port(),
			f.Reply.Source.Addr(), f.Reply.Destination.Addr(), f.Reply.Source.Port(), f.Reply.Destination.Port())
		if f.Zone != 0 {
			text += fmt.Sprintf(" zone=%d", f.Zone)
		}
		if !known[strings.TrimSpace(text)] {
			t.Errorf("conntrack(8) has no %q", text)
		}
	}
	if len(known) != len(got) {
		t.Errorf("conntrack(8) has %d flows, the dump %d", len(known), len(got))
	}
}

// identity returns a line of conntrack(8) without the fields that TestKernelStates does not compare:
//
//	tcp 6 999 SYN_SENT src=10.0.0.2 … [UNREPLIED] src=10.1.0.2 … mark=0 use=1
func identity(line string) string {
	var kept []string
	for _, field := range strings.Fields(line)[3:] {
		if !strings.HasPrefix(field, "[") && !strings.HasPrefix(field, "mark=") && !strings.HasPrefix(field, "use=") {
			kept = append(kept, field)
		}
	}
	return strings.Join(kept, " ")
}

// TestKernelEmpty has no flows: that is not an error.
func TestKernelEmpty(t *testing.T) {
	netnstest.New(t)
	c := dial(t)
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	if flows, err := collectFlows(c); err != nil || len(flows) != 0 {
		t.Errorf("%v, %v, want none", flows, err)
	}
}

// TestKernelDeadline checks the deadline with a real socket.
func TestKernelDeadline(t *testing.T) {
	c := dial(t)
	c.SetDeadline(time.Now().Add(-time.Second))
	if _, err := collectFlows(c); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want %v", err, os.ErrDeadlineExceeded)
	}
}

// TestKernelPrivilege checks that the kernel wants CAP_NET_ADMIN, in the user namespace of the network
// namespace, and that the error says so.
func TestKernelPrivilege(t *testing.T) {
	netnstest.New(t) // the thread, and what it has lost, end with the test
	if err := dial(t).Check(); err != nil {
		t.Fatal(err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	c := dial(t)
	if err := c.Check(); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("check: got %v, want %v", err, os.ErrPermission)
	}
	if _, err := collectFlows(dial(t)); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("dump: got %v, want %v", err, os.ErrPermission)
	}
}

// TestKernelNoSubsystem checks what the kernel says to a subsystem of nfnetlink that is not loaded.
func TestKernelNoSubsystem(t *testing.T) {
	const unused = 200 << 8
	_, err := dial(t).conn.Ask(unused, allFamilies())
	err = answerError(err)
	if !errors.Is(err, ErrUnsupported) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v, want %v", err, ErrUnsupported)
	}
}

// TestKernelChurn dumps flows while others come and go as fast as they can. Each flow that stays must
// be in each dump. The kernel may repeat flows, but not with other content.
func TestKernelChurn(t *testing.T) {
	netnstest.New(t)
	const stay, churn = 20_000, 2_000
	at := func(second byte, i int) conntracktest.Flow {
		f := conntracktest.Flow{
			Protocol: unix.IPPROTO_TCP, State: 3, Timeout: 3600,
			Original: conntracktest.Tuple{
				Source:      netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, second, byte(i >> 8), byte(i)}), 40000),
				Destination: netip.MustParseAddrPort("10.1.0.2:443"),
			},
		}
		f.Reply = f.Original.Reverse()
		f.Reply.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, second}), 1024+uint16(i))
		return f
	}
	table := conntracktest.Open(t)
	if err := table.Create(stay, func(i int) conntracktest.Flow { return at(1, i) }); err != nil {
		t.Fatal(err)
	}
	c := dial(t)

	var stop atomic.Bool
	var changes int
	stopped := make(chan error)
	start := time.Now()
	go func() {
		var err error
		for !stop.Load() && err == nil {
			flow := func(i int) conntracktest.Flow { return at(2, i) }
			if err = table.Create(churn, flow); err == nil {
				err = table.Delete(churn, flow)
			}
			changes += 2 * churn
		}
		stopped <- err
	}()
	repeated := 0
	for range 10 {
		seen := make([]int, stay)
		others := 0
		err := c.Flows(func(f *Flow) {
			source := f.Original.Source.Addr().As4()
			if source[1] != 1 {
				others++
				return
			}
			i := int(source[2])<<8 + int(source[3])
			if f.Reply.Destination.Port() != 1024+uint16(i) {
				t.Errorf("%+v: not its own port", f)
			}
			seen[i]++
		})
		if err != nil {
			t.Error(err)
			break
		}
		missing := 0
		for _, n := range seen {
			if n == 0 {
				missing++
			} else {
				repeated += n - 1
			}
		}
		if missing > 0 {
			t.Errorf("%d of %d flows are missing, %d others", missing, stay, others)
		}
	}
	stop.Store(true)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f flows came or went in a second, %d rows were repeated", float64(changes)/time.Since(start).Seconds(), repeated)
}

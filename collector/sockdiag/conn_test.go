//go:build linux

package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
)

// fakeConn returns a Conn to a fake kernel that sends these answers.
func fakeConn(t *testing.T, answer func(sockdiagtest.Request) [][]byte) *Conn {
	t.Helper()
	fd, err := sockdiagtest.Dial(answer)
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(fd, make([]byte, BufferSize))
	t.Cleanup(func() { c.Close() })
	return c
}

// collectSockets returns all sockets of a dump.
func collectSockets(dump func(low, high uint16, each func(*Socket)) error) ([]Socket, error) {
	var sockets []Socket
	err := dump(0, 65535, func(s *Socket) { sockets = append(sockets, *s) })
	return sockets, err
}

// connected returns a dump of all sockets that have or had a peer.
func connected(c *Conn) func(low, high uint16, each func(*Socket)) error {
	states := []tcpstate.State{tcpstate.Established, tcpstate.SynSent, tcpstate.SynRecv, tcpstate.FinWait1, tcpstate.FinWait2, tcpstate.TimeWait, tcpstate.CloseWait, tcpstate.LastAck, tcpstate.Closing}
	return func(low, high uint16, each func(*Socket)) error { return c.Sockets(states, low, high, each) }
}

// sortSockets makes comparisons ignore the order of a dump, which has no meaning.
var sortSockets = cmpopts.SortSlices(func(a, b Socket) bool { return fmt.Sprint(a) < fmt.Sprint(b) })

// ignoreCgroup is for tests that run in any control group, at any time.
var ignoreCgroup = cmpopts.IgnoreFields(Socket{}, "Cgroup", "Seen")

// TestConnFallsBack checks that a Conn dumps each family by itself if the kernel refuses to dump
// both at once.
func TestConnFallsBack(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EOPNOTSUPP, unix.EINVAL} {
		t.Run(errno.Error(), func(t *testing.T) {
			asked := make(chan string, 10)
			c := fakeConn(t, func(r sockdiagtest.Request) [][]byte {
				asked <- fmt.Sprintf("%d/%d", r.Type, r.Body[0])
				switch {
				case r.Type == 18:
					return [][]byte{r.Error(errno)}
				case r.Body[0] == unix.AF_INET:
					return [][]byte{r.Socket(1, v4Local, v4Remote, 0), r.Done(0)}
				default:
					return [][]byte{r.Socket(6, v6Local, v6Remote, 0), r.Done(0)}
				}
			})
			want := []Socket{{State: tcpstate.TimeWait, Local: v6Local, Remote: v6Remote}, {State: tcpstate.Established, Local: v4Local, Remote: v4Remote}}
			for range 2 {
				got, err := collectSockets(connected(c))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got, compareAddrs, sortSockets, ignoreCgroup); diff != "" {
					t.Errorf("sockets (-want +got):\n%s", diff)
				}
			}
			for _, want := range []string{"18/0", "20/2", "20/10", "20/2", "20/10"} {
				if got := <-asked; got != want {
					t.Errorf("request type/family: got %s, want %s", got, want)
				}
			}
		})
	}
}

func TestConnErrors(t *testing.T) {
	reply := func(answers ...func(sockdiagtest.Request) []byte) func(sockdiagtest.Request) [][]byte {
		return func(r sockdiagtest.Request) [][]byte {
			var datagrams [][]byte
			for _, a := range answers {
				datagrams = append(datagrams, a(r))
			}
			return datagrams
		}
	}
	row := func(r sockdiagtest.Request) []byte { return r.Socket(6, v4Local, v4Remote, 0) }
	tests := []struct {
		name   string
		answer func(sockdiagtest.Request) [][]byte
		want   error
		text   string
	}{
		{"nothing", reply(), os.ErrDeadlineExceeded, "receive answer"},
		{"rows without an end", reply(row, row), os.ErrDeadlineExceeded, "receive answer"},
		{"half a message", reply(func(r sockdiagtest.Request) []byte { return row(r)[:40] }), ErrMalformed, "length 88, 40 bytes left"},
		{"datagram beyond the buffer", reply(func(r sockdiagtest.Request) []byte {
			return slices.Repeat(row(r), BufferSize/88+1)
		}), ErrMalformed, "datagram of 65536 bytes or more"},
		{"no tcp_diag", reply(func(r sockdiagtest.Request) []byte { return r.Done(unix.ENOENT) }), ErrUnsupported, "modprobe tcp_diag"},
		{"no tcp_diag after rows", reply(row, func(r sockdiagtest.Request) []byte { return r.Done(unix.ENOENT) }), ErrUnsupported, "modprobe tcp_diag"},
		{"no inet_diag", func(r sockdiagtest.Request) [][]byte {
			if r.Type == 18 {
				return [][]byte{r.Error(unix.EOPNOTSUPP)}
			}
			return [][]byte{r.Error(unix.ENOENT)}
		}, ErrUnsupported, "modprobe inet_diag"},
		{"no inet_diag for IPv6", func(r sockdiagtest.Request) [][]byte {
			switch {
			case r.Type == 18:
				return [][]byte{r.Error(unix.EINVAL)}
			case r.Body[0] == unix.AF_INET:
				return [][]byte{row(r), r.Done(0)}
			default:
				return [][]byte{r.Error(unix.ENOENT)}
			}
		}, ErrUnsupported, "modprobe inet_diag"},
		{"no tcp_diag for IPv6", func(r sockdiagtest.Request) [][]byte {
			switch {
			case r.Type == 18:
				return [][]byte{r.Error(unix.EINVAL)}
			case r.Body[0] == unix.AF_INET:
				return [][]byte{r.Done(0)}
			default:
				return [][]byte{r.Done(unix.ENOENT)}
			}
		}, ErrUnsupported, "modprobe tcp_diag"},
		{"refusal after rows", func(r sockdiagtest.Request) [][]byte {
			if r.Type == 18 {
				return [][]byte{row(r), r.Error(unix.EINVAL)}
			}
			return [][]byte{row(r), r.Done(0)} // a second dump would count the row twice
		}, unix.EINVAL, "refused"},
		{"forbidden", reply(func(r sockdiagtest.Request) []byte { return r.Error(unix.EPERM) }), os.ErrPermission, "security policy"},
		{"busy", reply(func(r sockdiagtest.Request) []byte { return r.Error(unix.EBUSY) }), unix.EBUSY, "refused by the kernel: device or resource busy"},
		{"busy after rows", reply(row, func(r sockdiagtest.Request) []byte { return r.Done(unix.EBUSY) }), unix.EBUSY, "failed in the kernel"},
		{"interrupted by a signal in the kernel", reply(row, func(r sockdiagtest.Request) []byte { return r.Done(unix.EINTR) }), unix.EINTR, "failed in the kernel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := fakeConn(t, tt.answer)
			timeout := time.Minute
			if errors.Is(tt.want, os.ErrDeadlineExceeded) {
				timeout = 100 * time.Millisecond
			}
			c.SetDeadline(time.Now().Add(timeout))
			_, err := collectSockets(connected(c))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v that says %q", err, tt.want, tt.text)
			}
			if !strings.HasPrefix(err.Error(), "sockdiag: dump tcp sockets: ") {
				t.Errorf("%q does not say what was tried", err)
			}
		})
	}
}

// TestConnAllocations checks that a Conn allocates nothing for a socket or a datagram.
func TestConnAllocations(t *testing.T) {
	allocations := func(datagrams int) float64 {
		return testing.AllocsPerRun(10, func() {
			r := sockdiagtest.Request{Type: uint16(typeGetSock), Sequence: 1}
			rows := slices.Repeat(r.Socket(6, v6Local, v6Remote, 0), 20)
			fd, peer, err := sockdiagtest.Queue(append(slices.Repeat([][]byte{rows}, datagrams), r.Done(0))...)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(peer)
			c := NewConn(fd, make([]byte, BufferSize))
			defer c.Close()
			sockets := 0
			if err := c.Sockets([]tcpstate.State{tcpstate.TimeWait}, 0, 65535, func(*Socket) { sockets++ }); err != nil || sockets != 20*datagrams {
				t.Fatalf("%d sockets, %v", sockets, err)
			}
		})
	}
	if few, many := allocations(1), allocations(20); many != few {
		t.Errorf("%v allocations for a datagram, %v for 20", few, many)
	}
}

// dial returns a Conn to the test's namespace.
func dial(t *testing.T) *Conn {
	t.Helper()
	c, err := Dial(make([]byte, BufferSize))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestConnKernel dumps known sockets with both types of request.
func TestConnKernel(t *testing.T) {
	netnstest.New(t)
	var sockets, listeners []Socket
	for _, s := range []struct {
		mapped              bool
		source, destination string
	}{
		{false, "198.51.100.1:50000", "192.0.2.1:443"},
		{true, "198.51.100.1:50001", "192.0.2.2:443"},
		{false, "[2001:db8::1]:50002", "[2001:db8::9]:443"},
		{false, "127.0.0.1:49999", "127.0.0.1:1"},
	} {
		c := netnstest.Client{
			Bind: netnstest.BindFirst, Mapped: s.mapped,
			Source: netip.MustParseAddrPort(s.source), Destination: netip.MustParseAddrPort(s.destination),
		}
		c.Hold(t, 1)
		sockets = append(sockets, Socket{State: tcpstate.Established, Local: c.Source, Remote: c.Destination})
	}
	for _, l := range []struct {
		addr, remote string
		v6only       bool
	}{
		{"127.0.0.1:50010", "0.0.0.0:0", false},
		{"[::]:50011", "[::]:0", false},
		{"[::]:50012", "[::]:0", true},
	} {
		netnstest.Listen(t, l.addr, l.v6only)
		listeners = append(listeners, Socket{
			State: tcpstate.Listen, V6Only: l.v6only,
			Local: netip.MustParseAddrPort(l.addr), Remote: netip.MustParseAddrPort(l.remote),
		})
	}

	for _, byFamily := range []bool{false, true} {
		c := dial(t)
		c.byFamily = byFamily
		check := func(dump func(uint16, uint16, func(*Socket)) error, low, high uint16, want []Socket) {
			t.Helper()
			var got []Socket
			if err := dump(low, high, func(s *Socket) { got = append(got, *s) }); err != nil {
				t.Errorf("dump %d-%d, by family %v: %v", low, high, byFamily, err)
			}
			if diff := cmp.Diff(want, got, compareAddrs, sortSockets, ignoreCgroup); diff != "" {
				t.Errorf("dump %d-%d, by family %v (-want +got):\n%s", low, high, byFamily, diff)
			}
		}
		check(connected(c), 0, 65535, sockets)
		check(connected(c), 50000, 50002, sockets[:3])
		check(connected(c), 50001, 50001, sockets[1:2])
		check(connected(c), 50003, 65535, nil)
		check(connected(c), 1, 49999, sockets[3:])
		check(c.Listeners, 0, 65535, listeners)
		check(c.Listeners, 50011, 50012, listeners[1:])
		if c.byFamily != byFamily {
			t.Error("this kernel refused TCPDIAG_GETSOCK")
		}
	}
}

// TestConnKernelTimeWait checks the time that remains in TIME_WAIT.
func TestConnKernelTimeWait(t *testing.T) {
	netnstest.New(t)
	listener := netnstest.Listen(t, "198.51.100.7:80", false)
	netnstest.TimeWait(t, netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.7:80")}, listener, 1)

	got, err := collectSockets(connected(dial(t)))
	for deadline := time.Now().Add(30 * time.Second); len(got) > 1 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		got, err = collectSockets(connected(dial(t))) // the other end is in LAST_ACK
	}
	if err != nil || len(got) != 1 || got[0].Cgroup != 0 {
		t.Fatalf("got %v, %v, want one socket", got, err)
	}
	if s := got[0]; s.State != tcpstate.TimeWait || !s.Mini || s.Expires <= 50*time.Second || s.Expires > 60*time.Second {
		t.Errorf("got %+v, want time_wait that expires in 60 s", s)
	}
}

// TestConnKernelCgroup checks the number of the control group: it is that in which the socket was
// made, also when the process has moved to another one, and when the control group is gone. The
// second type of request has it too.
func TestConnKernelCgroup(t *testing.T) {
	netnstest.New(t)
	mount := netnstest.Cgroups(t)
	base := filepath.Join(mount, fmt.Sprint("sockdiag-", os.Getpid()))
	netnstest.NewCgroup(t, base)
	first, gone := filepath.Join(base, "first"), filepath.Join(base, "gone")
	ids := map[string]uint64{"192.0.2.1:443": netnstest.NewCgroup(t, first), "192.0.2.2:443": netnstest.NewCgroup(t, gone)}
	want := map[string]uint64{}
	hold := func(dir, destination string) {
		t.Helper()
		c := netnstest.Client{Destination: netip.MustParseAddrPort(destination)}
		pid := netnstest.HoldInCgroup(t, dir, netnstest.Holding{Client: c, Count: 3})
		netnstest.MoveToCgroup(t, mount, pid)
		want[destination] = ids[destination]
	}
	hold(first, "192.0.2.1:443")
	hold(gone, "192.0.2.2:443")
	netnstest.RemoveCgroup(t, gone)
	if _, err := os.Stat(gone); !os.IsNotExist(err) {
		t.Fatalf("the control group is still there: %v", err)
	}

	for _, byFamily := range []bool{false, true} {
		c := dial(t)
		c.byFamily = byFamily
		sockets, err := collectSockets(connected(c))
		if err != nil || len(sockets) != 6 {
			t.Fatalf("got %v, %v, want 6 sockets", sockets, err)
		}
		for _, s := range sockets {
			if id := want[s.Remote.String()]; s.Cgroup != id || id == 0 {
				t.Errorf("by family %v: to %v: control group %d, want %d", byFamily, s.Remote, s.Cgroup, id)
			}
		}
	}
}

// TestConnKernelFinWait2 distinguishes a connection that the client's process has closed from one
// that it has only shut down.
func TestConnKernelFinWait2(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/tcp_fin_timeout", "30")
	c := netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.7:80")}
	listener := netnstest.Listen(t, c.Destination.String(), false)
	closed, server := netnstest.Pair(t, c, listener)
	t.Cleanup(func() { unix.Close(server) })
	netnstest.Hangup(closed)
	held, server := netnstest.Pair(t, c, listener)
	t.Cleanup(func() { unix.Close(server) })
	t.Cleanup(func() { unix.Close(held) })
	if err := unix.SetsockoptInt(held, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(held, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}

	// The peer acknowledges a FIN only after a moment.
	var got []Socket
	for first := true; first || slices.ContainsFunc(got, func(s Socket) bool { return s.State == tcpstate.FinWait1 }); first = false {
		var err error
		if got, err = collectSockets(connected(dial(t))); err != nil {
			t.Fatal(err)
		}
	}
	mini := map[bool]time.Duration{}
	for _, s := range got {
		if s.State == tcpstate.FinWait2 {
			mini[s.Mini] = s.Expires
		}
	}
	if len(mini) != 2 || mini[true] <= 20*time.Second || mini[true] > 30*time.Second || mini[false] < time.Hour {
		t.Errorf("got %v, want a mini-socket that expires in 30 s and a socket with a keepalive timer", got)
	}
}

// TestConnKernelLinkLocal checks that two connections between the same link-local addresses
// differ by their interface.
func TestConnKernelLinkLocal(t *testing.T) {
	netnstest.New(t)
	var want []Socket
	for _, name := range []string{"a", "b"} {
		netnstest.IP(t,
			fmt.Sprintf("link add %s0 type veth peer name %s1", name, name),
			fmt.Sprintf("link set %s0 up", name),
			fmt.Sprintf("link set %s1 up", name),
			fmt.Sprintf("addr add fe80::1/64 dev %s0 nodad", name),
		)
		// The host's own interfaces are not those of the namespace.
		index, err := os.ReadFile("/proc/thread-self/net/dev_mcast")
		if err != nil {
			t.Fatal(err)
		}
		var ifindex uint32
		for line := range strings.Lines(string(index)) {
			var dev string
			var n uint32
			if _, err := fmt.Sscan(line, &n, &dev); err == nil && dev == name+"0" {
				ifindex = n
			}
		}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
			t.Fatal(err)
		}
		fe80 := func(port uint16, last byte) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: last}), port)
		}
		local, remote := fe80(40000, 1), fe80(443, 2)
		if err := unix.Bind(fd, &unix.SockaddrInet6{Port: 40000, Addr: local.Addr().As16(), ZoneId: ifindex}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, &unix.SockaddrInet6{Port: 443, Addr: remote.Addr().As16(), ZoneId: ifindex}); err != nil {
			t.Fatal(err)
		}
		want = append(want, Socket{State: tcpstate.Established, Local: local, Remote: remote, Interface: ifindex})
	}

	got, err := collectSockets(connected(dial(t)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compareAddrs, sortSockets, ignoreCgroup); diff != "" {
		t.Errorf("sockets (-want +got):\n%s", diff)
	}
}

// TestConnKernelDeadline checks the deadline with a real socket.
func TestConnKernelDeadline(t *testing.T) {
	c := dial(t)
	c.SetDeadline(time.Now().Add(-time.Second))
	if _, err := collectSockets(connected(c)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want %v", err, os.ErrDeadlineExceeded)
	}
}

// TestConnTimestamps asks about real connections, with and without TCP timestamps.
func TestConnTimestamps(t *testing.T) {
	netnstest.New(t)
	c := dial(t)
	v4 := netip.MustParseAddrPort("198.51.100.7:80")
	v6 := netip.MustParseAddrPort("[2001:db8::7]:80")
	listeners := map[netip.AddrPort]int{
		v4: netnstest.Listen(t, "198.51.100.7:80", false),
		v6: netnstest.Listen(t, "[2001:db8::7]:80", false),
	}
	for _, client := range []netnstest.Client{{Destination: v4}, {Destination: v6}, {Destination: v4, Mapped: true}} {
		for _, want := range []bool{true, false} {
			value := "0"
			if want {
				value = "1"
			}
			netnstest.Sysctl(t, "ipv4/tcp_timestamps", value)
			fd, server := netnstest.Pair(t, client, listeners[client.Destination])
			netnstest.Sysctl(t, "ipv4/tcp_timestamps", "2") // must not matter
			local := localAddr(t, fd)
			if got, known, err := c.Timestamps(local, client.Destination, 0); err != nil || !known || got != want {
				t.Errorf("%v, mapped %v: got %v, %v, %v, want %v", local, client.Mapped, got, known, err, want)
			}
			netnstest.Hangup(fd)
			netnstest.Hangup(server)
			if _, known, err := c.Timestamps(local, client.Destination, 0); err != nil || known {
				t.Errorf("%v in TIME_WAIT: known %v, %v", local, known, err)
			}
			if _, known, err := c.Timestamps(netip.AddrPortFrom(local.Addr(), 1), client.Destination, 0); err != nil || known {
				t.Errorf("no socket: known %v, %v", known, err)
			}
		}
	}
	if _, err := collectSockets(connected(c)); err != nil {
		t.Errorf("a dump afterwards: %v", err)
	}
}

// TestConnTimestampsErrors must not read as an answer.
func TestConnTimestampsErrors(t *testing.T) {
	for name, answer := range map[string]func(sockdiagtest.Request) [][]byte{
		"refused":   func(r sockdiagtest.Request) [][]byte { return [][]byte{r.Error(unix.EPERM)} },
		"truncated": func(r sockdiagtest.Request) [][]byte { return [][]byte{r.Socket(1, v4Local, v4Remote, 0)[:40]} },
	} {
		t.Run(name, func(t *testing.T) {
			if _, known, err := fakeConn(t, answer).Timestamps(v4Local, v4Remote, 0); err == nil || known {
				t.Errorf("known %v, %v, want an error", known, err)
			}
		})
	}
}

// localAddr returns the local end of a socket, an IPv4 address unmapped.
func localAddr(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	t.Fatalf("address %v", sa)
	return netip.AddrPort{}
}

//go:build linux

package sockiter

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/sockdiag"
)

var compareAddrs = cmpopts.EquateComparable(netip.AddrPort{})

// attach returns an Iterator in the kernel until the test ends.
func attach(t *testing.T) *Iterator {
	t.Helper()
	it := newIterator(t)
	t.Cleanup(func() { it.Close() })
	return it
}

// newIterator returns an Iterator that the test closes.
func newIterator(t testing.TB) *Iterator {
	t.Helper()
	netnstest.HostRoot(t)
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		t.Fatal(err)
	}
	it, err := Attach(time.Duration(tick.Nano()))
	if err != nil {
		t.Fatal(err)
	}
	return it
}

// list returns the sockets of the test's namespace.
func list(t *testing.T, it *Iterator, low, high uint16) []Socket {
	t.Helper()
	var sockets []Socket
	err := it.Sockets(low, high, time.Now().Add(time.Minute), func(s *Socket) { sockets = append(sockets, *s) })
	if err != nil {
		t.Fatal(err)
	}
	return sockets
}

// dump returns the sockets of the test's namespace by sock_diag, listeners first.
func dump(t *testing.T, low, high uint16) []sockdiag.Socket {
	t.Helper()
	conn, err := sockdiag.Dial(make([]byte, sockdiag.BufferSize))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var sockets []sockdiag.Socket
	each := func(s *sockdiag.Socket) { sockets = append(sockets, *s) }
	states := []tcpstate.State{
		tcpstate.Established, tcpstate.SynSent, tcpstate.SynRecv, tcpstate.FinWait1, tcpstate.FinWait2,
		tcpstate.TimeWait, tcpstate.CloseWait, tcpstate.LastAck, tcpstate.Closing,
	}
	if err := errors.Join(conn.Listeners(low, high, each), conn.Sockets(states, low, high, each)); err != nil {
		t.Fatal(err)
	}
	return sockets
}

// byEnds sorts sockets by their ends and interface, in place.
func byEnds(sockets []sockdiag.Socket) []sockdiag.Socket {
	slices.SortFunc(sockets, func(a, b sockdiag.Socket) int {
		return cmp.Or(a.Local.Compare(b.Local), a.Remote.Compare(b.Remote), cmp.Compare(a.Interface, b.Interface))
	})
	return sockets
}

// client returns a client that lets the kernel choose its port.
func client(destination string) netnstest.Client {
	return netnstest.Client{Destination: netip.MustParseAddrPort(destination)}
}

// from returns a client that binds before it connects.
func from(source, destination string) netnstest.Client {
	c := client(destination)
	c.Bind, c.Source = netnstest.BindFirst, netip.MustParseAddrPort(source)
	return c
}

// keep closes a socket when the test ends.
func keep(t *testing.T, fd int) { t.Cleanup(func() { unix.Close(fd) }) }

// connection makes a connection for the rest of the test.
func connection(t *testing.T, c netnstest.Client, listener int) (client, server int) {
	t.Helper()
	client, server = netnstest.Pair(t, c, listener)
	keep(t, client)
	keep(t, server)
	return client, server
}

// manyStates makes sockets of each state, family and kind in a new namespace.
func manyStates(t *testing.T) {
	t.Helper()
	netnstest.New(t)
	netnstest.IP(t, "link add a0 type veth peer name a1", "link set a0 up", "link set a1 up", "addr add fe80::1/64 dev a0 nodad")
	netnstest.Listen(t, "127.0.0.1:79", false)
	netnstest.Listen(t, "[::1]:79", false)
	netnstest.Listen(t, "[::]:78", false)
	any6 := netnstest.Listen(t, "[::]:80", true)
	any4 := netnstest.Listen(t, "0.0.0.0:80", false)

	mapped := client("198.51.100.7:80")
	mapped.Mapped = true
	device := client("198.51.100.7:80")
	device.Device = "lo"
	for _, to := range []struct {
		client   netnstest.Client
		listener int
	}{{client("198.51.100.7:80"), any4}, {mapped, any4}, {device, any4}, {from("[2001:db8::1]:0", "[2001:db8::7]:80"), any6}} {
		connection(t, to.client, to.listener)
		netnstest.TimeWait(t, to.client, to.listener, 2)

		halfClosed, _ := connection(t, to.client, to.listener) // FIN_WAIT2 and CLOSE_WAIT
		if err := unix.Shutdown(halfClosed, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		orphan, server := netnstest.Pair(t, to.client, to.listener) // a FIN_WAIT2 mini-socket
		keep(t, server)
		netnstest.Hangup(orphan)
	}

	lost, err := client("192.0.2.7:80").Dial() // SYN_SENT
	if err != nil {
		t.Fatal(err)
	}
	keep(t, lost)
	closing, err := client("192.0.2.7:80").Connect() // FIN_WAIT1
	if err != nil {
		t.Fatal(err)
	}
	keep(t, closing)
	const repairOff = -1 // TCP_REPAIR_OFF_NO_WP
	err = errors.Join(unix.SetsockoptInt(closing, unix.IPPROTO_TCP, unix.TCP_REPAIR, repairOff), unix.Shutdown(closing, unix.SHUT_WR))
	if err != nil {
		t.Fatal(err)
	}
	deferring := netnstest.Listen(t, "198.51.100.8:81", false) // SYN_RECV, until there are data
	if err := unix.SetsockoptInt(deferring, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60); err != nil {
		t.Fatal(err)
	}
	waiting, err := client("198.51.100.8:81").Dial()
	if err != nil {
		t.Fatal(err)
	}
	keep(t, waiting)

	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	keep(t, fd)
	index := interfaceIndex(t, "a0")
	fe80 := func(last byte, port int) *unix.SockaddrInet6 {
		return &unix.SockaddrInet6{Port: port, Addr: [16]byte{0: 0xfe, 1: 0x80, 15: last}, ZoneId: index}
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1), unix.Bind(fd, fe80(1, 0)), unix.Connect(fd, fe80(2, 443)))
	if err != nil {
		t.Fatal(err)
	}
}

// interfaceIndex returns the index of an interface of the test's namespace.
func interfaceIndex(t *testing.T, name string) uint32 {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/dev_mcast")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var index uint32
		var dev string
		if _, err := fmt.Sscan(line, &index, &dev); err == nil && dev == name {
			return index
		}
	}
	t.Fatalf("no interface %s", name)
	return 0
}

// hasCgroups reports whether the kernel has a socket's control group where an iterator can read it: since
// Linux 5.15, and with CONFIG_SOCK_CGROUP_DATA.
func hasCgroups(t *testing.T) bool {
	t.Helper()
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var data *btf.Struct
	err = spec.TypeByName("sock_cgroup_data", &data)
	return err == nil && slices.ContainsFunc(data.Members, func(m btf.Member) bool { return m.Name == "cgroup" })
}

// TestSocketsDump compares all rows with those of a dump, for several port ranges.
func TestSocketsDump(t *testing.T) {
	it := attach(t)
	cgroups := hasCgroups(t)
	manyStates(t)
	client("192.0.2.8:80").Hold(t, 2000) // more than one answer of read(2)
	from("198.51.100.1:0", "192.0.2.9:80").Hold(t, 500)

	// The peer acknowledges a FIN after up to 200 ms (TCP_DELACK_MAX). Only then is a mini-socket in FIN_WAIT2.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if !slices.ContainsFunc(dump(t, 0, 65535), func(s sockdiag.Socket) bool {
			return s.State == tcpstate.FinWait1 && s.Remote.Addr() != netip.MustParseAddr("192.0.2.7")
		}) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a connection stays in FIN_WAIT1")
		}
	}
	for _, r := range []struct{ low, high uint16 }{{0, 65535}, {79, 80}, {80, 80}, {32768, 60999}, {45000, 50000}, {7, 7}} {
		before, rows, after := byEnds(dump(t, r.low, r.high)), list(t, it, r.low, r.high), byEnds(dump(t, r.low, r.high))
		for i := range before {
			if !cgroups {
				before[i].Cgroup = 0
			}
		}
		listeners := slices.IndexFunc(rows, func(s Socket) bool { return s.State != tcpstate.Listen })
		if listeners >= 0 && slices.ContainsFunc(rows[listeners:], func(s Socket) bool { return s.State == tcpstate.Listen }) {
			t.Errorf("%v: a listener behind other sockets", r)
		}
		if !netnstest.TellsSocketCgroup(t) {
			for i := range before {
				before[i].Cgroup = 0
			}
		}
		got := make([]sockdiag.Socket, len(rows))
		for i, s := range rows {
			got[i] = s.Socket
		}
		byEnds(got)
		states := map[tcpstate.State]int{}
		for i := range min(len(before), len(got), len(after)) {
			states[got[i].State]++
			// A dump has the timers of other sockets too.
			if got[i].Mini && got[i].Expires <= before[i].Expires && got[i].Expires >= after[i].Expires {
				before[i].Expires = got[i].Expires
			}
			if !got[i].Mini {
				before[i].Expires = 0
			}
			if got[i].Seen >= before[i].Seen && got[i].Seen <= after[i].Seen {
				before[i].Seen = got[i].Seen
			}
		}
		if diff := gocmp.Diff(before, got, compareAddrs, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%v: sockets (-dump +got):\n%s", r, diff)
		}
		if r.high-r.low == 65535 && len(states) != 8 { // all but LAST_ACK and CLOSING, and LISTEN
			t.Errorf("states: got %v, want 8", states)
		}
	}
}

// TestSocketsFacts checks what a dump does not tell.
func TestSocketsFacts(t *testing.T) {
	it := attach(t)
	const destination = "198.51.100.7:80"
	type facts struct {
		state             tcpstate.State
		bound, timestamps bool
	}
	reusing := func(option int) func(*testing.T, int) {
		return func(t *testing.T, _ int) {
			fd := bound(t, option, netip.MustParseAddrPort("198.51.100.1:40001"))
			if err := unix.Connect(fd, netnstest.Sockaddr(netip.MustParseAddrPort(destination), false)); err != nil {
				t.Fatal(err)
			}
		}
	}
	reverse := client("198.51.100.1:40001") // to a listener in the range
	reverse.Bind, reverse.Source = netnstest.BindNoPort, netip.MustParseAddrPort("198.51.100.7:0")
	mapped := client(destination)
	mapped.Mapped = true
	noPort := from("198.51.100.1:0", destination)
	noPort.Bind = netnstest.BindNoPort
	tests := []struct {
		name string
		make func(t *testing.T, listener int)
		want facts // of each socket with a port in the range
	}{
		{"connect", func(t *testing.T, l int) { connection(t, client(destination), l) }, facts{state: tcpstate.Established}},
		{"connect mapped", func(t *testing.T, l int) { connection(t, mapped, l) }, facts{state: tcpstate.Established}},
		{"IP_BIND_ADDRESS_NO_PORT", func(t *testing.T, l int) { connection(t, noPort, l) }, facts{state: tcpstate.Established}},
		{"bind any port", func(t *testing.T, l int) { connection(t, from("198.51.100.1:0", destination), l) }, facts{tcpstate.Established, true, false}},
		{"bind a port", func(t *testing.T, l int) { connection(t, from("198.51.100.1:40001", destination), l) }, facts{tcpstate.Established, true, false}},
		{"SO_REUSEADDR", reusing(unix.SO_REUSEADDR), facts{tcpstate.Established, true, false}},
		{"SO_REUSEPORT", reusing(unix.SO_REUSEPORT), facts{tcpstate.Established, true, false}},
		{"listen", func(t *testing.T, _ int) { netnstest.Listen(t, "127.0.0.9:40001", false) }, facts{tcpstate.Listen, true, false}},
		{"connect, bound on another address", func(t *testing.T, l int) {
			connection(t, client(destination), l)
			port := list(t, it, 40000, 40009)[0].Local.Port()
			fd := bound(t, unix.SO_REUSEADDR, netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), port))
			if err := unix.Connect(fd, netnstest.Sockaddr(netip.MustParseAddrPort(destination), false)); err != nil {
				t.Fatal(err)
			}
		}, facts{tcpstate.Established, true, false}},
		{"accepted, listener gone", func(t *testing.T, _ int) {
			l := openListener(t, "198.51.100.1:40001")
			// The other end has a port outside of the range.
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "30000 30009")
			connection(t, reverse, l)
			netnstest.Hangup(l)
		}, facts{tcpstate.Established, true, false}},
		{"not yet accepted", func(t *testing.T, _ int) {
			l := openListener(t, "198.51.100.1:40001")
			keep(t, l)
			if err := unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60); err != nil {
				t.Fatal(err)
			}
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "30000 30009")
			fd, err := reverse.Dial()
			if err != nil {
				t.Fatal(err)
			}
			keep(t, fd)
		}, facts{tcpstate.SynRecv, true, false}},
		{"fin_wait2 mini-socket", func(t *testing.T, l int) {
			orphan, server := netnstest.Pair(t, client(destination), l)
			keep(t, server)
			netnstest.Hangup(orphan)
		}, facts{tcpstate.FinWait2, false, false}},
		{"time_wait", func(t *testing.T, l int) { netnstest.TimeWait(t, client(destination), l, 1) }, facts{tcpstate.TimeWait, false, true}},
		{"time_wait mapped", func(t *testing.T, l int) { netnstest.TimeWait(t, mapped, l, 1) }, facts{tcpstate.TimeWait, false, true}},
		{"time_wait bound", func(t *testing.T, l int) {
			netnstest.TimeWait(t, from("198.51.100.1:0", destination), l, 1)
		}, facts{tcpstate.TimeWait, true, true}},
		{"time_wait without timestamps", func(t *testing.T, l int) {
			netnstest.Sysctl(t, "ipv4/tcp_timestamps", "0")
			netnstest.TimeWait(t, client(destination), l, 1)
		}, facts{tcpstate.TimeWait, false, false}},
		{"time_wait bound without timestamps", func(t *testing.T, l int) {
			netnstest.Sysctl(t, "ipv4/tcp_timestamps", "0")
			netnstest.TimeWait(t, from("198.51.100.1:0", destination), l, 1)
		}, facts{tcpstate.TimeWait, true, false}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40009")
			before := second(t)
			tt.make(t, netnstest.Listen(t, destination, false))
			different := func(s Socket) bool {
				return facts{s.State, s.Bound, s.State == tcpstate.TimeWait && s.Stamp != 0} != tt.want
			}
			got := list(t, it, 40000, 40009)
			// The peer acknowledges a FIN after up to 200 ms (TCP_DELACK_MAX).
			for deadline := time.Now().Add(5 * time.Second); slices.ContainsFunc(got, different) && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				got = list(t, it, 40000, 40009)
			}
			got = slices.DeleteFunc(got, func(s Socket) bool { return s.State == tcpstate.Listen && tt.want.state == tcpstate.SynRecv })
			if len(got) == 0 || slices.ContainsFunc(got, different) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			least, most := uint32(0), uint32(0)
			if tt.want.timestamps || tt.want.state == tcpstate.FinWait2 {
				least, most = before, second(t)
			}
			for _, s := range got {
				if s.Stamp < least || s.Stamp > most {
					t.Errorf("got stamp %d, want %d to %d", s.Stamp, least, most)
				}
			}
		})
	}
}

// second returns the seconds of the monotonic clock as the kernel takes them for stamps
// (ktime_get_seconds): as of its last tick.
func second(t *testing.T) uint32 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
		t.Fatal(err)
	}
	return uint32(now.Sec)
}

// TestSocketsStamp checks that the peer's acknowledgement of the end sets the stamp of a connection that
// was idle.
func TestSocketsStamp(t *testing.T) {
	it := attach(t)
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40009")
	orphan, server := netnstest.Pair(t, client("198.51.100.7:80"), netnstest.Listen(t, "198.51.100.7:80", false))
	keep(t, server)
	time.Sleep(1100 * time.Millisecond)
	closing := second(t)
	netnstest.Hangup(orphan)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := list(t, it, 40000, 40009)
		if len(got) == 1 && got[0].State == tcpstate.FinWait2 {
			if stamp := got[0].Stamp; stamp < closing || stamp > second(t) {
				t.Errorf("got stamp %d, want %d or a little more", stamp, closing)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %+v, want one socket in FIN_WAIT2", got)
		}
	}
}

// bound returns a socket with an option that is bound to an IPv4 address.
func bound(t *testing.T, option int, to netip.AddrPort) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	keep(t, fd)
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1), unix.Bind(fd, netnstest.Sockaddr(to, false))); err != nil {
		t.Fatal(err)
	}
	return fd
}

// openListener is netnstest.Listen without a cleanup.
func openListener(t *testing.T, addr string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, netnstest.Sockaddr(netip.MustParseAddrPort(addr), false)), unix.Listen(fd, 10)); err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestSocketsNamespace checks that each list has the sockets of the calling thread's namespace.
func TestSocketsNamespace(t *testing.T) {
	it := attach(t)
	netnstest.New(t)
	client("192.0.2.1:80").Hold(t, 1)
	for n := range 3 {
		path := filepath.Join(t.TempDir(), "other")
		netnstest.Mount(t, path, func() {
			client("192.0.2.1:80").Hold(t, 2+n)
			if got := list(t, it, 0, 65535); len(got) != 2+n {
				t.Errorf("inside: got %+v, want %d sockets", got, 2+n)
			}
		})
		if got := list(t, it, 0, 65535); len(got) != 1 {
			t.Errorf("outside: got %+v, want one socket", got)
		}
	}
}

// A fakeKernel answers reads of an open iterator.
type fakeKernel struct {
	answers []any // []byte or error; the last one again and again
	closed  bool
}

func (k *fakeKernel) Read(b []byte) (int, error) {
	answer := k.answers[0]
	if len(k.answers) > 1 {
		k.answers = k.answers[1:]
	}
	switch answer := answer.(type) {
	case []byte:
		return copy(b, answer), nil
	case error:
		return 0, answer
	}
	panic("no answer")
}

func (k *fakeKernel) Close() error {
	k.closed = true
	return nil
}

// TestSocketsErrors checks that a list that is not complete is an error, and that each one is
// closed.
func TestSocketsErrors(t *testing.T) {
	it := attach(t)
	open := it.open
	record := make([]byte, recordSize)
	tests := []struct {
		name    string
		answers []any
		late    bool // the deadline is over
		want    error
		sockets int
	}{
		{"nothing", []any{io.EOF}, false, nil, 0},
		{"two", []any{slices.Concat(record, record), io.EOF}, false, nil, 2},
		{"many sockets out of range", []any{unix.EAGAIN, record, unix.EAGAIN, unix.EINTR, record, io.EOF}, false, nil, 2},
		{"as os.File says it", []any{&os.PathError{Op: "read", Path: "bpf_iter", Err: unix.EAGAIN}, io.EOF}, false, nil, 0},
		{"half a record", []any{record, record[:24], io.EOF}, false, ErrMalformed, 1},
		{"a record and a half", []any{slices.Concat(record, record[:24]), io.EOF}, false, ErrMalformed, 1},
		{"a record cut in two", []any{record[:24], unix.EAGAIN, record[24:], io.EOF}, false, nil, 1},
		{"no memory", []any{record, unix.ENOMEM}, false, unix.ENOMEM, 1},
		{"record too big for the kernel", []any{unix.E2BIG}, false, unix.E2BIG, 0},
		{"forbidden", []any{unix.EACCES}, false, os.ErrPermission, 0},
		{"late", []any{record, io.EOF}, true, os.ErrDeadlineExceeded, 0},
		{"endless", []any{record}, false, os.ErrDeadlineExceeded, -1},
		{"endless without sockets", []any{unix.EAGAIN}, false, os.ErrDeadlineExceeded, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kernel := &fakeKernel{answers: tt.answers}
			it.open = func() (io.ReadCloser, error) { return kernel, nil }
			deadline := time.Now().Add(-time.Second)
			switch {
			case strings.HasPrefix(tt.name, "endless"):
				deadline = time.Now().Add(50 * time.Millisecond)
			case !tt.late:
				deadline = time.Now().Add(time.Minute)
			}
			sockets := 0
			err := it.Sockets(0, 65535, deadline, func(*Socket) { sockets++ })
			if !errors.Is(err, tt.want) || tt.want != nil && !strings.HasPrefix(err.Error(), "sockiter: list tcp sockets: ") {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if sockets != tt.sockets && tt.sockets >= 0 || tt.sockets < 0 && sockets == 0 {
				t.Errorf("got %d sockets, want %d", sockets, tt.sockets)
			}
			if !kernel.closed {
				t.Error("the iterator stays open")
			}
		})
	}
	t.Run("open", func(t *testing.T) {
		it.open = func() (io.ReadCloser, error) { return nil, unix.EMFILE }
		if err := it.Sockets(0, 65535, time.Now().Add(time.Minute), func(*Socket) {}); !errors.Is(err, unix.EMFILE) {
			t.Errorf("got %v, want %v", err, unix.EMFILE)
		}
	})
	it.open = open
	if err := it.Sockets(0, 65535, time.Now().Add(time.Minute), func(*Socket) {}); err != nil {
		t.Errorf("the real kernel after that: %v", err)
	}
}

// A pagedKernel answers reads of an open iterator as bpf_seq_read of kernel/bpf/bpf_iter.c does. It has
// a number of sockets, and cuts answers short at random if shorten is set.
type pagedKernel struct {
	pageSize, sockets int
	shorten           *rand.Rand
	rest              []byte // of its buffer: what did not fit into the reader's
	sent              int
	asked             int // the most bytes that a read asked for
}

func (k *pagedKernel) Read(b []byte) (int, error) {
	k.asked = max(k.asked, len(b))
	if k.shorten != nil {
		b = b[:1+k.shorten.IntN(len(b))]
	}
	buffer := k.rest
	for len(k.rest) == 0 && k.sent < k.sockets && len(buffer) < len(b) && len(buffer)+recordSize < k.pageSize<<3 {
		record := make([]byte, recordSize)
		binary.NativeEndian.PutUint16(record[recordPort:], uint16(k.sent))
		binary.BigEndian.PutUint16(record[recordRemotePort:], uint16(k.sent))
		for i := range addressSize {
			record[recordRemote+i] = byte(k.sent)
		}
		buffer = append(buffer, record...)
		k.sent++
	}
	if len(buffer) == 0 {
		return 0, io.EOF
	}
	n := copy(b, buffer)
	k.rest = buffer[n:]
	return n, nil
}

func (k *pagedKernel) Close() error { return nil }

// TestSocketsPages checks that all records arrive whole, whatever the size of a page: the kernel cuts
// one where the reader's buffer ends. No read asks for more than is between two checks of the deadline.
func TestSocketsPages(t *testing.T) {
	it := attach(t)
	const sockets = 3000
	for _, pageSize := range []int{4 << 10, 16 << 10, 64 << 10} {
		for seed := range uint64(20) {
			kernel := &pagedKernel{pageSize: pageSize, sockets: sockets}
			if seed > 0 {
				kernel.shorten = rand.New(rand.NewPCG(seed, 0))
			}
			it.open = func() (io.ReadCloser, error) { return kernel, nil }
			got := 0
			if err := it.Sockets(0, 65535, time.Now().Add(time.Minute), func(s *Socket) {
				var remote [addressSize]byte
				for i := range remote {
					remote[i] = byte(got)
				}
				port := uint16(got)
				if s.Local.Port() != port || s.Remote != netip.AddrPortFrom(netip.AddrFrom16(remote).Unmap(), port) {
					t.Fatalf("pages of %d, seed %d, socket %d: got %+v", pageSize, seed, got, s)
				}
				got++
			}); err != nil || got != sockets {
				t.Errorf("pages of %d, seed %d: got %d sockets, %v, want %d", pageSize, seed, got, err, sockets)
			}
			if kernel.asked > 32<<10 {
				t.Errorf("pages of %d: a read asked for %d bytes", pageSize, kernel.asked)
			}
		}
	}
}

// TestSocketsFew checks that a list costs few allocations, however many sockets it has, and keeps
// no descriptor.
func TestSocketsFew(t *testing.T) {
	it := attach(t)
	netnstest.New(t)
	client("192.0.2.1:80").Hold(t, 3000)
	before := descriptors(t)
	sockets := 0
	allocated := testing.AllocsPerRun(20, func() {
		if err := it.Sockets(0, 65535, time.Now().Add(time.Minute), func(*Socket) { sockets++ }); err != nil {
			t.Fatal(err)
		}
	})
	if sockets != 21*3000 {
		t.Errorf("got %d sockets, want %d", sockets, 21*3000)
	}
	if allocated > 50 {
		t.Errorf("%v allocations for 3000 sockets", allocated)
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

// descriptors returns the number of open descriptors.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestClose checks that nothing stays in the kernel, and that a closed Iterator lists nothing.
func TestClose(t *testing.T) {
	before := descriptors(t)
	for range 3 {
		it := newIterator(t)
		if err := it.Close(); err != nil {
			t.Error(err)
		}
		if err := it.Sockets(0, 65535, time.Now().Add(time.Minute), func(*Socket) {}); err == nil {
			t.Error("a closed Iterator listed the sockets")
		}
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

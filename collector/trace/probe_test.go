//go:build linux

package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	gomaps "maps" // a type of this package has its name
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// The tests of all packages run at the same time, and a Probe sees the whole host. No other test
// uses the destinations in this file.

// A counter is a Probe that adds up its Counts.
type counter struct {
	*Probe
	pools map[pool]uint64
	rest  uint64
	last  []Count // what the last call has read
}

func newCounter(p *Probe) *counter { return &counter{Probe: p, pools: map[pool]uint64{}} }

// attachProbe attaches a Probe until the test ends.
func attachProbe(t *testing.T) *counter {
	t.Helper()
	netnstest.LockTraces(t)
	p, err := Attach()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return newCounter(p)
}

// unlimited lets each tenant have the whole table of failures.
func unlimited(tb testing.TB, p *Probe) {
	tb.Helper()
	unlimitedTable(tb, p.Failures)
}

func unlimitedTable(tb testing.TB, table *Table) {
	tb.Helper()
	var share [shareSize]byte
	binary.NativeEndian.PutUint32(share[limitTenant:], 1<<20)
	binary.NativeEndian.PutUint32(share[limitAncestor:], 1<<20)
	if _, err := table.shares.WriteAt(share[:], limitsAt*shareSize); err != nil {
		tb.Fatal(err)
	}
}

// A pool identifies a Count, without its namespace.
type pool struct {
	source      netip.Addr
	destination netip.AddrPort
}

func poolOf(source, destination string) pool {
	return pool{netip.MustParseAddr(source), netip.MustParseAddrPort(destination)}
}

// failures returns what connects a Probe has counted so far.
func failures(t *testing.T, p *counter) (pools map[pool]uint64, rest uint64) {
	t.Helper()
	counts, more, err := p.Failures.Counts(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p.last = counts
	p.rest += more.Connects
	for _, c := range counts {
		if c.Events == 0 {
			t.Errorf("no failure in %+v", c)
		}
		if c.Call == Connect {
			p.pools[pool{c.Source, c.Destination}] += c.Events
		}
	}
	return gomaps.Clone(p.pools), p.rest
}

// smallRange sets a range of two ports in the test's namespace.
func smallRange(t *testing.T) {
	t.Helper()
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40001")
}

// exhaust takes both ports.
func exhaust(t *testing.T, c netnstest.Client) {
	t.Helper()
	c.Hold(t, 2)
	if _, err := c.Connect(); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Fatalf("third connect(): %v, want EADDRNOTAVAIL", err)
	}
}

// blocking calls connect(2) of a blocking socket.
func blocking(c netnstest.Client) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, netnstest.Sockaddr(c.Destination, false))
}

// multipath calls connect(2) of an MPTCP socket.
func multipath(c netnstest.Client) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, netnstest.Sockaddr(c.Destination, false))
}

// fastOpen connects with sendto(2).
func fastOpen(c netnstest.Client) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, netnstest.Sockaddr(c.Destination, false))
}

func dial(c netnstest.Client) error {
	fd, err := c.Dial()
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// TestCounts checks that a Probe counts as many failures as the client sees, for each way to
// connect.
func TestCounts(t *testing.T) {
	p := attachProbe(t)
	v4, v6 := poolOf("198.51.100.1", "192.0.2.1:7001"), poolOf("2001:db8::1", "[2001:db8::7]:7001")
	other := poolOf("203.0.113.1", "192.0.2.1:7001")
	noPort := func(of pool) netnstest.Client {
		return netnstest.Client{Bind: netnstest.BindNoPort, Source: netip.AddrPortFrom(of.source, 0), Destination: of.destination}
	}
	tests := []struct {
		name    string
		client  netnstest.Client
		connect func(netnstest.Client) error
		pool    pool
	}{
		{"IPv4", netnstest.Client{Destination: v4.destination}, blocking, v4},
		{"non-blocking", netnstest.Client{Destination: v4.destination}, dial, v4},
		{"IPv6", noPort(v6), dial, v6},
		{"mapped", netnstest.Client{Destination: v4.destination, Mapped: true}, dial, v4},
		{"source", noPort(v4), dial, v4},
		{"other source", noPort(other), dial, other},
		{"bound to lo", netnstest.Client{Destination: v4.destination, Device: "lo"}, dial, v4},
		{"multipath", netnstest.Client{Destination: v4.destination}, multipath, v4},
		{"fast open", netnstest.Client{Destination: v4.destination}, fastOpen, v4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.New(t)
			if _, err := os.Stat("/proc/sys/net/mptcp"); err != nil && tt.name == "multipath" {
				t.Skip("the kernel lacks MPTCP")
			}
			smallRange(t)
			exhaust(t, tt.client)
			before, _ := failures(t, p)

			const n = 10
			for range n {
				if err := tt.connect(tt.client); !errors.Is(err, unix.EADDRNOTAVAIL) {
					t.Fatalf("connect(): %v, want EADDRNOTAVAIL", err)
				}
			}
			after, _ := failures(t, p)
			if got := after[tt.pool] - before[tt.pool]; got != n {
				t.Errorf("counted %d failures, the client saw %d", got, n)
			}
			for other := range after {
				if other != tt.pool && other.destination.Port() == 7001 && after[other] != before[other] {
					t.Errorf("counted failures of %v", other)
				}
			}
		})
	}
}

// TestCountsPools checks that a Probe counts by destination and source, and adds up namespaces.
func TestCountsPools(t *testing.T) {
	p := attachProbe(t)
	want := map[pool]uint64{}
	for namespace := range 2 {
		t.Run(fmt.Sprint("namespace ", namespace), func(t *testing.T) {
			netnstest.New(t)
			smallRange(t)
			for i, destination := range []string{"192.0.2.1:7002", "192.0.2.2:7002", "192.0.2.2:7003", "127.0.0.1:7002", "[2001:db8::7]:7002"} {
				for j, source := range []string{"198.51.100.1", "203.0.113.1", "127.0.0.5", "2001:db8::1", "2001:db8::2"} {
					of := poolOf(source, destination)
					if of.source.Is4() != of.destination.Addr().Is4() || of.source.IsLoopback() != of.destination.Addr().IsLoopback() {
						continue
					}
					c := netnstest.Client{Bind: netnstest.BindNoPort, Source: netip.AddrPortFrom(of.source, 0), Destination: of.destination}
					exhaust(t, c)
					n := uint64(1 + i*10 + j + 100*namespace)
					want[of] += 1 + n // exhaust fails once
					for range n {
						if err := dial(c); !errors.Is(err, unix.EADDRNOTAVAIL) {
							t.Fatalf("connect(): %v, want EADDRNOTAVAIL", err)
						}
					}
				}
			}
		})
	}
	got, _ := failures(t, p)
	for of, n := range want {
		if got[of] != n {
			t.Errorf("%v: counted %d failures, the clients saw %d", of, got[of], n)
		}
	}
	if len(want) < 8 {
		t.Errorf("only %d pools", len(want))
	}
}

// TestCountsConcurrent counts 100000 failures of 8 threads, while the counts are read.
func TestCountsConcurrent(t *testing.T) {
	p := attachProbe(t)
	netnstest.New(t)
	smallRange(t)
	destinations := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7004"), netip.MustParseAddrPort("192.0.2.2:7004")}
	for _, d := range destinations {
		netnstest.Client{Destination: d}.Hold(t, 2)
	}

	const threads, each = 8, 12500
	var saw [2]atomic.Uint64
	var clients sync.WaitGroup
	for i := range threads {
		// The socket stays in this namespace, also when another thread uses it.
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		to := netnstest.Sockaddr(destinations[i%2], false)
		clients.Go(func() {
			for range each {
				if err := unix.Connect(fd, to); errors.Is(err, unix.EADDRNOTAVAIL) {
					saw[i%2].Add(1)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		clients.Wait()
		close(done)
	}()

	source := netip.MustParseAddr("198.51.100.1")
	var last uint64
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		got, _ := failures(t, p)
		if now := got[pool{source, destinations[0]}]; now < last {
			t.Errorf("went back from %d to %d", last, now)
		} else {
			last = now
		}
	}
	got, _ := failures(t, p)
	for i, d := range destinations {
		n, counted := saw[i].Load(), got[pool{source, d}]
		if missed := missedRuns(t, p.Probe); n != threads/2*each || counted > n || n-counted > missed {
			t.Errorf("%v: counted %d failures, the clients saw %d of %d, %d runs were missed", d, counted, n, threads/2*each, missed)
		}
	}
}

// missedRuns returns how many runs the kernel says that it skipped. Where it preempts programs, as seen on Linux 7.3, clients on one CPU cause some.
func missedRuns(t *testing.T, p *Probe) uint64 {
	t.Helper()
	n, _, err := p.MissedRuns()
	if err != nil {
		t.Fatal(err)
	}
	if n > 0 {
		t.Logf("%d missed runs", n)
	}
	return n
}

// TestNotCounted checks connects that succeed, or fail for another reason.
func TestNotCounted(t *testing.T) {
	p := attachProbe(t)
	const local, remote = "198.51.100.7:7005", "192.0.2.1:7005"
	to := func(destination string) netnstest.Client {
		return netnstest.Client{Destination: netip.MustParseAddrPort(destination)}
	}
	from := func(c netnstest.Client, bind netnstest.Bind, source string) netnstest.Client {
		c.Bind, c.Source = bind, netip.MustParseAddrPort(source)
		return c
	}
	// pending starts a connect() that nobody answers.
	pending := func(t *testing.T) int {
		t.Helper()
		fd, err := to(remote).Dial()
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	tests := []struct {
		name    string
		connect func(t *testing.T) error
		want    error
	}{
		{"refused", func(*testing.T) error { return blocking(to(local)) }, unix.ECONNREFUSED},
		{"timed out", func(t *testing.T) error {
			fd := pending(t)
			defer unix.Close(fd)
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1); err != nil {
				return err
			}
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 20000); err != nil {
				return err
			}
			errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			return errors.Join(err, unix.Errno(errno))
		}, unix.ETIMEDOUT},
		{"no route", func(*testing.T) error { return dial(to("100.64.0.1:7005")) }, unix.ENETUNREACH},
		{"unreachable", func(t *testing.T) error {
			netnstest.IP(t, "route add unreachable 100.64.0.0/24")
			return dial(to("100.64.0.1:7005"))
		}, unix.EHOSTUNREACH},
		{"unreachable IPv6", func(*testing.T) error { return dial(to("[2001:db8:1::1]:7005")) }, unix.ENETUNREACH},
		{"prohibited", func(t *testing.T) error {
			netnstest.IP(t, "route add prohibit 100.64.0.0/24")
			return dial(to("100.64.0.1:7005"))
		}, unix.EACCES},
		{"broadcast", func(*testing.T) error { return dial(to("255.255.255.255:7005")) }, unix.ENETUNREACH},
		{"port in use", func(t *testing.T) error {
			netnstest.Listen(t, "198.51.100.1:7006", false)
			return dial(from(to(remote), netnstest.BindFirst, "198.51.100.1:7006"))
		}, unix.EADDRINUSE},
		{"no port for bind", func(t *testing.T) error {
			smallRange(t)
			c := from(to(remote), netnstest.BindFirst, "198.51.100.1:0")
			c.Hold(t, 2)
			return dial(c)
		}, unix.EADDRINUSE},
		{"no such source", func(*testing.T) error {
			return dial(from(to(remote), netnstest.BindFirst, "100.64.0.1:0"))
		}, unix.EADDRNOTAVAIL},
		{"duplicate", func(t *testing.T) error {
			c := from(to(remote), netnstest.BindReuseAddr, "198.51.100.1:41000")
			c.Hold(t, 1)
			return dial(c)
		}, unix.EADDRNOTAVAIL},
		{"connected", func(t *testing.T) error {
			netnstest.Listen(t, local, false)
			return blocking(to(local))
		}, nil},
		{"reset", func(t *testing.T) error {
			listener := netnstest.Listen(t, local, false)
			fd, err := to(local).Dial()
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			accepted, _, err := unix.Accept(listener)
			if err != nil {
				return err
			}
			if err := unix.SetsockoptLinger(accepted, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				return err
			}
			unix.Close(accepted)
			_, err = unix.Read(fd, make([]byte, 1))
			return err
		}, unix.ECONNRESET},
		{"given up", func(t *testing.T) error { return unix.Close(pending(t)) }, nil},
		{"shut down", func(t *testing.T) error {
			fd := pending(t)
			defer unix.Close(fd)
			return unix.Shutdown(fd, unix.SHUT_RDWR)
		}, nil},
		{"datagram", func(t *testing.T) error {
			smallRange(t)
			for range 3 {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				if err := unix.Connect(fd, netnstest.Sockaddr(netip.MustParseAddrPort(remote), false)); err != nil {
					return err
				}
			}
			return nil
		}, unix.EAGAIN},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.New(t)
			if err := tt.connect(t); !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
		})
	}
	pools, _ := failures(t, p)
	for of, n := range pools {
		if port := of.destination.Port(); port == 7005 || port == 0 {
			t.Errorf("counted %d failures of %v", n, of)
		}
	}
}

// TestUsedSocketNotCounted checks a limitation of the tracepoint: the failure of a socket that had a
// port looks like that of a socket that was bound to it.
func TestUsedSocketNotCounted(t *testing.T) {
	p := attachProbe(t)
	netnstest.New(t)
	smallRange(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	refuses := netnstest.Sockaddr(netip.MustParseAddrPort("198.51.100.7:7011"), false)
	if err := unix.Connect(fd, refuses); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("connect(): %v, want ECONNREFUSED", err)
	}
	client := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:7011")}
	exhaust(t, client) // fails once
	if err := unix.Connect(fd, netnstest.Sockaddr(client.Destination, false)); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Fatalf("connect(): %v, want EADDRNOTAVAIL", err)
	}
	if got, _ := failures(t, p); got[poolOf("198.51.100.1", "192.0.2.1:7011")] != 1 {
		t.Errorf("counted %d failures, want that of the fresh socket", got[poolOf("198.51.100.1", "192.0.2.1:7011")])
	}
}

// TestTableFull checks that every failure counts: rest has those of pools without a slot.
func TestTableFull(t *testing.T) {
	netnstest.LockTraces(t)
	// This table has slots for all pools, those of tests in other packages too.
	attached, err := attach(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Close()
	unlimited(t, attached)
	judge := newCounter(attached)
	const destinations, port = 5000, 7007
	sum := func(p *counter) (pools int, ours, others, rest uint64) {
		counts, rest := failures(t, p)
		for of, n := range counts {
			if of.destination.Port() == port {
				ours += n
			} else {
				others += n
			}
		}
		// Other tests can use the same addresses in several namespaces: each is a pool.
		return len(p.last), ours, others, rest
	}
	// p sees the failures of other tests from Attach until Counts. The judge counts them over
	// a longer and over a shorter time, which gives an upper and a lower bound.
	_, _, beforeAttach, _ := sum(judge)
	limited, err := Attach()
	if err != nil {
		t.Fatal(err)
	}
	defer limited.Close()
	unlimited(t, limited)
	p := newCounter(limited)
	_, _, afterAttach, _ := sum(judge)

	netnstest.New(t)
	noPorts(t)
	var saw uint64
	for i := range destinations {
		c := netnstest.Client{Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), port)}
		for range 1 + i%3 {
			if err := dial(c); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Fatalf("connect(): %v, want EADDRNOTAVAIL", err)
			}
			saw++
		}
	}

	_, _, beforeSum, _ := sum(judge)
	pools, ours, others, rest := sum(p)
	_, _, afterSum, _ := sum(judge)
	if _, all, _, restOfJudge := sum(judge); all != saw || restOfJudge != 0 {
		t.Errorf("with slots for all: counted %d failures and %d besides, the client saw %d", all, restOfJudge, saw)
	}
	if pools != 4096 {
		t.Errorf("%d pools counted separately, want 4096", pools)
	}
	least, most := saw+beforeSum-afterAttach, saw+afterSum-beforeAttach
	if all := ours + others + rest; all < least || all > most {
		t.Errorf("counted %d + %d + %d failures, the clients saw %d to %d", ours, others, rest, least, most)
	}
}

// noPorts makes every port of the test's namespace unavailable.
func noPorts(tb testing.TB) {
	tb.Helper()
	netnstest.Sysctl(tb, "ipv4/ip_local_port_range", "40000 40000")
	netnstest.Listen(tb, "0.0.0.0:40000", false)
}

// TestFirstFailures checks that the first failures of a pool, on two CPUs at the same time, take only
// one slot.
func TestFirstFailures(t *testing.T) {
	p := attachProbe(t)
	unlimited(t, p.Probe)
	netnstest.New(t)
	noPorts(t)
	const threads, destinations = 2, 3000
	to := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 2, byte(i >> 8), byte(i)}), 7010)
	}
	var arrived [threads]atomic.Int64
	var clients sync.WaitGroup
	for thread := range threads {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		clients.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			var cpu unix.CPUSet
			cpu.Set(thread)
			if err := unix.SchedSetaffinity(0, &cpu); err != nil && runtime.NumCPU() > 1 {
				t.Error(err)
			}
			for i := range int64(destinations) {
				// Both must start at once for the race to happen.
				arrived[thread].Store(i + 1)
				waiting := true
				for waiting {
					waiting = arrived[1-thread].Load() < i+1
				}
				if err := unix.Connect(fd, netnstest.Sockaddr(to(int(i)), false)); !errors.Is(err, unix.EADDRNOTAVAIL) {
					t.Errorf("connect(): %v, want EADDRNOTAVAIL", err)
				}
			}
		})
	}
	clients.Wait()

	got, rest := failures(t, p)
	wrong := 0
	for i := range destinations {
		if got[pool{netip.MustParseAddr("127.0.0.1"), to(i)}] != threads {
			wrong++
		}
	}
	if wrong != 0 || rest != 0 {
		t.Errorf("%d of %d pools do not have one failure of each thread, %d failures are without pool", wrong, destinations, rest)
	}
	free := 0
	for slot := uint32(0); p.objects.FailFree.LookupAndDelete(nil, &slot) == nil; {
		free++
	}
	failures(t, p) // no test of another package can take a slot now
	taken := int(p.Failures.Utilization() * TableSize)
	if free+taken != TableSize {
		t.Errorf("%d slots are free and %d have a pool, want %d in all", free, taken, TableSize)
	}
}

// TestClose checks that a Probe leaves nothing behind, and that the next one starts at 0.
func TestClose(t *testing.T) {
	netnstest.LockTraces(t)
	netnstest.New(t)
	smallRange(t)
	client := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:7008")}
	exhaust(t, client)
	fds := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := fds()
	of := poolOf("198.51.100.1", "192.0.2.1:7008")
	for range 2 {
		p, err := Attach()
		if err != nil {
			t.Fatal(err)
		}
		if err := dial(client); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Fatalf("connect(): %v, want EADDRNOTAVAIL", err)
		}
		if got, _ := failures(t, newCounter(p)); got[of] != 1 {
			t.Errorf("counted %d failures, want 1", got[of])
		}
		info, err := p.objects.SetState.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			program, err := ebpf.NewProgramFromID(id)
			if errors.Is(err, unix.ENOENT) {
				break
			}
			program.Close()
			if time.Now().After(deadline) {
				t.Fatalf("the program is still in the kernel: %v", err)
			}
		}
		if n := fds(); n != before {
			t.Errorf("%d descriptors before, %d after", before, n)
		}
	}
}

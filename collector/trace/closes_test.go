//go:build linux

package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// attachCloses attaches a Probe until the test ends. Each tenant can have the whole table of closes.
func attachCloses(t *testing.T) *Probe {
	t.Helper()
	p := attachProbe(t).Probe
	if p.NoCloses != nil {
		t.Fatal(p.NoCloses)
	}
	unlimitedTable(t, p.Closes)
	return p
}

// commandOf returns the command of a process.
func commandOf(t *testing.T, pid int) string {
	t.Helper()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(comm), "\n")
}

// closesTo returns the closes of pools with that destination port since the last call, and their sum.
func closesTo(t *testing.T, p *Probe, port uint16) (counts []Count, sum uint64) {
	t.Helper()
	all, _, err := p.Closes.Counts(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.Destination.Port() == port {
			counts = append(counts, c)
			sum += c.Events
		}
	}
	return counts, sum
}

// waiting returns how many sockets of the test's namespace are in TIME_WAIT with that port at the other end, as the kernel lists them.
func waiting(t *testing.T, port uint16) (n int) {
	t.Helper()
	for _, file := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			fields := strings.Fields(line)
			if strings.HasSuffix(fields[2], fmt.Sprintf(":%04X", port)) && fields[3] == "06" {
				n++
			}
		}
	}
	return n
}

// hear waits for the other end to close.
func hear(t *testing.T, fd int) {
	t.Helper()
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}, 20000); err != nil && !errors.Is(err, unix.EINTR) {
		t.Fatal(err)
	}
}

// TestCloses closes connections in all ways, and compares the counts with the kernel's sockets in TIME_WAIT.
func TestCloses(t *testing.T) {
	p := attachCloses(t)
	const port = 7050
	v4 := netip.MustParseAddrPort("198.51.100.7:7050")
	client := netnstest.Client{Destination: v4}
	from := func(source string) netnstest.Client {
		return netnstest.Client{Bind: netnstest.BindFirst, Source: netip.MustParseAddrPort(source), Destination: v4}
	}
	closeFirst := func(t *testing.T, client, server int) {
		netnstest.Hangup(client)
		hear(t, server)
		netnstest.Hangup(server)
	}
	tests := []struct {
		name   string
		client netnstest.Client
		close  func(t *testing.T, client, server int)
		want   int
	}{
		{"close", client, func(t *testing.T, client, server int) {
			_ = unix.Close(client)
			hear(t, server)
			_ = unix.Close(server)
		}, 1},
		{"shutdown", client, closeFirst, 1},
		{"half-closed", client, func(t *testing.T, client, server int) {
			_ = unix.Shutdown(client, unix.SHUT_WR)
			hear(t, server)
			for range 3 {
				if _, err := unix.Write(server, []byte("late")); err != nil {
					t.Fatal(err)
				}
			}
			_ = unix.Close(server)
			hear(t, client)
			if n, err := unix.Read(client, make([]byte, 100)); err != nil || n != 12 {
				t.Fatal(n, err)
			}
			hear(t, client)
			_ = unix.Close(client)
		}, 1},
		{"shutdown for reading", client, func(_ *testing.T, client, server int) {
			_ = unix.Shutdown(client, unix.SHUT_RD)
			_ = unix.Close(server)
			_ = unix.Shutdown(client, unix.SHUT_WR)
			_ = unix.Close(client)
		}, 0},
		{"the other side first", client, func(t *testing.T, client, server int) {
			_ = unix.Close(server)
			hear(t, client)
			_ = unix.Close(client)
		}, 0},
		{"SO_LINGER 0", client, func(t *testing.T, client, server int) {
			if err := unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				t.Fatal(err)
			}
			_ = unix.Close(client)
			_ = unix.Close(server)
		}, 0},
		{"unread data", client, func(t *testing.T, client, server int) {
			if _, err := unix.Write(server, []byte("unread")); err != nil {
				t.Fatal(err)
			}
			hear(t, client)
			_ = unix.Close(client)
			_ = unix.Close(server)
		}, 0},
		{"IPv6", netnstest.Client{Destination: netip.MustParseAddrPort("[2001:db8::7]:7050")}, closeFirst, 1},
		{"mapped", netnstest.Client{Destination: v4, Mapped: true}, closeFirst, 1},
		{"bound", from("198.51.100.9:0"), closeFirst, 1},
		{"bound in the range", from("198.51.100.9:45000"), closeFirst, 1},
		{"bound below the range", from("198.51.100.9:32767"), closeFirst, -1},
		{"first port", from("198.51.100.9:32768"), closeFirst, 1},
		{"last port", from("198.51.100.9:60999"), closeFirst, 1},
		{"bound above the range", from("198.51.100.9:61000"), closeFirst, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.New(t)
			address := netip.AddrPortFrom(tt.client.Destination.Addr(), port)
			listener := netnstest.Listen(t, address.String(), false)
			const times = 3
			n := times
			if tt.client.Source.Port() != 0 {
				n = 1
			}
			for range n {
				client, server := netnstest.Pair(t, tt.client, listener)
				tt.close(t, client, server)
			}
			want := uint64(max(tt.want, 0) * n)
			counts, sum := closesTo(t, p, port)
			if sum != want {
				t.Errorf("counted %d closes, want %d: %+v", sum, want, counts)
			}
			// The client's end waits, on a port of the range or not.
			if n := uint64(waiting(t, port)); tt.want >= 0 && n != want || tt.want < 0 && n != 1 {
				t.Errorf("%d sockets in TIME_WAIT, counted %d closes", n, sum)
			}
			for _, c := range counts {
				if c.Destination != tt.client.Destination || tt.client.Source.IsValid() && c.Source != tt.client.Source.Addr() {
					t.Errorf("counted closes of %v to %v", c.Source, c.Destination)
				}
				if want := (Process{commandOf(t, os.Getpid()), os.Getpid()}); c.Last != want {
					t.Errorf("closed by %+v, want %+v", c.Last, want)
				}
			}
		})
	}
	t.Run("at the same time", func(t *testing.T) {
		// A socket that is connected to itself hears its own FIN, as if the other side had closed at the same time.
		netnstest.New(t)
		own := netip.MustParseAddrPort("198.51.100.9:45001")
		fd, err := netnstest.Client{Bind: netnstest.BindReuseAddr, Source: own, Destination: own}.Dial()
		if err != nil {
			t.Fatal(err)
		}
		netnstest.Hangup(fd)
		if _, sum := closesTo(t, p, own.Port()); sum != 1 || waiting(t, own.Port()) != 1 {
			t.Errorf("counted %d closes, %d sockets in TIME_WAIT", sum, waiting(t, own.Port()))
		}
	})
	t.Run("closed again", func(t *testing.T) {
		// Nobody acknowledges its FIN: it is in FIN_WAIT1 when it is closed after shutdown(), and the kernel records another change.
		netnstest.New(t)
		fd, err := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:7050")}.Connect()
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 0); err != nil {
			t.Fatal(err)
		}
		netnstest.Hangup(fd)
		if counts, sum := closesTo(t, p, port); sum != 1 {
			t.Errorf("counted %d closes, want 1: %+v", sum, counts)
		}
	})
	t.Run("end of the process", func(t *testing.T) {
		netnstest.New(t)
		listener := netnstest.Listen(t, v4.String(), false)
		for _, end := range []string{"exit 0", "kill -9 $$"} {
			cmd := exec.Command("bash", "-c", "exec 3<>/dev/tcp/198.51.100.7/7050; "+end)
			_ = cmd.Run()
			server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			hear(t, server)
			netnstest.Hangup(server)
			counts, sum := closesTo(t, p, port)
			if sum != 1 || counts[0].Last != (Process{"bash", cmd.Process.Pid}) {
				t.Errorf("%s: counted %d closes: %+v, want one of bash, %d", end, sum, counts, cmd.Process.Pid)
			}
		}
		if n := waiting(t, port); n != 2 {
			t.Errorf("%d sockets in TIME_WAIT, want 2", n)
		}
	})
	t.Run("multipath", func(t *testing.T) {
		netnstest.New(t)
		if _, err := os.Stat("/proc/sys/net/mptcp"); err != nil {
			t.Skip("the kernel lacks MPTCP")
		}
		listener := netnstest.Listen(t, v4.String(), false)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, netnstest.Sockaddr(v4, false)); err != nil {
			t.Fatal(err)
		}
		server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		netnstest.Hangup(fd)
		hear(t, server)
		netnstest.Hangup(server)
		if _, sum := closesTo(t, p, port); sum != 1 {
			t.Errorf("counted %d closes, want 1", sum)
		}
	})
}

// TestClosesRange checks that the range is that of the socket's namespace, as it is now.
func TestClosesRange(t *testing.T) {
	p := attachCloses(t)
	const port = 7051
	netnstest.New(t)
	listener := netnstest.Listen(t, "198.51.100.7:7051", false)
	for _, tt := range []struct {
		ports string
		want  uint64
	}{{"1024 65535", 1}, {"40000 40000", 1}, {"40001 50000", 0}, {"30000 39999", 0}, {"65535 65535", 0}} {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", tt.ports)
		c := netnstest.Client{Bind: netnstest.BindReuseAddr, Source: netip.MustParseAddrPort("198.51.100.1:40000"), Destination: netip.MustParseAddrPort("198.51.100.7:7051")}
		client, server := netnstest.Pair(t, c, listener)
		netnstest.Hangup(client)
		hear(t, server)
		netnstest.Hangup(server)
		if _, sum := closesTo(t, p, port); sum != tt.want {
			t.Errorf("range %s: counted %d closes of port 40000, want %d", tt.ports, sum, tt.want)
		}
	}
}

// TestClosesDeferred has the garbage collector of Unix sockets close a connection. It is a thread of the kernel in new kernels, and in
// old ones a process that closes any Unix socket.
func TestClosesDeferred(t *testing.T) {
	const port = 7052
	p := attachCloses(t)
	mount := netnstest.Cgroups(t)
	dir := fmt.Sprint(mount, "/trace-", os.Getpid())
	id := netnstest.NewCgroup(t, dir)
	own := ownCgroup(t)
	netnstest.New(t)
	listener := netnstest.Listen(t, "198.51.100.7:7052", false)
	netnstest.MoveToCgroup(t, dir, os.Getpid())
	defer netnstest.MoveToCgroup(t, filepath.Join(mount, own), os.Getpid())

	client, server := netnstest.Pair(t, netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.7:7052")}, listener)
	defer unix.Close(server)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	// The message is in the queue of a socket that is only in the message.
	if err := unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(client, pair[1]), nil, 0); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{client, pair[1], pair[0]} {
		_ = unix.Close(fd)
	}
	for range 100 { // until the collector has run
		if fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			_ = unix.Close(fds[0])
			_ = unix.Close(fds[1])
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(server), Events: unix.POLLRDHUP}}, 100); err == nil && n > 0 {
			break
		}
	}
	counts, sum := closesTo(t, p, port)
	if sum != 1 {
		t.Fatalf("counted %d closes, want 1: %+v", sum, counts)
	}
	c := counts[0]
	if ours := (Process{commandOf(t, os.Getpid()), os.Getpid()}); c.Cgroup != id || c.Last != ours && c.Last != (Process{}) {
		t.Errorf("closed by %+v in control group %d, want %d and no process, or %+v", c.Last, c.Cgroup, id, ours)
	}
	if isRoot(inode(t, mount)) && p.NoAncestors == nil && c.Ancestor != id {
		t.Errorf("ancestor %d, want %d", c.Ancestor, id)
	}
	t.Logf("closed by %+v", c.Last)
}

// TestClosesPassed has a process drop a connection that another control group opened and sent to it, as any user can send his own to
// any daemon with a Unix socket. It is a close of who opened it, and the daemon is not named, where the kernel tells who opened it.
func TestClosesPassed(t *testing.T) {
	const port = 7053
	p := attachCloses(t)
	mount := netnstest.Cgroups(t)
	dir := fmt.Sprint(mount, "/trace-", os.Getpid())
	id := netnstest.NewCgroup(t, dir)
	back := filepath.Join(mount, ownCgroup(t))
	netnstest.New(t)
	listener := netnstest.Listen(t, "198.51.100.7:7053", false)
	netnstest.MoveToCgroup(t, dir, os.Getpid())
	moved := false
	defer func() {
		if !moved {
			netnstest.MoveToCgroup(t, back, os.Getpid())
		}
	}()
	client, server := netnstest.Pair(t, netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.7:7053")}, listener)
	defer unix.Close(server)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if err := unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(client), nil, 0); err != nil {
		t.Fatal(err)
	}
	unix.Close(client)
	netnstest.MoveToCgroup(t, back, os.Getpid())
	moved = true
	if _, err := unix.Read(pair[1], make([]byte, 1)); err != nil { // without room for what was sent besides, the kernel closes it
		t.Fatal(err)
	}
	counts, sum := closesTo(t, p, port)
	if sum != 1 {
		t.Fatalf("counted %d closes, want 1: %+v", sum, counts)
	}
	switch c := counts[0]; {
	case !netnstest.TellsSocketCgroup(t): // it is the caller's then
		if c.Cgroup == id || c.Last.PID != os.Getpid() {
			t.Errorf("closed by %+v in control group %d, want this process", c.Last, c.Cgroup)
		}
	case c.Cgroup != id || c.Last != (Process{}):
		t.Errorf("closed by %+v in control group %d, want no process in %d", c.Last, c.Cgroup, id)
	}
}

// ownCgroup returns the path of the control group of this process.
func ownCgroup(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path)
		}
	}
	t.Skip("the kernel has no cgroup2")
	return ""
}

// acceptAll accepts connections, and closes them when their clients have. It ends with the listener.
func acceptAll(t *testing.T, address string) {
	t.Helper()
	listener := netnstest.Listen(t, address, false)
	var done sync.WaitGroup
	t.Cleanup(func() {
		_ = unix.Shutdown(listener, unix.SHUT_RD)
		done.Wait()
	})
	done.Go(func() {
		for {
			fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
				continue
			}
			if err != nil {
				return
			}
			_, _ = unix.Read(fd, make([]byte, 1))
			_ = unix.Close(fd)
		}
	})
}

// closeTo closes n connections first, one to each of as many addresses, from 127.network.0.0 on.
func closeTo(t *testing.T, network byte, port uint16, first, n int) {
	t.Helper()
	for i := first; i < first+n; i++ {
		hangUp(t, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, network, byte(i >> 8), byte(i)}), port))
	}
}

// hangUp makes a connection and closes it first.
func hangUp(t *testing.T, to netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Connect(fd, netnstest.Sockaddr(to, false)), unix.Shutdown(fd, unix.SHUT_WR)); err != nil {
		t.Fatalf("connect to %v: %v", to, err)
	}
}

// TestClosesCrawler closes connections to thousands of addresses, one each, and many to one address: most of these have a slot of
// their own from the first reading on, although no slot gets free.
func TestClosesCrawler(t *testing.T) {
	const port, crawled, heavy = 7053, 1000, 400
	p := attachProbe(t).Probe
	netnstest.New(t)
	acceptAll(t, "0.0.0.0:7053")
	next := 0
	crawl := func(n int) {
		closeTo(t, 10, port, next, n)
		next += n
	}
	read := func() (pools int, ofHeavy uint64) {
		counts, _ := closesTo(t, p, port)
		for _, c := range counts {
			if c.Destination.Addr() == netip.MustParseAddr("127.9.0.1") {
				ofHeavy += c.Events
			}
		}
		return len(counts), ofHeavy
	}
	crawl(crawled)
	_, ofAncestor := p.Closes.limits(0)
	if pools, _ := read(); pools != ofAncestor/2-1 {
		t.Errorf("%d pools of the crawler, want %d", pools, ofAncestor/2-1)
	}
	both := func() {
		for range heavy {
			hangUp(t, netip.MustParseAddrPort("127.9.0.1:7053"))
			crawl(1)
		}
	}
	both()
	pools, ofHeavy := read()
	if pools > 2 || ofHeavy < heavy*94/100 { // it needs 16 of late, or 15 that are halved and 9
		t.Errorf("%d pools, %d of %d closes to one address are attributed", pools, ofHeavy, heavy)
	}
	both()
	if _, ofHeavy = read(); ofHeavy != heavy {
		t.Errorf("then %d of %d closes to one address are attributed", ofHeavy, heavy)
	}
}

// TestClosesShares checks that a flood of pools with closes takes no slot of failures, and leaves room for other network namespaces.
func TestClosesShares(t *testing.T) {
	const port = 7054
	p := attachProbe(t)
	if p.NoNamespaces != nil {
		t.Skipf("the kernel lacks what tells namespaces: %v", p.NoNamespaces)
	}
	_, ofAncestor := p.Closes.limits(0)
	t.Run("flood", func(t *testing.T) {
		netnstest.New(t)
		acceptAll(t, "0.0.0.0:7054")
		for range 40 { // also of those that have 16 of late, even if 15 are halved amid this
			closeTo(t, 11, port, 0, 100)
		}
	})
	counts, _ := closesTo(t, p.Probe, port)
	if len(counts) < ofAncestor/2 || len(counts) > ofAncestor {
		t.Errorf("%d pools, want %d to %d", len(counts), ofAncestor/2, ofAncestor)
	}
	t.Run("victim", func(t *testing.T) {
		netnstest.New(t)
		acceptAll(t, "0.0.0.0:7055")
		closeTo(t, 11, port+1, 0, 10)
	})
	if counts, sum := closesTo(t, p.Probe, port+1); len(counts) != 10 || sum != 10 {
		t.Errorf("of another namespace: %d pools with %d closes, want 10", len(counts), sum)
	}
	if u := p.Failures.Utilization(); u != 0 {
		failures(t, p)
		if n := len(failuresOf(t, p, port)); n != 0 {
			t.Errorf("%d pools with failures", n)
		}
	}
}

// TestClosesCgroups checks that a flood of control groups below one, with closes to the same address, keeps no other one out.
func TestClosesCgroups(t *testing.T) {
	const port, children = 7057, 80
	p := attachProbe(t).Probe
	if p.NoAncestors != nil {
		t.Skipf("the kernel lacks a helper: %v", p.NoAncestors)
	}
	mount := netnstest.Cgroups(t)
	slice := fmt.Sprint(mount, "/trace-", os.Getpid())
	flooder, victim := slice+"/flooder", slice+"/victim"
	for _, dir := range []string{slice, flooder, victim} {
		netnstest.NewCgroup(t, dir)
	}
	for i := range children {
		netnstest.NewCgroup(t, fmt.Sprint(flooder, "/", i))
	}
	pod := netnstest.NewCgroup(t, victim+"/pod")
	netnstest.New(t) // one tenant
	acceptAll(t, "0.0.0.0:7057")
	script := fmt.Sprintf(`for dir in %s/{0..%d} %s/pod; do
	echo $$ > $dir/cgroup.procs
	for i in 1 2 3; do : <> /dev/tcp/127.0.0.1/%d; done
done`, flooder, children-1, victim, port)
	if out, err := exec.Command("bash", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	counts, _ := closesTo(t, p, port)
	pools, ofPod := 0, uint64(0)
	for _, c := range counts {
		if c.Cgroup == pod {
			ofPod = c.Events
		} else {
			pools++
		}
	}
	_, ofAncestor := p.Closes.limits(0)
	if !isRoot(inode(t, mount)) {
		return // all these may be below one ancestor
	}
	if pools != ofAncestor/2-1 || ofPod != 3 {
		t.Errorf("%d pools of the flood, want %d; %d closes of the other control group, want 3", pools, ofAncestor/2-1, ofPod)
	}
}

// TestClosesConcurrent closes connections of many pools on all CPUs, while counts are read and slots get free and are taken again: each
// close counts once.
func TestClosesConcurrent(t *testing.T) {
	const port, threads, rounds, pools = 7056, 4, 140, 3 // few of a share, also if each has a slot that is not free yet
	p := attachProbe(t).Probe
	netnstest.New(t)
	acceptAll(t, "0.0.0.0:7056")
	var clients sync.WaitGroup
	for thread := range threads {
		// The socket is of this namespace, also when another thread uses it.
		var sockets []int
		for range rounds * pools {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			sockets = append(sockets, fd)
		}
		clients.Go(func() {
			for i, fd := range sockets {
				to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 12, byte(thread / 2), byte(i % pools)}), port)
				if err := errors.Join(unix.Connect(fd, netnstest.Sockaddr(to, false)), unix.Shutdown(fd, unix.SHUT_WR), unix.Close(fd)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		clients.Wait()
		close(done)
	}()
	got, rest := map[netip.AddrPort]uint64{}, uint64(0)
	now := time.Now()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(20 * time.Millisecond):
		}
		counts, others, err := p.Closes.Counts(now)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range counts {
			got[c.Destination] += c.Events
		}
		rest += others.Closes
		now = now.Add(2 * IdleTime)
		if err := p.Closes.Reclaim(now); err != nil {
			t.Fatal(err)
		}
	}
	missing := uint64(0)
	for i := range threads / 2 * pools {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 12, byte(i / pools), byte(i % pools)}), port)
		if got[to] > 2*rounds {
			t.Errorf("%v: counted %d closes, want %d", to, got[to], 2*rounds)
		}
		missing += 2*rounds - got[to]
	}
	if missed := missedRuns(t, p); missing > rest+missed { // none, unless other tests make shares small
		t.Errorf("%d closes are missing, and only %d of all processes are without a slot, and %d runs were missed", missing, rest, missed)
	}
}

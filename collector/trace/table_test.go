//go:build linux

package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// reclaim calls Reclaim.
func reclaim(t *testing.T, p *counter, now time.Time) {
	t.Helper()
	if err := p.Failures.Reclaim(now); err != nil {
		t.Fatal(err)
	}
}

// failTo makes one connect() fail for each of n destinations, with ports from first on.
func failTo(t *testing.T, network byte, port uint16, first, n int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for i := first; i < first+n; i++ {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, network, byte(i >> 8), byte(i)}), port)
		if err := unix.Connect(fd, netnstest.Sockaddr(to, false)); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Fatalf("connect(): %v, want EADDRNOTAVAIL", err)
		}
	}
}

// ofPort returns how many pools with a destination port a Probe has counted, and their failures.
func ofPort(pools map[pool]uint64, port uint16) (n int, failures uint64) {
	for of, f := range pools {
		if of.destination.Port() == port {
			n++
			failures += f
		}
	}
	return n, failures
}

// TestReclaim checks that the slots of idle pools get free, that these pools count again when they
// fail again, and that nothing is lost.
func TestReclaim(t *testing.T) {
	const port, pools, size = 7020, 8, 64
	netnstest.LockTraces(t)
	attached, err := attach(size)
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Close()
	unlimited(t, attached)
	p := newCounter(attached)
	netnstest.New(t)
	noPorts(t)

	now := time.Now()
	next := func(after time.Duration) {
		t.Helper()
		now = now.Add(after)
		reclaim(t, p, now)
		unlimited(t, attached)
	}
	read := func() {
		t.Helper()
		counts, rest, err := p.Failures.Counts(now)
		if err != nil {
			t.Fatal(err)
		}
		p.rest += rest.Connects
		for _, c := range counts {
			p.pools[pool{c.Source, c.Destination}] += c.Events
		}
	}
	var want uint64
	for round := range 10 { // more than there are slots
		failTo(t, 4, port, pools*round, pools)
		failTo(t, 4, port, 0, 1)
		want += pools + 1
		read()
		if n := inUse(t, p, port); n < pools || p.Failures.Utilization() < pools/float64(size) {
			t.Errorf("round %d: %d slots are in use, utilization %v", round, n, p.Failures.Utilization())
		}
		next(IdleTime)
		failTo(t, 4, port, pools*round, 1)
		want++ // the slot that its pool had is not in the index any more
		read()
		next(IdleTime)
		next(graceTime)
		next(graceTime)
	}
	if n, got := ofPort(p.pools, port); n != 10*pools || got+p.rest < want || p.rest > 0 {
		t.Errorf("counted %d failures in %d pools, and %d besides, want %d in %d", got, n, p.rest, want, 10*pools)
	}
	if first := p.pools[poolOf("127.0.0.1", "127.4.0.0:7020")]; first != 10+2 {
		t.Errorf("counted %d failures in the first pool, want 12", first)
	}
	if n := inUse(t, p, port); n != 0 {
		t.Errorf("%d slots are in use after all pools were idle", n)
	}
	// Each slot is free once, and has gone back to its shares. Other tests may use some.
	queued := map[uint32]bool{}
	for slot := uint32(0); p.objects.FailFree.LookupAndDelete(nil, &slot) == nil; {
		queued[slot] = true
	}
	read()
	others := 0
	for _, s := range p.Failures.state {
		if s.phase != free {
			others++
		}
	}
	if len(queued)+others != size {
		t.Errorf("%d slots are free and %d are used, want %d in all", len(queued), others, size)
	}
	taken := 0
	var share [shareSize]byte
	for i := range int64(shares) {
		if _, err := p.Failures.shares.ReadAt(share[:], i*shareSize); err != nil {
			t.Fatal(err)
		}
		taken += int(binary.NativeEndian.Uint32(share[shareTaken:]) - binary.NativeEndian.Uint32(share[shareReturned:]))
	}
	if taken != 2*others {
		t.Errorf("%d slots are taken from shares, want %d of a tenant and as many of an ancestor", taken, others)
	}
}

// inUse returns how many slots that are not free have a pool with that port.
func inUse(t *testing.T, p *counter, port uint16) (n int) {
	t.Helper()
	var slot [slotSize]byte
	for i, s := range p.Failures.state {
		if err := p.Failures.readAt(slot[:], i, 0); err != nil {
			t.Fatal(err)
		}
		if s.phase != free && decodeSlot(slot[:]).Destination.Port() == port {
			n++
		}
	}
	return n
}

// TestReclaimConcurrent frees slots all the time, while connects of their pools fail on all CPUs.
func TestReclaimConcurrent(t *testing.T) {
	const port, threads, rounds = 7021, 4, 10
	p := attachProbe(t)
	netnstest.New(t)
	noPorts(t)
	var saw [threads]atomic.Uint64
	var stop atomic.Bool
	var clients sync.WaitGroup
	to := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 5, 0, byte(i)}), port)
	}
	for i := range threads {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		clients.Go(func() {
			for !stop.Load() {
				if err := unix.Connect(fd, netnstest.Sockaddr(to(i/2), false)); errors.Is(err, unix.EADDRNOTAVAIL) {
					saw[i].Add(1)
				}
			}
		})
	}
	now := time.Now()
	unlinkings := 0
	for range rounds {
		time.Sleep(50 * time.Millisecond) // instead of the time of grace
		now = now.Add(2 * IdleTime)
		failures(t, p)
		for i := range p.Failures.state {
			p.Failures.state[i].risen = time.Time{} // as if it were idle
		}
		reclaim(t, p, now)
		for _, s := range p.Failures.state {
			if s.phase == unlinked {
				unlinkings++
			}
		}
	}
	stop.Store(true)
	clients.Wait()
	got, rest := failures(t, p)
	for i := range threads / 2 {
		of := pool{netip.MustParseAddr("127.0.0.1"), to(i)}
		want := saw[2*i].Load() + saw[2*i+1].Load()
		if missed := missedRuns(t, p.Probe); got[of] > want || want-got[of] > missed || want == 0 {
			t.Errorf("%v: counted %d failures, and %d besides, the clients saw %d, %d runs were missed", of, got[of], rest, want, missed)
		}
	}
	if unlinkings < rounds {
		t.Errorf("only %d slots were unlinked", unlinkings)
	}
}

// TestShares checks that a tenant with thousands of pools gets a share of the table, and one of its
// ancestors a part of that; that another namespace finds room; and that a share that became too
// large is cut.
func TestShares(t *testing.T) {
	const port = 7022
	p := attachProbe(t)
	if p.NoNamespaces != nil {
		t.Skipf("the kernel lacks what tells namespaces: %v", p.NoNamespaces)
	}
	t.Run("flood", func(t *testing.T) {
		netnstest.New(t)
		noPorts(t)
		failTo(t, 6, port, 0, 5000)
	})
	ofTenant, ofAncestor := p.Failures.limits(0)
	if ofTenant != 256 || ofAncestor != 64 {
		t.Fatalf("limits %d and %d", ofTenant, ofAncestor)
	}
	got, rest := failures(t, p)
	if n, failures := ofPort(got, port); n != ofAncestor || failures+rest < 5000 {
		t.Errorf("%d pools with %d failures, and %d besides; want %d pools", n, failures, rest, ofAncestor)
	}
	t.Run("victim", func(t *testing.T) {
		netnstest.New(t)
		noPorts(t)
		failTo(t, 6, port+1, 0, 10)
	})
	got, _ = failures(t, p)
	if n, failures := ofPort(got, port+1); n != 10 || failures != 10 {
		t.Errorf("of another namespace: %d pools with %d failures, want 10", n, failures)
	}

	// As if the limits had been greater.
	unlimited(t, p.Probe)
	t.Run("more", func(t *testing.T) {
		netnstest.New(t)
		noPorts(t)
		failTo(t, 6, port+2, 0, 1000)
	})
	got, _ = failures(t, p)
	if n, _ := ofPort(got, port+2); n != 1000 {
		t.Fatalf("%d pools, want 1000", n)
	}
	now := time.Now()
	reclaim(t, p, now)
	reclaim(t, p, now.Add(2*graceTime))
	if n := inUse(t, p, port+2); n != ofAncestor {
		t.Errorf("%d slots are in use, want %d", n, ofAncestor)
	}
}

// TestShareReturned checks that a share that was used up is free again once its slots are.
func TestShareReturned(t *testing.T) {
	const port, later = 7047, 10
	p := attachProbe(t)
	netnstest.New(t)
	noPorts(t)
	_, ofAncestor := p.Failures.limits(0)
	failTo(t, 9, port, 0, ofAncestor)
	if n := len(failuresOf(t, p, port)); n == 0 {
		t.Fatal("no pool")
	}
	idle := time.Now().Add(2 * IdleTime)
	reclaim(t, p, idle)
	reclaim(t, p, idle.Add(2*graceTime))
	failTo(t, 9, port+1, 0, later)
	if n := len(failuresOf(t, p, port+1)); n != later {
		t.Errorf("%d pools, want %d", n, later)
	}
}

// failuresOf returns the last counts of pools with a destination port.
func failuresOf(t *testing.T, p *counter, port uint16) []Count {
	t.Helper()
	failures(t, p)
	return slices.DeleteFunc(p.last, func(c Count) bool { return c.Destination.Port() != port })
}

// TestFullOfTenants fills the table with pools of many tenants. Then another tenant is counted within
// two readings, while these go on.
func TestFullOfTenants(t *testing.T) {
	const port, tenants = 7045, 100
	p := attachProbe(t)
	if p.NoNamespaces != nil {
		t.Skipf("the kernel lacks what tells namespaces: %v", p.NoNamespaces)
	}
	sockets := make([]int, tenants+1) // a socket keeps its namespace
	for i := range sockets {
		t.Run("namespace", func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40000")
			netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "40000")
			var err error
			if sockets[i], err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				t.Fatal(err)
			}
		})
		t.Cleanup(func() { unix.Close(sockets[i]) })
	}
	victim := sockets[tenants]
	fail := func(fd, n int, port uint16) {
		t.Helper()
		for i := range n {
			to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 8, byte(i >> 8), byte(i)}), port)
			if err := unix.Connect(fd, netnstest.Sockaddr(to, false)); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Fatalf("connect(): %v, want EADDRNOTAVAIL", err)
			}
		}
	}
	flood := func() {
		t.Helper()
		for _, fd := range sockets[:tenants] {
			fail(fd, 100, port)
		}
	}
	now := time.Now()
	scrape := func() (victims uint64) {
		t.Helper()
		now = now.Add(15 * time.Second)
		got, _ := failures(t, p)
		_, victims = ofPort(got, port+1)
		reclaim(t, p, now)
		return victims
	}

	flood()
	fail(victim, 1, port+1)
	if n := scrape(); n != 0 {
		t.Fatalf("%d failures of the victim: the table is not full", n)
	}
	flood()
	fail(victim, 1, port+1)
	scrape()
	flood()
	fail(victim, 1, port+1)
	if n := scrape(); n == 0 {
		t.Error("no failure of the victim after two readings")
	}
	if u := p.Failures.Utilization(); u > 0.5 {
		t.Errorf("utilization %v, want at most a half", u)
	}
}

// TestLimits checks that all tenants together have at most half of the table.
func TestLimits(t *testing.T) {
	table := Table{state: make([]slotState, TableSize)}
	for tenants := range TableSize / 2 {
		ofTenant, ofAncestor := table.limits(tenants)
		if tenants*ofTenant > TableSize/2 || ofAncestor > ofTenant || ofAncestor < 1 {
			t.Errorf("%d tenants: %d, and %d of an ancestor", tenants, ofTenant, ofAncestor)
		}
	}
}

// portless is a script that makes connects fail to 127.7.0.1 to 127.7.0.N, in its namespace.
const portless = `ip link set lo up
echo 40000 40000 > /proc/sys/net/ipv4/ip_local_port_range
echo 40000 > /proc/sys/net/ipv4/ip_local_reserved_ports
for i in $(seq N); do { : <> /dev/tcp/127.7.0.$i/PORT; } 2>/dev/null; done
`

// runPortless runs the script, by a command that makes namespaces.
func runPortless(t *testing.T, attr *syscall.SysProcAttr, port, n int, command ...string) {
	t.Helper()
	script := strings.NewReplacer("PORT", strconv.Itoa(port), "N", strconv.Itoa(n)).Replace(portless)
	cmd := exec.Command("unshare", append(command, "bash", "-c", script)...)
	cmd.SysProcAttr = attr
	var stderr strings.Builder
	cmd.Stderr = &stderr
	_ = cmd.Run() // the last connect() has failed
	if stderr.Len() > 0 {
		t.Fatalf("%v: %s", cmd, stderr.String())
	}
}

// TestTenants checks whose failures are taken together.
func TestTenants(t *testing.T) {
	const port = 7025
	p := attachProbe(t)
	if p.NoNamespaces != nil {
		t.Skipf("the kernel lacks what tells namespaces: %v", p.NoNamespaces)
	}
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	// tenantsOf returns the tenants and namespaces of all failures to a port since the last call.
	tenantsOf := func(t *testing.T, port int) (tenants, namespaces map[uint64]int) {
		t.Helper()
		failures(t, p)
		tenants, namespaces = map[uint64]int{}, map[uint64]int{}
		for _, c := range p.last {
			if int(c.Destination.Port()) == port {
				tenants[c.Tenant]++
				namespaces[c.Namespace]++
			}
		}
		return tenants, namespaces
	}

	t.Run("root", func(t *testing.T) {
		netnstest.New(t)
		noPorts(t)
		failTo(t, 7, port, 0, 3)
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		if tenants, namespaces := tenantsOf(t, port); len(tenants) != 1 || tenants[cookie] != 3 || namespaces[cookie] != 3 {
			t.Errorf("tenants %v, namespaces %v, want %d", tenants, namespaces, cookie)
		}
	})
	t.Run("user", func(t *testing.T) {
		for range 3 {
			runPortless(t, nobody, port+1, 2, "--user", "--map-root-user", "--net")
		}
		// Also in a user namespace of a user namespace, where he is somebody else.
		runPortless(t, nobody, port+1, 2, "--user", "--map-root-user", "unshare", "--user", "--map-root-user", "--net")
		tenants, namespaces := tenantsOf(t, port+1)
		if len(tenants) != 1 || tenants[tenantOfUser|65534] != 8 || len(namespaces) != 4 {
			t.Errorf("tenants %v, namespaces %v, want one tenant with four namespaces", tenants, namespaces)
		}
	})
	t.Run("container", func(t *testing.T) {
		// Root made the outer user namespace, and in it there are two network namespaces.
		// The first one stays: new kernels give the inode of one that is gone to the next.
		stays := strings.NewReplacer("PORT", strconv.Itoa(port+2), "N", "2").Replace(portless) + "echo ready\nexec sleep 60\n"
		cmd := exec.Command("unshare", "--user", "--map-root-user", "--net", "bash", "-c", stays)
		stdout, err := cmd.StdoutPipe()
		if err := errors.Join(err, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		if _, err := io.ReadFull(stdout, make([]byte, len("ready"))); err != nil {
			t.Fatal(err)
		}
		first, _ := tenantsOf(t, port+2)
		both := "--user --map-root-user -- bash -c"
		script := `unshare --net bash -c "$0"; unshare --user --map-root-user --net bash -c "$0"`
		inner := strings.NewReplacer("PORT", strconv.Itoa(port+3), "N", "2").Replace(portless)
		out, _ := exec.Command("unshare", append(strings.Fields(both), script, inner)...).CombinedOutput()
		if len(out) > 0 {
			t.Fatalf("%s", out)
		}
		tenants, namespaces := tenantsOf(t, port+3)
		if len(first) != 1 || len(tenants) != 1 || len(namespaces) != 2 {
			t.Errorf("tenants %v, namespaces %v, want one tenant with two namespaces", tenants, namespaces)
		}
		for tenant := range tenants {
			if tenant&^0xffffffff != tenantOfUserNS || first[tenant] != 0 {
				t.Errorf("tenant %#x, that of another container is in %v", tenant, first)
			}
		}
	})
	t.Run("flood", func(t *testing.T) {
		_, before := failures(t, p)
		for range 10 {
			runPortless(t, nobody, port+4, 100, "--user", "--map-root-user", "--net")
		}
		got, after := failures(t, p)
		n, counted := 0, uint64(0)
		for _, c := range p.last {
			if c.Destination.Port() == port+4 {
				n++
				counted += c.Events
			}
		}
		_, ofAncestor := p.Failures.limits(0)
		if n == 0 || n > ofAncestor || counted+after-before < 1000 {
			t.Errorf("%d pools with %d failures, %d besides, want at most %d pools: %d", n, counted, after-before, ofAncestor, len(got))
		}
	})
}

// TestCgroups checks that each control group has pools of its own, and which of them have a share
// together.
func TestCgroups(t *testing.T) {
	const port = 7030
	p := attachProbe(t)
	mount := netnstest.Cgroups(t)
	slice := fmt.Sprint(mount, "/trace-", os.Getpid())
	one, two, three, four := slice, slice+"/two", slice+"/two/three", slice+"/two/three/four"
	ids := map[string]uint64{mount: inode(t, mount)}
	for _, dir := range []string{one, two, three, four} {
		ids[dir] = netnstest.NewCgroup(t, dir)
	}
	ancestors := map[string]uint64{mount: 0, one: ids[one], two: ids[two], three: ids[two], four: ids[two]}
	netnstest.New(t)
	for dir, ancestor := range ancestors {
		if p.NoAncestors != nil {
			ancestor = ids[dir]
		}
		attr, f, err := netnstest.InCgroup(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		runPortless(t, attr, port, 1, "--mount") // in the network namespace of the test
		failures(t, p)
		p.last = slices.DeleteFunc(p.last, func(c Count) bool { return c.Destination.Port() != port })
		if len(p.last) != 1 || p.last[0].Events != 1 || p.last[0].Cgroup != ids[dir] {
			t.Errorf("%s: got %+v, want one failure of %d", dir, p.last, ids[dir])
			continue
		}
		// In a cgroup namespace, the root of the mount is below the real one.
		if c := p.last[0]; c.Ancestor != ancestor && isRoot(ids[mount]) {
			t.Errorf("%s: ancestor %d, want %d", dir, c.Ancestor, ancestor)
		}
	}
}

// inode returns the number of a control group.
func inode(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// isRoot reports whether a number is that of the root of all control groups.
func isRoot(id uint64) bool { return id == 1 }

// TestCgroupShares checks that all control groups below an ancestor, with the same addresses, have
// one share of the table, and that this keeps no other one out.
func TestCgroupShares(t *testing.T) {
	const port, children, each = 7031, 100, 2
	p := attachProbe(t)
	if p.NoAncestors != nil {
		t.Skipf("the kernel lacks a helper: %v", p.NoAncestors)
	}
	mount := netnstest.Cgroups(t)
	slice := fmt.Sprint(mount, "/trace-", os.Getpid())
	flooder, victim := slice+"/flooder", slice+"/victim"
	netnstest.NewCgroup(t, slice)
	netnstest.NewCgroup(t, flooder)
	for i := range children {
		netnstest.NewCgroup(t, fmt.Sprint(flooder, "/", i))
	}
	netnstest.NewCgroup(t, victim)
	pod := netnstest.NewCgroup(t, victim+"/pod")
	netnstest.New(t) // one tenant
	// run has each child, and then the pod, make connects fail to the same address. It returns the
	// pools and failures of the children, and those of the pod.
	run := func(port int) (pools int, ofChildren, ofPod uint64) {
		t.Helper()
		script := fmt.Sprintf(`ip link set lo up
echo 40000 40000 > /proc/sys/net/ipv4/ip_local_port_range
echo 40000 > /proc/sys/net/ipv4/ip_local_reserved_ports
for dir in %s/{0..%d} %s/pod; do
	echo $$ > $dir/cgroup.procs
	for i in {1..%d}; do { : <> /dev/tcp/127.7.0.1/%d; } 2>/dev/null; done
done
exit 0`, flooder, children-1, victim, each, port)
		if out, err := exec.Command("bash", "-c", script).CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("%v: %s", err, out)
		}
		failures(t, p)
		seen := map[uint64]bool{}
		for _, c := range p.last {
			switch {
			case int(c.Destination.Port()) != port:
			case c.Cgroup == pod:
				ofPod += c.Events
			default:
				pools++
				ofChildren += c.Events
				seen[c.Cgroup] = true
			}
		}
		if len(seen) != pools {
			t.Errorf("%d pools of %d control groups", pools, len(seen))
		}
		return pools, ofChildren, ofPod
	}

	_, ofAncestor := p.Failures.limits(0)
	pools, ofChildren, ofPod := run(port)
	if pools != ofAncestor || ofChildren != uint64(ofAncestor*each) || p.rest < uint64((children-ofAncestor)*each) {
		t.Errorf("%d pools with %d failures, and %d besides, want %d pools", pools, ofChildren, p.rest, ofAncestor)
	}
	if ofPod != each && isRoot(inode(t, mount)) { // else, all these may be below one ancestor
		t.Errorf("%d failures of the other control group, want %d", ofPod, each)
	}

	// As if the limits had been greater.
	unlimited(t, p.Probe)
	if pools, ofChildren, ofPod = run(port + 1); pools != children || ofChildren != children*each || ofPod != each {
		t.Fatalf("%d pools with %d failures, and %d of the other control group, want %d", pools, ofChildren, ofPod, children)
	}
	now := time.Now()
	reclaim(t, p, now)
	reclaim(t, p, now.Add(2*graceTime))
	slots, most := inUse(t, p, port)+inUse(t, p, port+1), ofAncestor+2 // and those of the pod
	if slots > most || slots < ofAncestor {
		t.Errorf("%d slots are in use, want %d", slots, most)
	}
}

// TestMissedRuns reads how many runs the kernel skipped: those in a softirq that interrupts the same program.
func TestMissedRuns(t *testing.T) {
	p := attachProbe(t)
	n, ok, err := p.MissedRuns()
	if err != nil || n > 100 {
		t.Errorf("%d missed runs, %v", n, err)
	}
	if !ok {
		t.Skip("the kernel lacks a count of them, it needs Linux 6.1")
	}
}

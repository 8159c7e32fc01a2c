//go:build linux

package scan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
)

// namedScanner returns a Scanner for the namespaces that are mounted in these directories.
func namedScanner(tb testing.TB, dirs ...string) *Scanner {
	tb.Helper()
	cfg := testConfig()
	cfg.Scope, cfg.NamespaceDirs = ScopeNamed, dirs
	return newScanner(tb, cfg)
}

// byName returns the namespaces of a scan by their label.
func byName(s *Scanner) map[string]Namespace {
	m := map[string]Namespace{}
	for _, n := range s.Scan(context.Background()).Namespaces {
		m[n.Name] = n
	}
	return m
}

// TestNamespacesOracle scans 50 namespaces with different settings and load. It compares the
// report of each with the number of connections that the kernel grants.
func TestNamespacesOracle(t *testing.T) {
	dir := t.TempDir()
	type namespace struct {
		path   string
		client oracleClient
	}
	v4 := clientTo("198.51.100.1", "198.51.100.7:80")
	v6 := clientTo("2001:db8::1", "[2001:db8::7]:80").bind(netnstest.BindNoPort)
	clients := []oracleClient{v4, v6, v4.mapped(), v4.bind(netnstest.BindNoPort), v4.bind(netnstest.BindFirst)}

	const n = 50
	var namespaces []namespace
	for i := range n {
		ns := namespace{path: filepath.Join(dir, fmt.Sprintf("ns%02d", i)), client: clients[i%len(clients)]}
		netnstest.Mount(t, ns.path, func() {
			low := 20000 + 500*i
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("%d %d", low, low+59+2*i))
			netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", fmt.Sprintf("%d-%d", low+5, low+5+i%7))
			netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "0")
			setReuseDelay(t, time.Minute)
			ns.client.Hold(t, smallSockets+i%5) // more than 1% of the widest range
			if i%2 == 0 && ns.client.Bind != netnstest.BindFirst {
				listener := netnstest.Listen(t, "[::]:80", false)
				netnstest.TimeWait(t, ns.client.Client, listener, 4)
				if i%4 == 0 {
					setReuseDelay(t, time.Millisecond)
				}
			}
			netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", strconv.Itoa(i%3))
		})
		namespaces = append(namespaces, ns)
	}
	time.Sleep(setReuseDelay(t, 50*time.Millisecond)) // without tcp_tw_reuse_delay, ports become reusable for so long

	found := byName(namedScanner(t, dir))
	if len(found) != n+1 {
		t.Errorf("%d namespaces, want %d and our own", len(found), n)
	}
	for _, ns := range namespaces {
		s := found[filepath.Base(ns.path)]
		if s.TCP.Outcome != Collected || s.Path != ns.path {
			t.Errorf("%s: outcome %q, path %q: %v", ns.path, s.TCP.Outcome, s.Path, s.TCP.Err)
			continue
		}
		want, wantErr := freeTo(s.TCP.Report, ns.client.source, ns.client.Destination), unix.EADDRNOTAVAIL
		if ns.client.Bind == netnstest.BindFirst {
			src := sourceOf(t, s.TCP.Report, ns.client.source)
			want, wantErr = src.Capacity-src.Ports, unix.EADDRINUSE
		}
		netnstest.In(t, ns.path, func() {
			granted, refusal := ns.client.Fill(t, want+10)
			if granted != want || !errors.Is(refusal, wantErr) {
				t.Errorf("%s: %d ports free, %d granted, then %v", ns.path, want, granted, refusal)
			}
		})
	}
}

// TestNamespacesIdle checks which namespaces are idle. Their sockets must not be read.
func TestNamespacesIdle(t *testing.T) {
	dir := t.TempDir()
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	for name, connections := range map[string]int{"none": 0, "few": 9, "enough": 10} {
		netnstest.Mount(t, filepath.Join(dir, name), func() {
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "30000 30999")
			netnstest.Listen(t, "0.0.0.0:30500", false) // one socket, one port less
			if connections == 0 {
				netnstest.Sysctl(t, "ipv4/ip_local_port_range", "31000 31999")
				return
			}
			c.Hold(t, connections-1)
		})
	}
	netnstest.Mount(t, filepath.Join(dir, "empty"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	})

	found := byName(namedScanner(t, dir))
	for name, want := range map[string]struct {
		outcome  Outcome
		capacity int // 0 if the sockets were not read
	}{
		"self":   {Collected, 28232},
		"empty":  {Idle, 0},
		"none":   {Idle, 0},
		"few":    {Idle, 0},
		"enough": {Collected, 999},
	} {
		if n := found[name]; n.TCP.Outcome != want.outcome || n.TCP.Report.CapacityPorts != want.capacity || n.TCP.Err != nil {
			t.Errorf("%s: got %q, capacity %d, %v, want %+v", name, n.TCP.Outcome, n.TCP.Report.CapacityPorts, n.TCP.Err, want)
		}
	}
}

// TestNamespacesExhausted are never idle, however few ports and sockets they have, and whatever the
// limits for series are.
func TestNamespacesExhausted(t *testing.T) {
	dir := t.TempDir()
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	netnstest.Mount(t, filepath.Join(dir, "six"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40005")
		c.Hold(t, 6)
	})
	netnstest.Mount(t, filepath.Join(dir, "nothing"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40005")
		netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "40000-40005")
	})
	s := namedScanner(t, dir)
	s.cfg.Limits = pool.Limits{MinPorts: 2000, Most: 0}
	found := byName(s)
	for _, name := range []string{"six", "nothing"} {
		if n := found[name]; n.TCP.Outcome != Collected || n.TCP.Report.MaxUtilization != 1 {
			t.Errorf("%s: got %q, utilization %v, want %q, 1", name, n.TCP.Outcome, n.TCP.Report.MaxUtilization, Collected)
		}
	}
}

// TestNamespacesRange notices a range that becomes narrow while a namespace is idle.
func TestNamespacesRange(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ns")
	netnstest.Mount(t, path, func() { clientTo("198.51.100.1", "198.51.100.7:80").Hold(t, 6) })
	s := namedScanner(t, dir)
	if n := byName(s)["ns"]; n.TCP.Outcome != Idle {
		t.Fatalf("got %q, want %q", n.TCP.Outcome, Idle)
	}
	netnstest.In(t, path, func() { netnstest.Sysctl(t, "ipv4/ip_local_port_range", "32768 32779") })
	for scans := 1; byName(s)["ns"].TCP.Outcome == Idle; scans++ {
		if scans > capacityScans {
			t.Fatalf("still idle after %d scans", scans)
		}
	}
}

// TestNamespacesUnreached keeps labels where the time was over before a namespace was entered.
func TestNamespacesUnreached(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	netnstest.Mount(t, filepath.Join(second, "blue"), nil)
	s := namedScanner(t, first, second)
	s.Scan(t.Context()) // the one in the second directory gets the name
	netnstest.Mount(t, filepath.Join(first, "blue"), nil)
	labels := func() map[uint64]string {
		m := map[uint64]string{}
		for _, n := range s.Scan(t.Context()).Namespaces[1:] {
			m[n.Inode] = n.Name
		}
		return m
	}
	before := labels()
	s.cfg.Timeout = time.Nanosecond
	unreached := labels()
	s.cfg.Timeout = time.Minute
	after := labels()
	if diff := cmp.Diff(before, unreached); diff != "" || len(before) != 2 {
		t.Errorf("labels of %d namespaces in a scan without time (-before +then):\n%s", len(before), diff)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("labels after a scan without time (-before +after):\n%s", diff)
	}
}

// TestNamespacesShareLimit bounds the destinations of all namespaces together.
func TestNamespacesShareLimit(t *testing.T) {
	dir := t.TempDir()
	for name, ports := range map[string]int{"a": 20, "b": 30} {
		netnstest.Mount(t, filepath.Join(dir, name), func() {
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
			for i := range 3 {
				clientTo("198.51.100.1", fmt.Sprintf("198.51.100.%d:80", 10+i)).Hold(t, ports+i)
			}
		})
	}
	s := namedScanner(t, dir)
	s.cfg.Limits.Most = 4
	reported, unreported, listed := 0, 0, 0
	for _, n := range s.Scan(t.Context()).Namespaces {
		for _, d := range n.TCP.Report.Destinations {
			if d.Unreported {
				listed++
			} else {
				reported++
			}
		}
		unreported += n.TCP.Report.UnreportedDestinations
	}
	if reported != 4 || unreported != 2 || listed != 2 {
		t.Errorf("%d destinations reported and %d not, of which %d are listed, want 4, 2 and 2", reported, unreported, listed)
	}
}

// TestNamespacesFairness has a namespace with few ports, nearly all of them held, beside a tenant
// with many destinations that hold more ports each.
func TestNamespacesFairness(t *testing.T) {
	dir := t.TempDir()
	netnstest.Mount(t, filepath.Join(dir, "tenant"), func() {
		for i := range 20 {
			clientTo("198.51.100.1", fmt.Sprintf("198.51.100.%d:80", 10+i)).Hold(t, 60)
		}
	})
	victim := clientTo("198.51.100.1", "198.51.100.7:80")
	netnstest.Mount(t, filepath.Join(dir, "victim"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40049")
		victim.Hold(t, 49)
		clientTo("198.51.100.1", "198.51.100.8:80").Hold(t, 20)
	})
	s := namedScanner(t, dir)
	for most, want := range map[int]int{1: 1, 3: 2, 5: 2} {
		s.cfg.Limits.Most = most
		r := byName(s)["victim"].TCP.Report
		reported := 0
		for _, d := range r.Destinations {
			if !d.Unreported {
				reported++
			}
		}
		if reported != want || r.Destinations[0].Address != victim.Destination || r.Destinations[0].Utilization != 0.98 || len(r.Sources) != 1 {
			t.Errorf("limit %d: destinations %+v, sources %+v, want %d destinations, the first at 98%%", most, r.Destinations, r.Sources, want)
		}
	}
}

// TestNamespacesLimit enters a busy namespace in each scan, however many others there are, and
// each of the others in its turn.
func TestNamespacesLimit(t *testing.T) {
	const others, limit = 10, 4
	dir := t.TempDir()
	for i := range others {
		netnstest.Mount(t, filepath.Join(dir, fmt.Sprint(i)), nil)
	}
	s := namedScanner(t, dir)
	s.cfg.NamespaceLimit = limit
	s.Scan(t.Context())
	// Found after the others, and before those have all had their turn.
	netnstest.Mount(t, filepath.Join(dir, "zbusy"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40049")
		clientTo("198.51.100.1", "198.51.100.7:80").Hold(t, 49)
	})
	entered := map[string]int{}
	collected := 0 // scans since the first that read it
	for scan := range 12 {
		skipped := 0
		for _, n := range s.Scan(t.Context()).Namespaces[1:] {
			switch n.TCP.Outcome {
			case Skipped:
				skipped++
			case Collected:
				collected++
			}
			if n.TCP.Outcome != Skipped {
				entered[n.Name]++
			}
		}
		if want := others + 1 - limit; skipped != want {
			t.Errorf("scan %d: %d skipped, want %d", scan, skipped, want)
		}
		if collected > 0 && entered["zbusy"] != collected {
			t.Errorf("scan %d: read %d times of %d", scan, collected, entered["zbusy"])
		}
	}
	if collected < 12-others/limit-1 {
		t.Errorf("the busy one was read in %d of 12 scans", collected)
	}
	for i := range others {
		if n := entered[fmt.Sprint(i)]; n < 2 {
			t.Errorf("namespace %d was entered %d times in 12 scans", i, n)
		}
	}
}

// TestNamespacesSkipped are no failures, also those that would get their label from the cookie.
func TestNamespacesSkipped(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	cfg := testConfig()
	cfg.Scope, cfg.NamespaceLimit = ScopeAll, 0
	namespaces := newScanner(t, cfg).Scan(t.Context()).Namespaces[1:]
	if len(namespaces) == 0 {
		t.Error("the namespace of the process was not found")
	}
	for _, n := range namespaces {
		if n.TCP.Outcome != Skipped || n.TCP.Err != nil {
			t.Errorf("got %q, %v, want %q", n.TCP.Outcome, n.TCP.Err, Skipped)
		}
	}
}

// TestNamespacesSmall reads some of many namespaces with a full range of one port in each scan, all
// of them in turn, and beside them always one that has more sockets.
func TestNamespacesSmall(t *testing.T) {
	const small = 4*maxSmall + 3
	dir := t.TempDir()
	for i := range small {
		netnstest.Mount(t, filepath.Join(dir, fmt.Sprint(i)), func() {
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40000")
			clientTo("198.51.100.1", "198.51.100.7:80").Hold(t, 1)
		})
	}
	netnstest.Mount(t, filepath.Join(dir, "large"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40049")
		clientTo("198.51.100.1", "198.51.100.7:80").Hold(t, 49)
	})
	s := namedScanner(t, dir)
	collected := map[string]int{}
	const scans = 10 // half of the turns are for the same ones, as all have as many sockets
	for scan := range scans {
		n := 0
		for _, ns := range s.Scan(t.Context()).Namespaces[1:] {
			switch ns.TCP.Outcome {
			case Collected:
				collected[ns.Name]++
				n++
			case Skipped:
				if ns.Name == "" || !errors.Is(ns.TCP.Err, errLater) {
					t.Errorf("scan %d: skipped %q without an error: %v", scan, ns.Name, ns.TCP.Err)
				}
			default:
				t.Errorf("scan %d: %s is %s: %v", scan, ns.Name, ns.TCP.Outcome, ns.TCP.Err)
			}
		}
		if n != maxSmall+1 {
			t.Errorf("scan %d: %d collected, want %d small ones and the large one", scan, n, maxSmall)
		}
	}
	if collected["large"] != scans {
		t.Errorf("the large one was collected in %d of %d scans", collected["large"], scans)
	}
	if len(collected) != small+1 {
		t.Errorf("%d namespaces were collected in %d scans, want %d", len(collected), scans, small+1)
	}
}

// TestTakeTurns has each namespace in the first half of the order in its turn.
func TestTakeTurns(t *testing.T) {
	const n = 10
	var busy []candidate
	for i := range n {
		busy = append(busy, candidate{sockets: 1000 - i, known: &knownNamespace{cookie: uint64(i)}})
	}
	collected := map[uint64]int{}
	for scan := range uint64(n) {
		ordered := takeTurns(busy, func(c candidate) int { return c.sockets }, func(c candidate) uint64 { return c.known.collected })
		if len(ordered) != n {
			t.Fatalf("%d of %d ordered", len(ordered), n)
		}
		if ordered[0].known.cookie != 0 {
			t.Errorf("scan %d: the one with most sockets is not first", scan)
		}
		for _, c := range ordered[:4] { // the time is over
			c.known.collected = scan + 1
			collected[c.known.cookie]++
		}
	}
	for i := range uint64(n) {
		if collected[i] == 0 {
			t.Errorf("number %d was never collected in %d scans", i, n)
		}
	}
}

// TestNamespacesSysctls change while they are read: each scan has one range or the other, and no
// ratio beyond 1.
func TestNamespacesSysctls(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ns")
	netnstest.Mount(t, path, func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
		clientTo("198.51.100.1", "198.51.100.7:80").Hold(t, 90)
	})
	capacities := map[uint16]int{40000: 100, 40050: 40} // by the lowest port
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		netnstest.In(t, path, func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					netnstest.Sysctl(t, "ipv4/ip_local_port_range", []string{"40050 40089", "40000 40099"}[i%2])
				}
			}
		})
	}()
	s := namedScanner(t, dir)
	seen := map[uint16]int{}
	for range 500 {
		n := byName(s)["ns"]
		r := n.TCP.Report
		low := r.Settings.PortRange.Low
		seen[low]++
		if n.TCP.Outcome != Collected || r.CapacityPorts != capacities[low] || r.MaxUtilization > 1 || r.MaxSourceUtilization > 1 {
			t.Fatalf("got %+v", n)
		}
		for _, d := range r.Destinations {
			if d.Utilization > 1 || d.Held > r.CapacityPorts {
				t.Fatalf("got %+v of %d ports", d, r.CapacityPorts)
			}
		}
	}
	close(stop)
	<-stopped
	if len(seen) != 2 {
		t.Errorf("the range did not change: %v", seen)
	}
}

// TestNamespacesSelfSlow leaves time for others where our own namespace takes too long.
func TestNamespacesSelfSlow(t *testing.T) {
	dir := t.TempDir()
	netnstest.Mount(t, filepath.Join(dir, "well"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
		clientTo("198.51.100.1", "198.51.100.7:80").Hold(t, 10)
	})
	s := namedScanner(t, dir)
	s.cfg.Timeout = 4 * time.Second
	own := inodeOf(t, "/proc/thread-self/ns/net")
	s.dial = func(buffer []byte) (*sockdiag.Conn, error) {
		if inodeOf(t, "/proc/thread-self/ns/net") != own {
			return sockdiag.Dial(buffer)
		}
		fd, err := sockdiagtest.Dial(func(sockdiagtest.Request) [][]byte { return nil })
		if err != nil {
			return nil, err
		}
		return sockdiag.NewConn(fd, buffer), nil
	}
	found := byName(s)
	if found[Self].TCP.Outcome != Deadline || found["well"].TCP.Outcome != Collected {
		t.Errorf("outcomes: own %q, other %q, want %q, %q", found[Self].TCP.Outcome, found["well"].TCP.Outcome, Deadline, Collected)
	}
}

// inodeOf returns the inode of a path.
func inodeOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return strconv.FormatUint(st.Ino, 10)
}

// TestNamespacesDirectory finds namespaces with unusual names in a directory that has other
// entries too.
func TestNamespacesDirectory(t *testing.T) {
	dir := t.TempDir()
	odd := []string{"new\nline", "quote\"{}", strings.Repeat("x", 255), "invalid\xff", "invalid\xfe", "self", "netns-1"}
	for _, name := range odd {
		netnstest.Mount(t, filepath.Join(dir, name), nil)
	}
	for name, make := range map[string]func(path string) error{
		"plain":    func(path string) error { return os.WriteFile(path, nil, 0o444) },
		"dangling": func(path string) error { return os.Symlink("/nonexistent", path) },
		"fifo":     func(path string) error { return unix.Mkfifo(path, 0o600) },
		"closed":   func(path string) error { return os.Mkdir(path, 0) },
		"own": func(path string) error {
			t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
			return errors.Join(os.WriteFile(path, nil, 0o444), unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""))
		},
		"other": func(path string) error {
			t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
			return errors.Join(os.WriteFile(path, nil, 0o444), unix.Mount("/proc/self/ns/uts", path, "", unix.MS_BIND, ""))
		},
	} {
		if err := make(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}

	s := namedScanner(t, dir)
	var log bytes.Buffer
	s.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	names := byName(s)
	if len(names) != len(odd)+1 || len(s.Scan(t.Context()).Namespaces) != len(odd)+1 {
		t.Errorf("%d names, want %d: %+v", len(names), len(odd)+1, names)
	}
	for _, want := range []string{"new\nline", "quote\"{}", strings.Repeat("x", 255), "invalid\uFFFD"} {
		if names[want].TCP.Outcome != Idle {
			t.Errorf("%q: outcome %q", want, names[want].TCP.Outcome)
		}
	}
	if log.Len() != 0 {
		t.Errorf("log: %s", &log)
	}

}

// TestNamespacesAgain lists a directory twice, with two names for one namespace. The namespace
// must be there once, with the same label in every scan.
func TestNamespacesAgain(t *testing.T) {
	dir, link := t.TempDir(), filepath.Join(t.TempDir(), "link")
	netnstest.Mount(t, filepath.Join(dir, "blue"), nil)
	if err := os.WriteFile(filepath.Join(dir, "green"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "green"), unix.MNT_DETACH) })
	if err := unix.Mount(filepath.Join(dir, "blue"), filepath.Join(dir, "green"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	s := namedScanner(t, dir, dir, link)
	for range 3 {
		var names []string
		for _, n := range s.Scan(t.Context()).Namespaces {
			names = append(names, n.Name)
		}
		if got := strings.Join(names, " "); got != "self blue" {
			t.Errorf("got %s, want self and blue", got)
		}
	}
}

// TestDiscoveryFailures checks that each failure is counted at every scan and logged once, and that
// the other directories are still read.
func TestDiscoveryFailures(t *testing.T) {
	dir := t.TempDir()
	netnstest.Mount(t, filepath.Join(dir, "blue"), nil)
	missing, file := filepath.Join(dir, "missing"), filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	s := namedScanner(t, missing, file, dir)
	var log bytes.Buffer
	s.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	for range 3 {
		snapshot := s.Scan(t.Context())
		if len(snapshot.Namespaces) != 2 || snapshot.DiscoveryFailures != 2 || !strings.Contains(snapshot.DiscoveryErr.Error(), missing) {
			t.Errorf("got %+v, want our namespace, blue and 2 failures", snapshot)
		}
	}
	got := log.String()
	if strings.Count(got, "\n") != 2 || strings.Count(got, "level=WARN") != 2 || !strings.Contains(got, "place="+missing) || !strings.Contains(got, "place="+file) {
		t.Errorf("log: got %q, want a warning for each", got)
	}
}

// TestCheckReach checks the error at the start if no other namespace can be reached.
func TestCheckReach(t *testing.T) {
	forbidden := Namespace{TCP: TCP{Result: Result{Outcome: Failed, Err: fmt.Errorf("setns: %w", unix.EPERM)}}}
	broken := Namespace{TCP: TCP{Result: Result{Outcome: Failed, Err: unix.EIO}}}
	idle := Namespace{TCP: TCP{Result: Result{Outcome: Idle}}}
	processes := func(examined int) []discoveryFailure {
		return []discoveryFailure{{"processes", &netns.ForbiddenError{Forbidden: 3, Examined: examined, First: unix.EACCES}}}
	}
	for _, tt := range []struct {
		name     string
		others   []Namespace
		failures []discoveryFailure
		want     string
	}{
		{"nothing there", nil, nil, ""},
		{"all forbidden", []Namespace{forbidden, forbidden}, nil, "setns: operation not permitted"},
		{"one entered", []Namespace{forbidden, idle}, nil, ""},
		{"another failure", []Namespace{forbidden, broken}, nil, ""},
		{"no process but ours", nil, processes(1), "3 of 4 processes may not be examined"},
		{"some processes", nil, processes(2), ""},
		{"some processes and a namespace", []Namespace{idle}, processes(1), ""},
	} {
		err := checkReach(tt.others, tt.failures)
		if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// TestNamespacesProcesses finds the namespace of a process and its owner. Another namespace that
// gets the same inode must get another label.
func TestNamespacesProcesses(t *testing.T) {
	netnstest.Cookies(t)
	cfg := testConfig()
	cfg.Scope, cfg.NamespaceDirs = ScopeAll, []string{t.TempDir()}
	s := newScanner(t, cfg)
	labels := map[string]bool{}
	inodes := map[uint64]bool{}
	again := 0 // how often the kernel reused the inode of another namespace
	for deadline := time.Now().Add(time.Minute); len(labels) < 5 || again == 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d namespaces found, but none with the inode of another", len(labels))
		}
		cmd := exec.Command("sleep", "600")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		found := 0
		inode, err := strconv.ParseUint(inodeOf(t, fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range s.Scan(t.Context()).Namespaces {
			if n.Inode == inode {
				found++
				if labels[n.Name] || !strings.HasPrefix(n.Name, cookiePrefix) || n.Workload != (Workload{}) || n.TCP.Outcome != Idle {
					t.Errorf("got %+v, want a label of its own for a sleep that is idle", n)
				}
				labels[n.Name] = true
				if inodes[n.Inode] {
					again++
				}
				inodes[n.Inode] = true
			}
		}
		if found != 1 {
			t.Errorf("the process was found %d times", found)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		time.Sleep(20 * time.Millisecond) // for the kernel to free the namespace
	}
}

// TestNamespacesNames checks that a namespace keeps its label. Of two with the same mount name, the
// second does not get the name as its label when the first is removed.
func TestNamespacesNames(t *testing.T) {
	netnstest.Cookies(t)
	first, second := t.TempDir(), t.TempDir()
	path := filepath.Join(first, "blue")
	netnstest.Mount(t, path, nil)
	netnstest.Mount(t, filepath.Join(second, "blue"), nil)
	s := namedScanner(t, first, second)
	labels := func() map[uint64]string {
		s.Scan(t.Context())
		m := map[uint64]string{}
		for cookie, k := range s.known {
			m[cookie] = k.label
		}
		return m
	}

	before := labels()
	netnstest.Unmount(t, path)
	after := labels()
	if len(before) != 2 || len(after) != 1 {
		t.Fatalf("labels %v, then %v", before, after)
	}
	for cookie, label := range after {
		if label == "blue" || before[cookie] != label {
			t.Errorf("the second was %q, is %q", before[cookie], label)
		}
	}
	// A new namespace with that name gets it.
	netnstest.Mount(t, path, nil)
	names := labels()
	blue := 0
	for cookie, label := range names {
		if label == "blue" {
			blue++
			if after[cookie] != "" {
				t.Error("the second got the name after all")
			}
		}
	}
	if len(names) != 2 || blue != 1 {
		t.Errorf("labels %v, want a blue", names)
	}
}

// TestNamespacesReplaced replaces a namespace, after the survey, by another one with the same
// inode. It must not be read.
func TestNamespacesReplaced(t *testing.T) {
	netnstest.Cookies(t)
	dir := t.TempDir()
	netnstest.Mount(t, filepath.Join(dir, "ns"), nil)
	s := namedScanner(t, dir)
	found, err := netns.Mounted(dir)
	if err != nil || len(found) != 1 {
		t.Fatalf("found %v, %v", found, err)
	}
	c := candidate{found: found[0]}
	deadline := time.Now().Add(time.Minute)
	err = netns.Visit("/proc", func(v *netns.Visitor) error {
		if err := s.survey(v, &c, deadline); err != nil || c.cookie == 0 {
			t.Errorf("survey: %+v, %v", c, err)
		}
		if err := s.collectFrom(v, &c, deadline); err != nil {
			t.Errorf("collect: %v", err)
		}
		c.cookie++
		return s.collectFrom(v, &c, deadline)
	})
	if !errors.Is(err, netns.ErrGone) {
		t.Errorf("collect with another cookie: got %v, want %v", err, netns.ErrGone)
	}
}

// TestNamespacesFailure checks that the failure of a namespace is logged once and does not affect
// the others, and that no namespace can take all of the time.
func TestNamespacesFailure(t *testing.T) {
	dir := t.TempDir()
	inodes := map[string]string{}
	for _, name := range []string{"broken", "well", "zslow"} {
		path := filepath.Join(dir, name)
		netnstest.Mount(t, path, func() {
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
			n := 10
			if name == "zslow" {
				n = 50 // the busiest, so the first
			}
			clientTo("198.51.100.1", "198.51.100.7:80").Hold(t, n)
		})
		inodes[inodeOf(t, path)] = name
	}
	s := namedScanner(t, dir)
	s.cfg.Timeout = 3 * time.Second // the slow one takes half of what is for other namespaces
	var log bytes.Buffer
	s.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	s.dial = func(buffer []byte) (*sockdiag.Conn, error) {
		switch inodes[inodeOf(t, "/proc/thread-self/ns/net")] {
		case "broken":
			return nil, unix.EPERM
		case "zslow":
			fd, err := sockdiagtest.Dial(func(sockdiagtest.Request) [][]byte { return nil })
			if err != nil {
				return nil, err
			}
			return sockdiag.NewConn(fd, buffer), nil
		}
		return sockdiag.Dial(buffer)
	}
	want := map[string]Outcome{"self": Collected, "broken": Failed, "zslow": Deadline, "well": Collected}
	for range 2 {
		got := map[string]Outcome{}
		namespaces := s.Scan(t.Context()).Namespaces
		for _, n := range namespaces {
			got[n.Name] = n.TCP.Outcome
			if n.TCP.Err != nil && n.TCP.Report.CapacityPorts != 0 {
				t.Errorf("%s failed and has numbers: %+v", n.Name, n)
			}
		}
		if namespaces[1].Name != "zslow" {
			t.Errorf("%s was read first, want the busiest", namespaces[1].Name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("outcomes (-want +got):\n%s", diff)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "netns=broken") || !strings.Contains(got, "not permitted") {
		t.Errorf("log: got %q, want one line about broken", got)
	}
	s.cfg.Timeout = time.Nanosecond
	for _, n := range s.Scan(t.Context()).Namespaces {
		if n.TCP.Outcome != Deadline {
			t.Errorf("%s: outcome %q in no time, want %q", n.Name, n.TCP.Outcome, Deadline)
		}
	}
}

// TestNamespacesChurn makes and removes namespaces, at most twenty a second, while another
// goroutine scrapes.
func TestNamespacesChurn(t *testing.T) {
	const scrapes, namespaces = 50, 100
	dir := t.TempDir()
	s := namedScanner(t, dir)
	var log bytes.Buffer
	s.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	own := inodeOf(t, "/proc/thread-self/ns/net")
	before := threads(t) // threads of other tests stay where they are
	// A process that stays here, for ip(8) to send the other end of a veth to.
	anchor := exec.Command("sleep", "600")
	if err := anchor.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = anchor.Process.Kill()
		_ = anchor.Wait()
	}()
	fds, goroutines := inUse(t)

	var (
		home    sync.Mutex // held while this thread is in another namespace, or while threads are listed
		stop    = make(chan struct{})
		done    = make(chan struct{})
		scraped atomic.Int64
	)
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, n := range s.Scan(context.Background()).Namespaces {
				if n.TCP.Outcome == Failed || n.TCP.Outcome == Deadline {
					t.Errorf("%s: %q: %v", n.Name, n.TCP.Outcome, n.TCP.Err)
				}
			}
			scraped.Add(1)
			home.Lock()
			for task, inode := range threads(t) {
				if was, ok := before[task]; inode != own && (!ok || inode != was) {
					t.Errorf("thread %s is in %s, want %s", task, inode, own)
				}
			}
			home.Unlock()
		}
	}()

	start := time.Now()
	for i := 0; i < namespaces || scraped.Load() < scrapes; i++ {
		path := filepath.Join(dir, fmt.Sprintf("ns%d", i))
		veth := fmt.Sprintf("v%d", i)
		home.Lock()
		netnstest.Mount(t, path, func() {
			netnstest.IP(t, fmt.Sprintf("link add in type veth peer name %s netns %d", veth, anchor.Process.Pid))
		})
		home.Unlock()
		if err := exec.Command("ip", "link", "show", veth).Run(); err != nil {
			t.Fatalf("%s did not arrive: %v", veth, err)
		}
		netnstest.Unmount(t, path)
		removed := time.Now()
		for exec.Command("ip", "link", "show", veth).Run() == nil {
			if time.Since(removed) > 30*time.Second {
				t.Errorf("%s still exists 30 s after its namespace was removed", veth)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(time.Until(start.Add(time.Duration(i+1) * 50 * time.Millisecond)))
	}
	close(stop)
	<-done
	if log.Len() != 0 {
		t.Errorf("log: %s", &log)
	}
	checkInUse(t, fds+1, goroutines+1)
	// The runtime starts more threads for long system calls, and keeps them.
	if n := len(threads(t)); n > len(before)+20 {
		t.Errorf("%d threads, %d before", n, len(before))
	}
}

// threads returns the inode of the namespace of each thread of this process.
func threads(t *testing.T) map[string]string {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Error(err)
	}
	inodes := map[string]string{}
	for _, task := range tasks {
		link, err := os.Readlink(filepath.Join("/proc/self/task", task.Name(), "ns/net"))
		if err == nil { // else the thread has just ended
			inodes[task.Name()] = strings.Trim(link, "net:[]")
		}
	}
	return inodes
}

func TestNewLabel(t *testing.T) {
	tests := []struct {
		mount  string
		cookie uint64
		want   string
	}{
		{"web", 7, "web"},
		{"web", 8, "netns-8"}, // in another directory
		{"", 9, "netns-9"},
		{"", 0, ""},
		{"self", 10, "netns-10"},
		{"netns-9", 11, "netns-11"},
		{"a\xffb", 12, "a\uFFFDb"},
		{"a\xfeb", 13, "netns-13"},
	}
	taken := map[string]bool{"self": true}
	for _, tt := range tests {
		got := newLabel(tt.mount, tt.cookie, taken)
		if got != tt.want {
			t.Errorf("%q, cookie %d: got %q, want %q", tt.mount, tt.cookie, got, tt.want)
		}
		taken[got] = true
	}
}

package collector

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/sockdiagtest"
	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/sockdiag"
)

// surveyor is a collector for the namespaces mounted in a folder.
func surveyor(scope Scope, folder string) *Collector {
	c := newTestCollector()
	c.cfg.Scope, c.cfg.NamespaceFolders = scope, []string{folder}
	return c
}

// byName returns surveys by their label.
func byName(surveys []Survey) map[string]Survey {
	m := map[string]Survey{}
	for _, s := range surveys {
		m[s.NetNS] = s
	}
	return m
}

// TestSurveyOracle has 50 namespaces, each with settings and load of its own, and compares
// what is said of each with what its kernel grants.
func TestSurveyOracle(t *testing.T) {
	folder := t.TempDir()
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
		ns := namespace{path: filepath.Join(folder, fmt.Sprintf("ns%02d", i)), client: clients[i%len(clients)]}
		netnstest.Mount(t, ns.path, func() {
			low := 20000 + 500*i
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("%d %d", low, low+19+2*i))
			netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", fmt.Sprintf("%d-%d", low+5, low+5+i%7))
			netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", strconv.Itoa(i%3))
			setReuseDelay(t, time.Minute)
			ns.client.Hold(t, 2+i%5) // more than 1% of what the widest has
			if i%2 == 0 && ns.client.Bind != netnstest.BindFirst {
				listener := netnstest.Listen(t, "[::]:80", false)
				netnstest.TimeWait(t, ns.client.Client, listener, 4)
				if i%4 == 0 {
					setReuseDelay(t, time.Millisecond)
				}
			}
		})
		namespaces = append(namespaces, ns)
	}
	time.Sleep(50 * time.Millisecond)

	surveys := byName(surveyor(ScopeNamed, folder).Survey())
	if len(surveys) != n+1 {
		t.Errorf("%d surveys, want %d and our own", len(surveys), n)
	}
	for _, ns := range namespaces {
		s := surveys[filepath.Base(ns.path)]
		if s.Outcome != Collected {
			t.Errorf("%s: outcome %q: %v", ns.path, s.Outcome, s.Err)
			continue
		}
		want, wantErr := freeTo(s.Report, ns.client.source, ns.client.Destination), unix.EADDRNOTAVAIL
		if ns.client.Bind == netnstest.BindFirst {
			src := sourceOf(t, s.Report, ns.client.source)
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

// TestSurveyIdle does not say what was not looked at.
func TestSurveyIdle(t *testing.T) {
	folder := t.TempDir()
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	for name, connections := range map[string]int{"none": 0, "few": 9, "enough": 10} {
		netnstest.Mount(t, filepath.Join(folder, name), func() {
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "30000 30999")
			netnstest.Listen(t, "0.0.0.0:30500", false) // one socket, one port less
			if connections == 0 {
				netnstest.Sysctl(t, "ipv4/ip_local_port_range", "31000 31999")
				return
			}
			c.Hold(t, connections-1)
		})
	}
	netnstest.Mount(t, filepath.Join(folder, "empty"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	})

	collector := surveyor(ScopeNamed, folder)
	surveys := byName(collector.Survey())
	for name, want := range map[string]struct {
		outcome  Outcome
		partial  bool
		low      uint16
		capacity int
	}{
		"self":   {Collected, false, 32768, 28232},
		"empty":  {Idle, false, 40000, 100},
		"none":   {Idle, true, 31000, 1000},
		"few":    {Idle, true, 30000, 999},
		"enough": {Collected, false, 30000, 999},
	} {
		s := surveys[name]
		r := s.Report
		if s.Outcome != want.outcome || r.Partial != want.partial || r.Settings.PortRange.Low != want.low || r.CapacityPorts != want.capacity || s.Err != nil {
			t.Errorf("%s: got %q, partial %v, range from %d, capacity %d, %v, want %+v", name, s.Outcome, r.Partial, r.Settings.PortRange.Low, r.CapacityPorts, s.Err, want)
		}
	}

	text := string(exposition(t, collector))
	for series, want := range map[string]bool{
		`ephemeral_port_capacity_ports{netns="few"} 999`:                                                                true,
		`ephemeral_port_collect_success{netns="few"} 1`:                                                                 true,
		`ephemeral_port_max_utilization_ratio{netns="few"}`:                                                             false,
		`ephemeral_port_unreported_ports{netns="few"}`:                                                                  false,
		`ephemeral_port_collect_sockets{netns="few"}`:                                                                   false,
		`ephemeral_port_max_utilization_ratio{netns="empty"} 0`:                                                         true,
		`ephemeral_port_namespaces{outcome="idle"} 3`:                                                                   true,
		`ephemeral_port_namespaces{outcome="collected"} 2`:                                                              true,
		`ephemeral_port_namespaces{outcome="failed"} 0`:                                                                 true,
		`ephemeral_port_namespaces{outcome="deadline"} 0`:                                                               true,
		`command="",container_id="",inode="` + inodeOf(t, filepath.Join(folder, "few")) + `",netns="few",pod_uid=""} 1`: true,
	} {
		if strings.Contains(text, series) != want {
			t.Errorf("%s: there %v, want %v", series, !want, want)
		}
	}
}

// inodeOf is the inode of what is mounted at a path.
func inodeOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return strconv.FormatUint(st.Ino, 10)
}

// TestSurveyFolder finds namespaces among what else a folder can have in it, whatever they
// are called.
func TestSurveyFolder(t *testing.T) {
	folder := t.TempDir()
	odd := []string{"new\nline", "quote\"{}", strings.Repeat("x", 255), "invalid\xff", "invalid\xfe", "self", "netns-1"}
	for _, name := range odd {
		netnstest.Mount(t, filepath.Join(folder, name), nil)
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
		if err := make(filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}

	c := surveyor(ScopeNamed, folder)
	var log bytes.Buffer
	c.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	surveys := c.Survey()
	names := byName(surveys)
	if len(surveys) != len(odd)+1 || len(names) != len(surveys) {
		t.Errorf("%d surveys, %d names, want %d of both: %+v", len(surveys), len(names), len(odd)+1, surveys)
	}
	for _, want := range []string{"new\nline", "quote\"{}", strings.Repeat("x", 255), "invalid\uFFFD"} {
		if names[want].Outcome != Idle {
			t.Errorf("%q: outcome %q", want, names[want].Outcome)
		}
	}
	if log.Len() != 0 {
		t.Errorf("log: %s", &log)
	}
	exposition(t, c) // valid, and no series twice

	c.cfg.NamespaceFolders = []string{filepath.Join(folder, "nonexistent")}
	if surveys := c.Survey(); len(surveys) != 1 || log.Len() != 0 {
		t.Errorf("folder that does not exist: %+v, log %s", surveys, &log)
	}
}

// TestSurveyProcesses finds the namespace of a process, says whose it is, and does not
// take another for it that gets its inode.
func TestSurveyProcesses(t *testing.T) {
	c := surveyor(ScopeAll, t.TempDir())
	labels := map[string]bool{}
	inodes := map[uint64]int{}
	for range 20 {
		cmd := exec.Command("sleep", "60")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, s := range c.Survey() {
			if s.namespace.PID == cmd.Process.Pid {
				found++
				if labels[s.NetNS] || !strings.HasPrefix(s.NetNS, cookiePrefix) || s.Owner.Command != "sleep" || s.Outcome != Idle {
					t.Errorf("got %+v, want a label of its own for a sleep that is idle", s)
				}
				labels[s.NetNS] = true
				inodes[s.Inode]++
			}
		}
		if found != 1 {
			t.Errorf("the process was found %d times", found)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		time.Sleep(20 * time.Millisecond) // for the kernel to free the namespace
	}
	if len(inodes) == 20 {
		t.Log("the kernel gave no inode twice: nothing was proved about it")
	}
}

// TestSurveyNames stay with a namespace for its life: one that shares the name of its mount
// with another does not get it when that is removed.
func TestSurveyNames(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	path := filepath.Join(first, "blue")
	netnstest.Mount(t, path, nil)
	netnstest.Mount(t, filepath.Join(second, "blue"), nil)
	c := surveyor(ScopeNamed, first)
	c.cfg.NamespaceFolders = []string{first, second}
	labels := func() map[uint64]string {
		m := map[uint64]string{}
		for _, s := range c.Survey()[1:] {
			m[s.cookie] = s.NetNS
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
	// A new one with that name may have it.
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

// TestSurveyReplaced does not take the namespace that it looked at for another one that
// got its inode before it was read.
func TestSurveyReplaced(t *testing.T) {
	folder := t.TempDir()
	netnstest.Mount(t, filepath.Join(folder, "ns"), nil)
	c := surveyor(ScopeNamed, folder)
	found, err := c.find()
	if err != nil || len(found) != 1 {
		t.Fatalf("found %v, %v", found, err)
	}
	s := Survey{namespace: found[0]}
	deadline := time.Now().Add(time.Minute)
	if err := c.look(&s, deadline); err != nil || s.cookie == 0 {
		t.Fatalf("look: %+v, %v", s, err)
	}
	if err := c.read(&s, deadline); err != nil {
		t.Errorf("read: %v", err)
	}
	s.cookie++
	if err := c.read(&s, deadline); !errors.Is(err, netns.ErrGone) {
		t.Errorf("read with another cookie: got %v, want %v", err, netns.ErrGone)
	}
}

// TestSurveyFailure of one namespace is logged once and does not affect the others, and no
// namespace can take all of the time.
func TestSurveyFailure(t *testing.T) {
	folder := t.TempDir()
	inodes := map[string]string{}
	for _, name := range []string{"broken", "well", "zslow"} {
		path := filepath.Join(folder, name)
		netnstest.Mount(t, path, func() {
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
			n := 10
			if name == "zslow" {
				n = 50 // and so the first
			}
			clientTo("198.51.100.1", "198.51.100.7:80").Hold(t, n)
		})
		inodes[inodeOf(t, path)] = name
	}
	c := surveyor(ScopeNamed, folder)
	c.cfg.Timeout = time.Second
	var log bytes.Buffer
	c.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	c.dial = func() (*sockdiag.Conn, error) {
		switch inodes[inodeOf(t, "/proc/thread-self/ns/net")] {
		case "broken":
			return nil, unix.EPERM
		case "zslow":
			conn, err := sockdiagtest.Dial(func(sockdiagtest.Request) [][]byte { return nil })
			if err != nil {
				return nil, err
			}
			return sockdiag.NewConn(conn)
		}
		return sockdiag.Dial()
	}
	want := map[string]Outcome{"self": Collected, "broken": Failed, "zslow": Deadline, "well": Collected}
	for range 3 {
		got := map[string]Outcome{}
		surveys := c.Survey()
		for _, s := range surveys {
			got[s.NetNS] = s.Outcome
		}
		if surveys[1].NetNS != "zslow" {
			t.Errorf("%s was read first, want the busiest", surveys[1].NetNS)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("outcomes (-want +got):\n%s", diff)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "netns=broken") || !strings.Contains(got, "not permitted") {
		t.Errorf("log: got %q, want one line about broken", got)
	}
	text := string(exposition(t, c))
	for _, series := range []string{
		`ephemeral_port_collect_success{netns="broken"} 0`, `ephemeral_port_collect_success{netns="zslow"} 0`,
		`ephemeral_port_namespaces{outcome="deadline"} 1`, `ephemeral_port_namespaces{outcome="failed"} 1`,
	} {
		if !strings.Contains(text, series) {
			t.Errorf("no %s", series)
		}
	}
	if strings.Contains(text, `ephemeral_port_capacity_ports{netns="broken"}`) {
		t.Error("numbers of a namespace that failed")
	}

	c.cfg.Timeout = time.Nanosecond
	for _, s := range c.Survey() {
		if s.Outcome != Deadline {
			t.Errorf("%s: outcome %q in no time, want %q", s.NetNS, s.Outcome, Deadline)
		}
	}
}

// TestSurveyChurn makes and removes namespaces, twenty a second for a minute, while
// another goroutine scrapes.
func TestSurveyChurn(t *testing.T) {
	folder := t.TempDir()
	c := surveyor(ScopeNamed, folder)
	var log bytes.Buffer
	c.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	own := inodeOf(t, "/proc/thread-self/ns/net")
	before := threads(t) // those of other tests are where they were left
	// A process that stays here, for ip(8) to send the other end of a veth to.
	anchor := exec.Command("sleep", "120")
	if err := anchor.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = anchor.Process.Kill()
		_ = anchor.Wait()
	}()
	fds, goroutines := inUse(t)

	var (
		home sync.Mutex // held by whoever is in another namespace, or looks who is
		stop = make(chan struct{})
		done = make(chan int)
	)
	go func() {
		scrapes := 0
		for {
			select {
			case <-stop:
				done <- scrapes
				return
			default:
			}
			for _, s := range c.Survey() {
				if s.Outcome == Failed || s.Outcome == Deadline {
					t.Errorf("%s: %q: %v", s.NetNS, s.Outcome, s.Err)
				}
			}
			scrapes++
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
	for i := 0; time.Since(start) < time.Minute; i++ {
		path := filepath.Join(folder, fmt.Sprintf("ns%d", i))
		veth := fmt.Sprintf("v%d", i)
		home.Lock()
		netnstest.Mount(t, path, func() {
			netnstest.IP(t, fmt.Sprintf("link add in type veth peer name %s netns %d", veth, anchor.Process.Pid))
		})
		home.Unlock()
		if err := exec.Command("ip", "link", "show", veth).Run(); err != nil {
			t.Fatalf("%s is not here: %v", veth, err)
		}
		netnstest.Unmount(t, path)
		removed := time.Now()
		for exec.Command("ip", "link", "show", veth).Run() == nil {
			if time.Since(removed) > time.Second {
				t.Errorf("%s is there a second after its namespace was removed", veth)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(time.Until(start.Add(time.Duration(i+1) * 50 * time.Millisecond)))
	}
	close(stop)
	if scrapes := <-done; scrapes < 100 {
		t.Errorf("%d scrapes only", scrapes)
	}
	if log.Len() != 0 {
		t.Errorf("log: %s", &log)
	}
	time.Sleep(100 * time.Millisecond)
	// The runtime starts threads for system calls that last, and keeps them.
	if n := len(threads(t)); n > len(before)+10 {
		t.Errorf("%d threads, %d before", n, len(before))
	}
	if f, g := inUse(t); f > fds+1 || g > goroutines+1 {
		t.Errorf("before: %d descriptors, %d goroutines; after: %d, %d", fds, goroutines, f, g)
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
		if err == nil { // else it has just ended
			inodes[task.Name()] = strings.Trim(link, "net:[]")
		}
	}
	return inodes
}

func TestLabel(t *testing.T) {
	tests := []struct {
		mount  string
		cookie uint64
		want   string
	}{
		{"web", 7, "web"},
		{"web", 8, "netns-8"}, // of another folder
		{"", 9, "netns-9"},
		{"", 0, ""},
		{"self", 10, "netns-10"},
		{"netns-9", 11, "netns-11"},
		{"a\xffb", 12, "a\uFFFDb"},
		{"a\xfeb", 13, "netns-13"},
	}
	taken := map[string]bool{"self": true}
	for _, tt := range tests {
		got := label(tt.mount, tt.cookie, taken)
		if got != tt.want {
			t.Errorf("%q, cookie %d: got %q, want %q", tt.mount, tt.cookie, got, tt.want)
		}
		taken[got] = true
	}
}

// TestShareLimit keeps the heaviest of all namespaces, and loses no port.
func TestShareLimit(t *testing.T) {
	report := func(held ...int) Survey {
		var s Survey
		for i, h := range held {
			address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)
			s.Report.Destinations = append(s.Report.Destinations, Destination{Address: address, Held: h})
			s.Report.Sources = append(s.Report.Sources, Source{Address: address.Addr(), Ports: h})
		}
		return s
	}
	tests := []struct {
		most int
		want string
	}{
		{0, "[] 0/0 6 149 | [] 0/0 3 75"},
		{1, "[100] 100/1 5 49 | [] 0/0 3 75"},
		{3, "[100 20] 120/2 4 29 | [50] 50/1 2 25"},
		{4, "[100 20 20] 140/3 3 9 | [50] 50/1 2 25"},
		{5, "[100 20 20] 140/3 3 9 | [50 20] 70/2 1 5"},
		{100, "[100 20 20 5 3 1] 149/6 0 0 | [50 20 5] 75/3 0 0"},
	}
	for _, tt := range tests {
		surveys := []Survey{report(100, 20, 20, 5, 3, 1), report(50, 20, 5)}
		shareLimit(surveys, tt.most)
		var got []string
		for _, s := range surveys {
			held, sum := []int{}, 0
			for _, d := range s.Report.Destinations {
				held = append(held, d.Held)
			}
			for _, src := range s.Report.Sources {
				sum += src.Ports
			}
			got = append(got, fmt.Sprintf("%v %d/%d %d %d", held, sum, len(s.Report.Sources), s.Report.UnreportedDestinations, s.Report.UnreportedPorts))
		}
		if got := strings.Join(got, " | "); got != tt.want {
			t.Errorf("limit %d: got %s, want %s", tt.most, got, tt.want)
		}
	}
}

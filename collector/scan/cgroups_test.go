//go:build linux

package scan

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// A cgroupTree is a control group of a test, in a cgroup2 mount of its own.
type cgroupTree struct {
	mount string
	root  string // path in the mount
}

// newCgroupTree makes a control group for a test. It skips the test for users who may not.
func newCgroupTree(t *testing.T) cgroupTree {
	t.Helper()
	tree := cgroupTree{netnstest.Cgroups(t), fmt.Sprintf("/scan_%d.slice", os.Getpid())} // a kubelet may be in it
	netnstest.NewCgroup(t, tree.mount+tree.root)
	return tree
}

// hold opens connections in a control group, which it makes if it is not there.
func (c cgroupTree) hold(t *testing.T, path, destination string, n int) (pid int) {
	t.Helper()
	dir := c.mount + c.root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		dir = filepath.Join(dir, part)
		if _, err := os.Stat(dir); err != nil {
			netnstest.NewCgroup(t, dir)
		}
	}
	client := netnstest.Client{Destination: netip.MustParseAddrPort(destination)}
	return netnstest.HoldInCgroup(t, dir, netnstest.Holding{Client: client, Count: n})
}

// owners returns the owners of each destination, as text. The control group of the test is "~".
func (c cgroupTree) owners(snapshot Snapshot, n Namespace) map[string]string {
	all := map[string]string{}
	for _, d := range n.TCP.Report.Destinations {
		var owners []string
		for _, o := range snapshot.Resolve(d.Owners) {
			text := fmt.Sprintf("%s %d", strings.Replace(o.Path, c.root, "~", 1), o.Ports)
			if o.Workload != (cgroup.Workload{}) {
				text += fmt.Sprintf(" pod %.8s container %.8s", o.PodUID, o.ContainerID)
			}
			owners = append(owners, text)
		}
		all[d.Address.String()] = strings.Join(owners, ", ")
	}
	return all
}

// TestOwnersKernel checks the owners of destinations against real control groups: of services, of
// nested containers, of a user that passes for a pod, of processes that have moved, and removed ones. Ports in TIME_WAIT have none.
func TestOwnersKernel(t *testing.T) {
	netnstest.New(t)
	tree := newCgroupTree(t)
	const (
		podUID    = "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b"
		container = "9b1c7a0de4f35a6b8c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b"
	)
	kubepods := "/kubepods.slice/kubepods-pod" + strings.ReplaceAll(podUID, "-", "_") + ".slice/cri-containerd-" + container + ".scope"
	forged := "/user@1000.service/pod" + podUID + "/" + container
	tree.hold(t, "/haproxy.service", "192.0.2.1:443", 30)
	tree.hold(t, "/nginx.service", "192.0.2.1:443", 20)
	tree.hold(t, "/batch", "192.0.2.1:443", 5)
	tree.hold(t, "/few", "192.0.2.1:443", 1)
	tree.hold(t, kubepods, "192.0.2.2:443", 4)
	tree.hold(t, kubepods+"/docker/"+strings.Repeat("0", 64), "192.0.2.2:443", 2)
	tree.hold(t, forged, "192.0.2.4:443", 1)
	moved := tree.hold(t, "/moved", "192.0.2.3:443", 3)
	netnstest.MoveToCgroup(t, tree.mount+tree.root+"/few", moved)
	listener := netnstest.Listen(t, "198.51.100.7:80", false)
	netnstest.TimeWait(t, netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.7:80")}, listener, 3)

	cfg := testConfig()
	cfg.Cgroup = tree.mount
	s := newScanner(t, cfg)
	check := func(want map[string]string) {
		t.Helper()
		snapshot := s.Scan(t.Context())
		got := tree.owners(snapshot, snapshot.Namespaces[0])
		if diff := cmp.Diff(want, got); diff != "" || snapshot.CgroupsErr != nil {
			t.Errorf("%v, owners (-want +got):\n%s", snapshot.CgroupsErr, diff)
		}
	}
	want := map[string]string{
		"192.0.2.1:443":   "~/haproxy.service 30, ~/nginx.service 20, ~/batch 5",
		"192.0.2.2:443":   fmt.Sprintf("~%s 4 pod 3f8e1c2a container 9b1c7a0d, ~%s/docker/%064d 2 pod 3f8e1c2a container 9b1c7a0d", kubepods, kubepods, 0),
		"192.0.2.3:443":   "~/moved 3",
		"192.0.2.4:443":   "~" + forged + " 1",
		"198.51.100.7:80": "",
	}
	check(want)
	exact := cfg
	exact.Exact = true
	s = newScanner(t, exact)
	if netnstest.TellsSocketCgroup(t) {
		check(want)
	} else {
		check(map[string]string{"192.0.2.1:443": "", "192.0.2.2:443": "", "192.0.2.3:443": "", "192.0.2.4:443": "", "198.51.100.7:80": ""})
	}
	s = newScanner(t, cfg)
	check(want)

	// A removed control group keeps its path where that is known.
	netnstest.RemoveCgroup(t, tree.mount+tree.root+"/moved")
	check(want)
	s = newScanner(t, cfg)
	id := uint64(0)
	for _, d := range s.Scan(t.Context()).Namespaces[0].TCP.Report.Destinations {
		if d.Address.String() == "192.0.2.3:443" {
			id = d.Owners[0].Cgroup
		}
	}
	want["192.0.2.3:443"] = fmt.Sprintf("cgroup-%d 3", id)
	check(want)
}

// TestOwnersRoot has a process in no control group but the root: the kernel gives its sockets the number of the
// root, also on a host that has control groups of version 1 only, and the path is "/" with a mount and without.
func TestOwnersRoot(t *testing.T) {
	netnstest.New(t)
	mount := netnstest.Cgroups(t)
	var st unix.Stat_t
	if err := unix.Stat(mount, &st); err != nil {
		t.Fatal(err)
	}
	client := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:443")}
	netnstest.HoldInCgroup(t, mount, netnstest.Holding{Client: client, Count: 3})
	cfg := testConfig()
	cfg.Cgroup = mount
	s := newScanner(t, cfg)
	snapshot := s.Scan(t.Context())
	owners := snapshot.Namespaces[0].TCP.Report.Destinations[0].Owners
	if len(owners) != 1 || owners[0] != (pool.Owner{Cgroup: st.Ino, Ports: 3}) {
		t.Fatalf("owners %+v, want the root, %d", owners, st.Ino)
	}
	if got := snapshot.Resolve(owners); got[0].Path != "/" {
		t.Errorf("path %q", got[0].Path)
	}
	if whole, err := s.cgroups.Complete(); !whole || err != nil {
		return // in a cgroup namespace, the mount has another root
	}
	var unmounted *cgroup.Groups
	if found, err := unmounted.Find([]uint64{owners[0].Cgroup}, time.Time{}); err != nil || found[owners[0].Cgroup].Path != "/" {
		t.Errorf("without a mount: %v, %v", found, err)
	}
}

// TestOwnersNamespaces checks the owners of connections in another network namespace.
func TestOwnersNamespaces(t *testing.T) {
	tree := newCgroupTree(t)
	dir := t.TempDir()
	netnstest.Mount(t, filepath.Join(dir, "blue"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 41000")
		tree.hold(t, "/blue.service", "192.0.2.1:443", 40)
	})
	cfg := testConfig()
	cfg.Cgroup, cfg.Scope, cfg.NamespaceDirs = tree.mount, ScopeNamed, []string{dir}
	snapshot := newScanner(t, cfg).Scan(t.Context())
	for _, n := range snapshot.Namespaces {
		if n.Name != "blue" {
			continue
		}
		if diff := cmp.Diff(map[string]string{"192.0.2.1:443": "~/blue.service 40"}, tree.owners(snapshot, n)); diff != "" {
			t.Errorf("owners (-want +got):\n%s", diff)
		}
		return
	}
	t.Errorf("no namespace blue: %+v", snapshot.Namespaces)
}

// TestOwnersChurn checks that a tenant with a new control group for each connection and scan gets as
// many owners as others, and that what is remembered does not grow.
func TestOwnersChurn(t *testing.T) {
	netnstest.New(t)
	tree := newCgroupTree(t)
	tree.hold(t, "/victim.service", "192.0.2.1:443", 10)
	cfg := testConfig()
	cfg.Cgroup = tree.mount
	s := newScanner(t, cfg)
	for scan := range 3 {
		for i := range 5 {
			tree.hold(t, fmt.Sprintf("/tenant/%d-%d\xff\"", scan, i), "192.0.2.1:443", 1)
		}
		snapshot := s.Scan(t.Context())
		owners := tree.owners(snapshot, snapshot.Namespaces[0])["192.0.2.1:443"]
		if !strings.HasPrefix(owners, "~/victim.service 10, ~/tenant/") || strings.Count(owners, ", ") != 2 || len(snapshot.Cgroups) != 3 {
			t.Errorf("owners %q, %d control groups", owners, len(snapshot.Cgroups))
		}
	}
}

// TestOwnersHosts checks what is reported and logged by how a host mounts its control groups.
func TestOwnersHosts(t *testing.T) {
	netnstest.New(t)
	tree := newCgroupTree(t)
	tree.hold(t, "/a/b", "192.0.2.1:443", 3)
	tree.hold(t, "/c", "192.0.2.1:443", 2)
	var st unix.Stat_t
	if err := unix.Stat(tree.mount+tree.root+"/c", &st); err != nil {
		t.Fatal(err)
	}
	unified := t.TempDir()
	if err := os.Mkdir(filepath.Join(unified, "unified"), 0o755); err != nil {
		t.Fatal(err)
	}
	part := t.TempDir()
	for from, to := range map[string]string{tree.mount: filepath.Join(unified, "unified"), tree.mount + tree.root + "/a": part} {
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(to, unix.MNT_DETACH) })
	}
	sys := t.TempDir() // as ip netns exec mounts it over /sys
	if err := unix.Mount("sysfs", sys, "sysfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(sys, unix.MNT_DETACH) })
	isRoot := func() bool {
		var st unix.Stat_t
		return unix.Stat(tree.mount, &st) == nil && st.Ino == 1
	}
	partLog := "Owners of destinations have paths only within the exporter's own control group"
	for _, tt := range []struct {
		name, path, owners, log string
	}{
		{"version 2", tree.mount, "~/a/b 3, ~/c 2", ""},
		{"hybrid", unified, "~/a/b 3, ~/c 2", ""},
		{"version 1", t.TempDir(), "", "Owners of destinations are not reported"},
		{"hidden", filepath.Join(sys, "fs/cgroup"), "", "ip netns exec hides the control groups"},
		{"no such directory", filepath.Join(t.TempDir(), "nowhere"), "", "no cgroup2 file system at"},
		{"a part", part, fmt.Sprintf("/b 3, cgroup-%d 2", st.Ino), partLog},
	} {
		var log bytes.Buffer
		cfg := testConfig()
		cfg.Cgroup, cfg.Logger = tt.path, slog.New(slog.NewTextHandler(&log, nil))
		s := newScanner(t, cfg)
		for range 3 {
			snapshot := s.Scan(t.Context())
			if got := tree.owners(snapshot, snapshot.Namespaces[0])["192.0.2.1:443"]; got != tt.owners {
				t.Errorf("%s: owners %q, want %q", tt.name, got, tt.owners)
			}
		}
		// The whole test may run in a cgroup namespace.
		lines := 0
		if tt.log != "" || !isRoot() {
			lines = 1
		}
		if n := strings.Count(log.String(), "\n"); n != lines || isRoot() && !strings.Contains(log.String(), tt.log) {
			t.Errorf("%s: log %q, want %q once", tt.name, &log, tt.log)
		}
	}
}

// asUser calls f without the right to read everything, with which the kernel tells the paths of control groups.
func asUser(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(65534); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setfsuid(0) }()
	f()
}

// TestOwnersSearchFails checks that a search that is not complete is logged once, and that the ports
// of what it did not find are still there.
func TestOwnersSearchFails(t *testing.T) {
	netnstest.New(t)
	tree := newCgroupTree(t)
	tree.hold(t, "/a", "192.0.2.1:443", 3)
	var log bytes.Buffer
	cfg := testConfig()
	cfg.Cgroup, cfg.Logger = tree.mount, slog.New(slog.NewTextHandler(&log, nil))
	s := newScanner(t, cfg)
	log.Reset()
	self := s.Scan(t.Context()).Namespaces[0]
	s.cgroups, _ = cgroup.Open(tree.mount) // knows nothing
	for range 3 {
		snapshot := Snapshot{Namespaces: []Namespace{self}}
		asUser(t, func() { s.findCgroups(&snapshot, time.Now().Add(-time.Second)) })
		s.logFailures(snapshot, nil)
		want := fmt.Sprintf("cgroup-%d 3", self.TCP.Report.Destinations[0].Owners[0].Cgroup)
		if got := tree.owners(snapshot, self)["192.0.2.1:443"]; got != want {
			t.Errorf("owners %q, want %q", got, want)
		}
	}
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "numbers instead of paths") {
		t.Errorf("log %q, want one warning", &log)
	}
}

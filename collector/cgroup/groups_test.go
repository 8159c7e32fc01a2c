//go:build linux

package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// tempGroups returns Groups of a directory with these directories, and their inodes.
func tempGroups(t *testing.T, dirs ...string) (*Groups, map[string]uint64) {
	t.Helper()
	g := newGroups(t.TempDir())
	ids := map[string]uint64{}
	for _, dir := range append(dirs, "/") {
		path := filepath.Join(g.mount, dir)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		ids[dir] = st.Ino
	}
	return g, ids
}

// find returns the paths that Find finds.
func find(t *testing.T, g *Groups, ids ...uint64) []string {
	t.Helper()
	found, err := g.Find(ids, time.Now().Add(time.Minute))
	if err != nil {
		t.Error(err)
	}
	var paths []string
	for _, id := range ids {
		paths = append(paths, found[id].Path)
	}
	return paths
}

// TestFind finds control groups on all levels, of nested containers, and with any names.
func TestFind(t *testing.T) {
	pod := "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(testPod, "-", "_") + ".slice"
	container := pod + "/cri-containerd-" + testContainer + ".scope"
	inner := container + "/docker/" + strings.Repeat("0", 64) // in a container
	long := "long/" + strings.Repeat("x", 250) + "/x" + strings.Repeat("é", 126) + "/docker-" + testContainer + ".scope"
	g, ids := tempGroups(t, "system.slice/haproxy.service", "bad\xff", pod, container, inner, long)
	cut := "/long/" + strings.Repeat("x", 250) + "/x" + strings.Repeat("é", 126)
	tests := []struct {
		dir  string
		want Group
	}{
		{"/", Group{Path: "/"}},
		{"system.slice/haproxy.service", Group{Path: "/system.slice/haproxy.service"}},
		{"bad\xff", Group{Path: "/bad\uFFFD"}},
		{pod, Group{Path: "/" + pod, Workload: Workload{PodUID: testPod}}},
		{container, Group{Path: "/" + container, Workload: Workload{PodUID: testPod, ContainerID: testContainer}}},
		{inner, Group{Path: "/" + inner, Workload: Workload{PodUID: testPod, ContainerID: testContainer}}},
		{long, Group{Path: cut[:maxPath-4] + "…"}},
	}
	wanted := []uint64{1 << 40}
	for _, tt := range tests {
		wanted = append(wanted, ids[tt.dir])
	}
	got, err := g.Find(wanted, time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	want := map[uint64]Group{1 << 40: {Path: "cgroup-1099511627776"}}
	for _, tt := range tests {
		want[ids[tt.dir]] = tt.want
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("control groups (-want +got):\n%s", diff)
	}
}

// TestFindKnown checks that a path is remembered when the control group is removed, and that there is
// no second search for one that is not there. Without the mount, a search fails.
func TestFindKnown(t *testing.T) {
	g, ids := tempGroups(t, "a/b", "c")
	want := []string{"/a/b", "cgroup-1"}
	if diff := cmp.Diff(want, find(t, g, ids["a/b"], 1)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := os.RemoveAll(g.mount); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, find(t, g, ids["a/b"], 1)); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	deadline := time.Now().Add(time.Minute)
	got, err := g.Find([]uint64{ids["a/b"], ids["c"]}, deadline)
	if !errors.Is(err, os.ErrNotExist) || got[ids["a/b"]].Path != "/a/b" || got[ids["c"]] != unnamed(ids["c"]) {
		t.Errorf("without the mount: got %v, %v", got, err)
	}
}

// TestFindDeadline checks that a search ends at the deadline, and that the next one goes on.
func TestFindDeadline(t *testing.T) {
	g, ids := tempGroups(t, "a/b")
	id := ids["a/b"]
	got, err := g.Find([]uint64{id}, time.Now().Add(-time.Second))
	if !errors.Is(err, os.ErrDeadlineExceeded) || got[id] != unnamed(id) {
		t.Errorf("got %v, %v", got, err)
	}
	if got := find(t, g, id); got[0] != "/a/b" {
		t.Errorf("then: got %q", got)
	}
}

// flood makes a directory with very many in it.
func flood(t *testing.T, dir string, n int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSearchShares has tenants with more directories than a search may look at: beside each other, inside of each other, with
// long names, and none of them a leaf. They hide nothing that is not inside of theirs, as deep as it may be.
func TestSearchShares(t *testing.T) {
	const most = 1000
	deep := "kubepods/burstable/pod/container/init.scope/service"
	g, ids := tempGroups(t, "user/1000/user@", "user/1000/session", "user/1001/user@/app/service", "kubepods/burstable/evil/container/", deep)
	for i := range 20 {
		flood(t, filepath.Join(g.mount, "kubepods/burstable", fmt.Sprint("pod", i)), 1)
	}
	flood(t, filepath.Join(g.mount, "user/1000/user@"), 300)
	for i := range 300 {
		flood(t, filepath.Join(g.mount, "kubepods/burstable/evil/container", fmt.Sprint(strings.Repeat("x", 100), i)), 0)
	}
	long := filepath.Join(g.mount, "user/1000/session", strings.Repeat("l/", 100), strings.Repeat("x", 250))
	for i := range 20 {
		flood(t, filepath.Join(long, fmt.Sprint(strings.Repeat("y", 200), i)), 1)
	}
	wanted := map[uint64]bool{ids[deep]: true, ids["user/1001/user@/app/service"]: true, 1 << 40: true}
	found := map[string]bool{}
	s := search{mount: g.mount, wanted: wanted, found: func(_ uint64, path string) { found[path] = true }}
	cost, err := s.run(most, most+1000, time.Now().Add(time.Minute))
	if !errors.Is(err, errSpent) || cost < most || cost > most+500 {
		t.Errorf("cost %d, %v", cost, err)
	}
	if diff := cmp.Diff(map[string]bool{"/" + deep: true, "/user/1001/user@/app/service": true}, found); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
}

// TestFindMissed checks when a control group is searched again that a search did not reach: after a time that doubles, up to an hour.
func TestFindMissed(t *testing.T) {
	g, ids := tempGroups(t, "pods/a", "tenant")
	g.most = 500
	flood(t, filepath.Join(g.mount, "tenant"), g.most)
	find := func(id uint64) (path string, spent int, err error) {
		g.credit, g.credited = maxCredit, time.Now()
		found, err := g.Find([]uint64{id}, time.Now().Add(time.Minute))
		return found[id].Path, maxCredit - g.credit, err
	}
	const gone = 1 << 40
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		wait *= time.Minute
		if path, spent, err := find(gone); path != unnamed(gone).Path || spent < g.most || !errors.Is(err, errSpent) || g.missed[gone].wait != wait {
			t.Errorf("path %q for %d, %v, next search in %v, want %v", path, spent, err, g.missed[gone].wait, wait)
		}
		if path, spent, err := find(gone); path != unnamed(gone).Path || spent != 0 || !errors.Is(err, errSpent) {
			t.Errorf("before its time: path %q for %d, %v", path, spent, err)
		}
		m := g.missed[gone]
		m.next = time.Now()
		g.missed[gone] = m
	}
	if path, spent, err := find(ids["pods/a"]); path != "/pods/a" || spent >= g.most || err != nil {
		t.Errorf("beside the tenant: path %q for %d, %v", path, spent, err)
	}
	if err := os.RemoveAll(filepath.Join(g.mount, "tenant")); err != nil {
		t.Fatal(err)
	}
	if path, _, err := find(gone); path != unnamed(gone).Path || err != nil || len(g.missed) != 0 {
		t.Errorf("after a search of all: path %q, %v, missed %v", path, err, g.missed)
	}
}

// TestFindCredit checks that the next calls go on with a search that costs more than searches may: a tenant who has ever new
// control groups cannot make them cost more. What is new since its beginning is found at the latest by the search after it.
func TestFindCredit(t *testing.T) {
	g, _ := tempGroups(t, "pods", "tenant")
	flood(t, filepath.Join(g.mount, "tenant"), 600)
	find := func(id uint64, credit int, path string, want error) {
		t.Helper()
		g.credit, g.credited = credit, time.Now()
		found, err := g.Find([]uint64{id}, time.Now().Add(time.Minute))
		if got := found[id].Path; got != path || !errors.Is(err, want) {
			t.Errorf("path %q, %v, want %q, %v", got, err, path, want)
		}
		if spent := credit - g.credit; spent > credit+200 {
			t.Errorf("cost %d of %d", spent, credit)
		}
	}
	const gone = 1 << 40
	find(gone, 200, unnamed(gone).Path, errPaused) // reads all of pods
	dir := filepath.Join(g.mount, "pods/new")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	id, err := stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	find(id, 0, unnamed(id).Path, errPaused)
	find(id, maxCredit, unnamed(id).Path, errPaused) // to the end
	find(gone, 0, unnamed(gone).Path, nil)           // which is remembered
	find(id, maxCredit, "/pods/new", nil)
	for i := range uint64(2) {
		find(gone+1+i, 50, unnamed(gone+1+i).Path, errPaused)
	}
	find(gone+100, maxCredit, unnamed(gone+100).Path, errPaused)
	if _, ok := g.known[gone+1]; !ok || g.searching != nil {
		t.Error("the search did not come to its end")
	}
}

// TestFindHostile checks that a control group that cannot be read does not hide others: one with a
// path that is longer than PATH_MAX, and one that only its owner may read.
func TestFindHostile(t *testing.T) {
	g, ids := tempGroups(t, "mine/a/b", "other/a/b")
	fd, err := syscall.Open(filepath.Join(g.mount, "mine"), syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("n", 200)
	for range 30 {
		if err := syscall.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := syscall.Openat(fd, name, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		syscall.Close(fd)
		fd = next
	}
	syscall.Close(fd)
	chmod := func(dir string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(filepath.Join(g.mount, dir), mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod("..", 0o755)
	chmod("mine/a", 0)
	t.Cleanup(func() { chmod("mine/a", 0o755) })
	asUser(t)
	if got := find(t, g, ids["other/a/b"], 1); got[0] != "/other/a/b" || got[1] != "cgroup-1" {
		t.Errorf("got %q", got)
	}
}

// TestFindHidden checks that a mount that cannot be read is an error, and not one without control groups.
func TestFindHidden(t *testing.T) {
	g, ids := tempGroups(t, "a")
	for dir, mode := range map[string]os.FileMode{filepath.Dir(g.mount): 0o755, g.mount: 0} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Chmod(g.mount, 0o755) })
	asUser(t)
	if _, err := g.Find([]uint64{ids["a"]}, time.Now().Add(time.Minute)); !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v", err)
	}
}

// asUser takes the right to read everything from the thread of the test, if it is root.
func asUser(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := syscall.Setfsuid(65534); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Setfsuid(0) })
}

// TestReadEntries reads a directory in parts, each with a descriptor of its own, and all at once.
func TestReadEntries(t *testing.T) {
	t.Run("any file system", func(t *testing.T) { testReadEntries(t, t.TempDir()) })
	t.Run("control groups", func(t *testing.T) {
		dir := filepath.Join(netnstest.Cgroups(t), fmt.Sprint("entries-", os.Getpid()))
		netnstest.NewCgroup(t, dir)
		testReadEntries(t, dir)
	})
}

func testReadEntries(t *testing.T, dir string) {
	want := map[string]uint64{}
	for i := range 300 {
		name := fmt.Sprint(i, strings.Repeat("n", i%250))
		want[name] = netnstest.NewCgroup(t, filepath.Join(dir, name))
	}
	for _, size := range []int{maxEntry, 1000, 4096, 1 << 20} {
		got := map[string]uint64{}
		reads, offset := 0, int64(0)
		for last := false; !last && reads < 1000; reads++ {
			fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				t.Fatal(err)
			}
			var entries []entry
			entries, offset, last, err = readEntries(fd, offset, make([]byte, size))
			unix.Close(fd)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if _, ok := got[e.name]; ok {
					t.Errorf("%q again", e.name)
				}
				got[e.name] = e.inode
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || size == 1<<20 && reads != 1 {
			t.Errorf("%d reads with %d bytes (-want +got):\n%s", reads, size, diff)
		}
	}
}

// TestParseEntries parses what no kernel should write, and a row that the next one follows.
func TestParseEntries(t *testing.T) {
	row := func(inode uint64, offset int64, length uint16, kind byte, name string) []byte {
		b := binary.NativeEndian.AppendUint64(nil, inode)
		b = binary.NativeEndian.AppendUint64(b, uint64(offset))
		b = append(binary.NativeEndian.AppendUint16(b, length), kind)
		return append(b, name...)
	}
	for name, b := range map[string][]byte{
		"short": row(7, 8, 24, unix.DT_DIR, ""), "length 0": row(7, 8, 0, unix.DT_DIR, "name\x00"), "too long": row(7, 8, 25, unix.DT_DIR, "name\x00"),
	} {
		if got, _, err := parseEntries(b, nil); !errors.Is(err, errDirent) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	b := append(row(7, 8, 24, unix.DT_DIR, "name\x00"), row(9, 10, 24, unix.DT_REG, "file\x00")...)
	got, offset, err := parseEntries(append(b, row(11, 12, 21, unix.DT_DIR, "..")...), nil)
	if err != nil || offset != 12 || !slices.Equal(got, []entry{{7, "name"}}) {
		t.Errorf("%+v, offset %d, %v", got, offset, err)
	}
}

// TestFindForgets has a tenant with ever new control groups: searches find that some have no path, miss some, and have the rest still before
// them, while nothing is left that searches may cost. What is remembered is bounded. What each scan asks for stays known, also after
// calls that ask for nothing.
func TestFindForgets(t *testing.T) {
	var dirs []string
	for i := range 200 {
		dirs = append(dirs, fmt.Sprint("pods/", i))
	}
	g, ids := tempGroups(t, dirs...)
	var pods []uint64
	for _, dir := range dirs {
		pods = append(pods, ids[dir])
	}
	find(t, g, pods...)
	const perScan = 1000
	for i := range uint64(20) {
		var gone []uint64
		for j := range uint64(perScan) {
			gone = append(gone, 1<<40+i<<20+j)
		}
		g.credit, g.credited = 0, time.Now().Add(time.Hour) // earns nothing before
		for j, id := range gone {
			switch j % 3 {
			case 0:
				g.known[id] = unnamed(id)
			case 1:
				g.missed[id] = miss{}
			}
		}
		if _, err := g.Find(gone, time.Now().Add(time.Minute)); !errors.Is(err, errPaused) {
			t.Fatal(err)
		}
		for range 5 {
			if _, err := g.Find(nil, time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		if got := find(t, g, pods...); got[0] != "/pods/0" || got[199] != "/pods/199" {
			t.Fatalf("after %d scans: %q, …, %q", i+1, got[0], got[199])
		}
		if n := max(len(g.known)+len(g.missed), len(g.searching.wanted)); n > maxKnown+4*perScan {
			t.Fatalf("after %d scans: %d control groups are known, %d missed, %d searched", i+1, len(g.known), len(g.missed), len(g.searching.wanted))
		}
	}
}

// TestOpenVersion1 checks the error on a host without cgroup2, and names where it was looked for.
func TestOpenVersion1(t *testing.T) {
	dir := t.TempDir()
	for _, hierarchy := range []string{"cpu", "memory", "systemd", "unified"} {
		if err := os.Mkdir(filepath.Join(dir, hierarchy), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Open(dir)
	if !errors.Is(err, ErrNotMounted) || !strings.Contains(err.Error(), dir+" or "+dir+"/unified: the host has control groups of version 1 only") {
		t.Errorf("got %v", err)
	}
}

// TestFindVersion1 checks that the root has the same path without a mount as in one.
func TestFindVersion1(t *testing.T) {
	var g *Groups
	if diff := cmp.Diff([]string{"/", "cgroup-2"}, find(t, g, rootInode, 2)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if found, err := g.Find(nil, time.Time{}); err != nil || len(found) != 0 {
		t.Errorf("got %v, %v for none", found, err)
	}
}

// FuzzNewGroup makes control groups with any paths: tenants choose the names of their own.
func FuzzNewGroup(f *testing.F) {
	f.Add("/kubepods.slice/cri-containerd-" + testContainer + ".scope")
	f.Add("/" + strings.Repeat("\xff", maxPath))
	f.Fuzz(func(t *testing.T, path string) {
		g := newGroup(path)
		if len(g.Path) > maxPath || !utf8.ValidString(g.Path) {
			t.Errorf("path %q", g.Path)
		}
		if !utf8.ValidString(g.PodUID + g.ContainerID) {
			t.Errorf("workload %+v", g.Workload)
		}
	})
}

//go:build linux

package cgroup

import (
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
)

// newGroups returns Groups of a directory with these directories, and their inodes.
func newGroups(t *testing.T, dirs ...string) (*Groups, map[string]uint64) {
	t.Helper()
	g := &Groups{mount: t.TempDir(), known: map[uint64]Group{}}
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
	g, ids := newGroups(t, "system.slice/haproxy.service", "bad\xff", pod, container, inner, long)
	cut := "/long/" + strings.Repeat("x", 250) + "/x" + strings.Repeat("é", 126)
	tests := []struct {
		dir  string
		want Group
	}{
		{"/", Group{Path: "/"}},
		{"system.slice/haproxy.service", Group{Path: "/system.slice/haproxy.service"}},
		{"bad\xff", Group{Path: "/bad\uFFFD"}},
		{pod, Group{Path: "/" + pod, Workload: Workload{PodUID: testPod}}},
		{container, Group{Path: "/" + container, Workload: Workload{testPod, testContainer}}},
		{inner, Group{Path: "/" + inner, Workload: Workload{testPod, testContainer}}},
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
	g, ids := newGroups(t, "a/b", "c")
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
	g, ids := newGroups(t, "a/b")
	id := ids["a/b"]
	got, err := g.Find([]uint64{id}, time.Now().Add(-time.Second))
	if !errors.Is(err, os.ErrDeadlineExceeded) || got[id] != unnamed(id) {
		t.Errorf("got %v, %v", got, err)
	}
	if got := find(t, g, id); got[0] != "/a/b" {
		t.Errorf("then: got %q", got)
	}
}

// TestFindMany checks that a search is bounded: a control group with very many in it hides nothing
// that is not deeper.
func TestFindMany(t *testing.T) {
	g, ids := newGroups(t, "tenant/x", "other/service", "other/pod/container/init")
	for i := range maxSearched {
		if err := os.Mkdir(filepath.Join(g.mount, "tenant/x", fmt.Sprint(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	service, deep := ids["other/service"], ids["other/pod/container/init"]
	got, err := g.Find([]uint64{service, deep}, time.Now().Add(time.Minute))
	if err == nil || !strings.Contains(err.Error(), "more than 10000 control groups") ||
		got[service].Path != "/other/service" || got[deep] != unnamed(deep) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := os.RemoveAll(filepath.Join(g.mount, "tenant")); err != nil {
		t.Fatal(err)
	}
	if got := find(t, g, deep); got[0] != "/other/pod/container/init" {
		t.Errorf("without them: got %q", got)
	}
}

// TestFindHostile checks that a control group that cannot be read does not hide others: one with a
// path that is longer than PATH_MAX, and one that only its owner may read.
func TestFindHostile(t *testing.T) {
	g, ids := newGroups(t, "mine/a/b", "other/a/b")
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
	g, ids := newGroups(t, "a")
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

// TestFindForgets checks that what is remembered is bounded, and that it has the last control groups.
func TestFindForgets(t *testing.T) {
	g, ids := newGroups(t, "a/b")
	for i := range uint64(10) {
		gone := slices.Repeat([]uint64{ids["a/b"]}, 1001)
		for j := range uint64(1000) {
			gone[j] = 1<<40 + i<<20 + j
		}
		find(t, g, gone...)
		if len(g.known) > maxKnown+len(gone) || g.known[ids["a/b"]].Path != "/a/b" {
			t.Errorf("%d control groups are known", len(g.known))
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

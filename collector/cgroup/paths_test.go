//go:build linux

package cgroup

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestWalk checks which directories are found, by their inodes.
func TestWalk(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"system.slice/haproxy.service/deeper", "user.slice", "bad\xff"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	want := map[uint64]string{}
	for dir, path := range map[string]string{
		"system.slice": "/system.slice", "system.slice/haproxy.service": "/system.slice/haproxy.service",
		"user.slice": "/user.slice", "bad\xff": "/bad\uFFFD",
	} {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(root, dir), &st); err != nil {
			t.Fatal(err)
		}
		want[st.Ino] = path
	}

	got := map[uint64]string{}
	collect := func(id uint64, path string) bool {
		got[id] = path
		return true
	}
	if !walk(root, "", 2, collect) {
		t.Error("stopped early")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("control groups (-want +got):\n%s", diff)
	}

	n := 0
	if walk(root, "", 2, func(uint64, string) bool { n++; return n < 2 }) || n != 2 {
		t.Errorf("went on after %d control groups", n)
	}
	if !walk(filepath.Join(root, "nowhere"), "", 2, collect) {
		t.Error("a directory that is gone ends the walk")
	}
}

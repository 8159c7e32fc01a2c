//go:build linux

package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestAskKernel asks the kernel for the paths of real control groups, in a mount of all and one of a part. Nothing is searched.
// A user, whom the kernel does not tell, finds the same by a search.
func TestAskKernel(t *testing.T) {
	mount := netnstest.Cgroups(t)
	part := t.TempDir()
	root := fmt.Sprint("/ask-", os.Getpid())
	ids := map[string]uint64{}
	add := func(path string) string {
		ids[path] = netnstest.NewCgroup(t, filepath.Join(mount, root, path))
		return path
	}
	addAll := func(path string) string {
		for i, c := range path {
			if i > 0 && c == '/' {
				add(path[:i])
			}
		}
		return add(path)
	}
	top := add("/")
	inPart := add(add("/part") + "/a.service")
	odd := add("/bad\xff (deleted)")
	imitation := addAll(part) // outside of the mount of a part, at the path of that mount
	long := ""
	for range 14 {
		long = add(long + "/" + strings.Repeat("x", 250))
	}
	gone := add("/gone")
	netnstest.RemoveCgroup(t, mount+root+gone)
	tooLong := newDeepCgroup(t, mount+root+long)

	if err := unix.Mount(mount+root+"/part", part, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(part, unix.MNT_DETACH) })
	check := func(name, mount string, asked bool, want map[uint64]string) {
		t.Helper()
		g, err := Open(mount)
		if err != nil {
			t.Fatal(err)
		}
		var wanted []uint64
		for id := range want {
			wanted = append(wanted, id)
		}
		found, err := g.Find(wanted, time.Now().Add(time.Minute))
		if err != nil {
			t.Error(err)
		}
		got := map[uint64]string{}
		for id, group := range found {
			got[id] = group.Path
		}
		if diff := cmp.Diff(want, got); diff != "" || (g.credit == maxCredit) != asked {
			t.Errorf("%s: credit %d (-want +got):\n%s", name, g.credit, diff)
		}
	}
	all := map[uint64]string{
		ids[top]: root, ids[inPart]: root + inPart, ids[odd]: root + "/bad\uFFFD (deleted)", ids[imitation]: root + imitation,
		ids[long]: (root + long)[:maxPath-len("…")] + "…", ids[gone]: unnamed(ids[gone]).Path, tooLong: unnamed(tooLong).Path,
	}
	ofPart := map[uint64]string{}
	for id := range all {
		ofPart[id] = unnamed(id).Path
	}
	ofPart[ids["/part"]], ofPart[ids[inPart]] = "/", "/a.service"
	check("all", mount, true, all)
	check("part", part, true, ofPart)
	asUser(t)
	check("user, all", mount, false, all)
	check("user, part", part, false, ofPart)
}

// newDeepCgroup makes a control group in another one, with a path that is longer than PATH_MAX.
func newDeepCgroup(t *testing.T, dir string) (id uint64) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("y", 250)
	for range 5 {
		parent := fd
		if err := unix.Mkdirat(parent, name, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil {
				t.Error(err)
			}
			unix.Close(parent)
		})
		if fd, err = unix.Openat(parent, name, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			t.Fatal(err)
		}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

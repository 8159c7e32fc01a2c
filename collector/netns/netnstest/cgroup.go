//go:build linux

package netnstest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Cgroups mounts the cgroup2 file system until the test ends and returns its mount point, which every
// user may read. Like HostRoot, it skips the test for other users.
func Cgroups(tb testing.TB) (mount string) {
	tb.Helper()
	HostRoot(tb)
	mount = tb.TempDir()
	if err := os.Chmod(filepath.Dir(mount), 0o755); err != nil { // of all directories of the test
		tb.Fatal(err)
	}
	if err := unix.Mount("cgroup2", mount, "cgroup2", 0, ""); err != nil {
		tb.Fatalf("mount cgroup2: %v", err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			tb.Errorf("unmount cgroup2: %v", err)
		}
	})
	return mount
}

// NewCgroup makes a control group, which is removed when the test ends. It returns its number.
func NewCgroup(tb testing.TB, dir string) (id uint64) {
	tb.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { RemoveCgroup(tb, dir) })
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		tb.Fatal(err)
	}
	return st.Ino
}

// RemoveCgroup removes a control group. Its processes have ended or are about to. It does nothing if
// the control group is already removed.
func RemoveCgroup(tb testing.TB, dir string) {
	tb.Helper()
	err := unix.Rmdir(dir)
	for range 1000 {
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
		err = unix.Rmdir(dir)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		tb.Errorf("remove control group %s: %v", dir, err)
	}
}

// MoveToCgroup moves a process to a control group.
func MoveToCgroup(tb testing.TB, dir string, pid int) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		tb.Fatal(err)
	}
}

// InCgroup has a process start in a control group. The caller closes the file after that.
func InCgroup(dir string) (*syscall.SysProcAttr, *os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("netnstest: %w", err)
	}
	return &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}, f, nil
}

// HoldInCgroup is like HoldInChild with a child that starts in a control group. It returns the
// child's process ID.
func HoldInCgroup(tb testing.TB, dir string, holdings ...Holding) (pid int) {
	tb.Helper()
	attr, f, err := InCgroup(dir)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	return hold(tb, attr, holdings)
}

// TellsSocketCgroup reports whether the kernel has a socket's control group where programs of BPF can read it
// (sock_cgroup_data.cgroup): since Linux 5.15, with CONFIG_SOCK_CGROUP_DATA.
func TellsSocketCgroup(tb testing.TB) bool {
	tb.Helper()
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		tb.Fatal(err)
	}
	var data *btf.Struct
	err = spec.TypeByName("sock_cgroup_data", &data)
	return err == nil && slices.ContainsFunc(data.Members, func(m btf.Member) bool { return m.Name == "cgroup" })
}

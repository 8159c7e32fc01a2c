//go:build linux

package cgroup

import (
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// mounts are the usual mount points of the cgroup2 file system, see cgroups(7): where it is the only
// hierarchy, and beside those of version 1.
var mounts = [...]string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// superMagic is CGROUP2_SUPER_MAGIC of include/uapi/linux/magic.h.
const superMagic = 0x63677270

// Paths returns the control groups one and two levels below the root: services of systemd, the
// slices of users, and with some runtimes containers. The key is the kernel's number, which is the
// inode of the directory. A path begins with a slash. There are none if no cgroup2 file system is
// mounted at its usual place, and in a cgroup namespace only those of that.
func Paths() iter.Seq2[uint64, string] {
	return func(yield func(uint64, string) bool) {
		for _, mount := range mounts {
			var st syscall.Statfs_t
			if err := syscall.Statfs(mount, &st); err == nil && st.Type == superMagic {
				walk(mount, "", 2, yield)
				return
			}
		}
	}
}

// walk yields the directories below a directory of a mount, down to a number of levels. It reports
// whether to go on. It passes over those that disappear meanwhile.
func walk(mount, dir string, levels int, yield func(uint64, string) bool) bool {
	if levels == 0 {
		return true
	}
	entries, err := os.ReadDir(filepath.Join(mount, dir))
	if err != nil {
		return true
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		path := dir + "/" + e.Name()
		if ok && !yield(st.Ino, strings.ToValidUTF8(path, "\uFFFD")) {
			return false
		}
		if !walk(mount, path, levels-1, yield) {
			return false
		}
	}
	return true
}

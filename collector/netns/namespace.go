//go:build linux

package netns

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Namespace is a network namespace that was there a moment ago.
type Namespace struct {
	// Inode is its number on nsfs, unique among the namespaces that exist at one time.
	// The kernel gives it to another namespace at once.
	Inode uint64

	// Name is the base name of its mount, as it is: any bytes but "/" and NUL. Empty
	// without a mount.
	Name string

	// PID is a process in it, the one with the lowest number; 0 without any.
	PID int

	paths  []string // to open it by, whichever is still there
	device uint64   // of nsfs, 0 where that is not known
}

// maxPaths is how many processes of a namespace are remembered: one can end any time.
const maxPaths = 4

// Self returns the inode of the calling thread's namespace. proc is the mount point of
// procfs.
func Self(proc string) (uint64, error) {
	path := selfPath(proc)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("netns: stat %s: %w", path, err)
	}
	return st.Ino, nil
}

// OwnPID returns the number that this process has in procfs at proc, which can be that of
// another PID namespace; 0 if it has none there.
func OwnPID(proc string) int {
	link, err := os.Readlink(filepath.Join(proc, "self"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(link)
	if err != nil {
		return 0
	}
	return pid
}

func selfPath(proc string) string { return filepath.Join(proc, "thread-self/ns/net") }

// Mounted returns the namespaces that are mounted in a directory, such as /run/netns, in
// the order of their names. What is no network namespace is left out: plain files, which
// CNI plugins leave behind, dangling links, other directories.
func Mounted(dir string) ([]Namespace, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("netns: list mounts: %w", err)
	}
	namespaces := make([]Namespace, 0, len(entries))
	var nsfs uint64 // its device
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		inode, device, ok := stat(path, nsfs)
		if !ok {
			continue
		}
		nsfs = device
		namespaces = append(namespaces, Namespace{Inode: inode, Name: e.Name(), paths: []string{path}, device: device})
	}
	return namespaces, nil
}

// stat returns the inode and the device of what may be a network namespace. It opens
// nothing: a directory can have a FIFO or a device in it. nsfs is the device of a
// namespace, or 0: all are on the same.
func stat(path string, nsfs uint64) (inode, device uint64, ok bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, false
	}
	if st.Dev != nsfs {
		var fs unix.Statfs_t
		if err := unix.Statfs(path, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
			return 0, 0, false
		}
	}
	return st.Ino, st.Dev, true
}

// OfProcesses returns the namespaces of all processes that procfs at proc shows. It needs
// CAP_SYS_PTRACE for those of other users. Processes that end meanwhile are left out. The
// error counts those that the kernel does not let us examine; the others are returned all
// the same.
func OfProcesses(proc string) ([]Namespace, error) {
	d, err := os.Open(proc)
	if err != nil {
		return nil, fmt.Errorf("netns: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("netns: list processes: %w", err)
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)

	var (
		namespaces []Namespace
		forbidden  int
		first      error
	)
	at := map[uint64]int{}
	for _, pid := range pids {
		path, link, err := processLink(filepath.Join(proc, strconv.Itoa(pid)))
		if errors.Is(err, fs.ErrPermission) {
			forbidden++
			first = cmp.Or(first, err)
			continue
		}
		var inode uint64
		if _, scanErr := fmt.Sscanf(link, "net:[%d]", &inode); err != nil || scanErr != nil {
			continue // it ended
		}
		i, ok := at[inode]
		if !ok {
			at[inode] = len(namespaces)
			namespaces = append(namespaces, Namespace{Inode: inode, PID: pid, paths: []string{path}})
		} else if len(namespaces[i].paths) < maxPaths {
			namespaces[i].paths = append(namespaces[i].paths, path)
		}
	}
	if forbidden > 0 {
		return namespaces, fmt.Errorf("netns: %d processes may not be examined, the first: %w", forbidden, first)
	}
	return namespaces, nil
}

// processLink reads the link to the namespace of a process, or of another of its threads if
// the first one ended.
func processLink(process string) (path, link string, err error) {
	path = filepath.Join(process, "ns/net")
	link, err = os.Readlink(path)
	if err == nil || errors.Is(err, fs.ErrPermission) {
		return path, link, err
	}
	threads, globErr := filepath.Glob(filepath.Join(process, "task/*/ns/net"))
	if globErr != nil {
		return path, link, err
	}
	for _, path := range threads {
		if link, err := os.Readlink(path); err == nil {
			return path, link, nil
		}
	}
	return path, link, err
}

// Merge returns each namespace once. One that is there several times has its name from
// the first that has one, and all its processes.
func Merge(lists ...[]Namespace) []Namespace {
	var merged []Namespace
	at := map[uint64]int{}
	for _, ns := range slices.Concat(lists...) {
		i, ok := at[ns.Inode]
		if !ok {
			at[ns.Inode] = len(merged)
			merged = append(merged, ns)
			continue
		}
		m := &merged[i]
		m.Name = cmp.Or(m.Name, ns.Name)
		m.PID = cmp.Or(m.PID, ns.PID)
		m.paths = append(m.paths, ns.paths...)
	}
	return merged
}

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

	// PIDs are processes in it, at most maxPIDs, those with the lowest numbers.
	PIDs []int

	paths  []string // to open it by, whichever is still there
	device uint64   // of nsfs, 0 where that is not known
}

// maxPIDs bounds the processes of a namespace that are remembered: any can end at any time.
const maxPIDs = 16

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
// CAP_SYS_PTRACE for those of other users. Processes that end meanwhile are left out. A
// ForbiddenError counts those that the kernel does not let us examine; the others are
// returned all the same.
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
		forbidden  ForbiddenError
	)
	at := map[uint64]int{}
	for _, pid := range pids {
		path, link, err := processLink(filepath.Join(proc, strconv.Itoa(pid)))
		if errors.Is(err, fs.ErrPermission) {
			forbidden.Forbidden++
			forbidden.First = cmp.Or(forbidden.First, err)
			continue
		}
		var inode uint64
		if _, scanErr := fmt.Sscanf(link, "net:[%d]", &inode); err != nil || scanErr != nil {
			continue // it ended
		}
		forbidden.Examined++
		i, ok := at[inode]
		if !ok {
			i = len(namespaces)
			at[inode] = i
			namespaces = append(namespaces, Namespace{Inode: inode})
		}
		if ns := &namespaces[i]; len(ns.PIDs) < maxPIDs {
			ns.PIDs = append(ns.PIDs, pid)
			ns.paths = append(ns.paths, path)
		}
	}
	if forbidden.Forbidden > 0 {
		return namespaces, &forbidden
	}
	return namespaces, nil
}

// A ForbiddenError tells of processes that the kernel does not let us examine.
type ForbiddenError struct {
	Forbidden, Examined int
	First               error // of those forbidden
}

// Error implements error.
func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("netns: %d of %d processes may not be examined, the first: %v", e.Forbidden, e.Forbidden+e.Examined, e.First)
}

// Unwrap returns First.
func (e *ForbiddenError) Unwrap() error { return e.First }

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
// the first that has one, and all processes.
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
		m.PIDs = append(m.PIDs, ns.PIDs...)
		m.paths = append(m.paths, ns.paths...)
	}
	return merged
}

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

// A Namespace is a network namespace that existed when it was listed.
type Namespace struct {
	// Inode is its number on nsfs. No two namespaces have the same at one time. The kernel
	// may give the inode of a removed namespace to a new one at once.
	Inode uint64

	// Name is the base name of its mount, with any bytes except "/" and NUL. It is empty
	// for a namespace without a mount.
	Name string

	// PIDs are processes in it, in ascending order: those with the lowest numbers, at most
	// maxPIDs.
	PIDs []int

	paths  []string // to open it; some may be gone
	device uint64   // of nsfs, 0 if it is not known
}

// Path returns a path by which the namespace can be entered, as this process sees it: its mount, or
// that of a process. It is empty if none is known.
func (ns Namespace) Path() string {
	if len(ns.paths) == 0 {
		return ""
	}
	return ns.paths[0]
}

// maxPIDs bounds the processes that are listed for a namespace. One is not enough: any can end
// at any time.
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

// Mounted returns the namespaces that are mounted in a directory like /run/netns, sorted by
// name. It ignores other entries: the plain files that CNI plugins leave behind, dangling
// links, directories. With an error it returns the namespaces that it could examine.
func Mounted(dir string) ([]Namespace, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("netns: list mounts: %w", err)
	}
	namespaces := make([]Namespace, 0, len(entries))
	var nsfs uint64 // its device
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		inode, device, ok, statErr := stat(path, nsfs)
		if statErr != nil {
			err = cmp.Or(err, fmt.Errorf("netns: stat %s: %w", path, statErr))
		}
		if !ok {
			continue
		}
		nsfs = device
		namespaces = append(namespaces, Namespace{Inode: inode, Name: e.Name(), paths: []string{path}, device: device})
	}
	return namespaces, err
}

// stat returns the inode and the device of a path, and whether it is a namespace of any kind. It
// opens nothing, because the path may be a FIFO or a device. nsfs is the device of another
// namespace, or 0: all namespaces are on the same device. The error means that it may be one.
func stat(path string, nsfs uint64) (inode, device uint64, ok bool, err error) {
	var st unix.Stat_t
	err = unix.Stat(path, &st)
	if err == nil && st.Dev != nsfs {
		var fs unix.Statfs_t
		err = unix.Statfs(path, &fs)
		if err == nil && fs.Type != unix.NSFS_MAGIC {
			return 0, 0, false, nil
		}
	}
	switch {
	case err == nil:
		return st.Ino, st.Dev, true, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return 0, 0, false, nil // it is a link that leads nowhere
	default:
		return 0, 0, false, err
	}
}

// OfProcesses returns the namespaces of all processes in procfs, which is mounted at proc. It
// needs CAP_SYS_PTRACE for processes of other users. It ignores processes that end meanwhile.
// The error is a ForbiddenError if the kernel does not let us examine some processes, or another one if it could not
// tell of some; the namespaces of the others are returned with it.
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
		failed     error
	)
	at := map[uint64]int{}
	for _, pid := range pids {
		path, link, err := processLink(filepath.Join(proc, strconv.Itoa(pid)))
		if errors.Is(err, fs.ErrPermission) {
			forbidden.Forbidden++
			forbidden.First = cmp.Or(forbidden.First, err)
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // it did not end
			failed = cmp.Or(failed, fmt.Errorf("netns: examine a process: %w", err))
		}
		var inode uint64
		if _, scanErr := fmt.Sscanf(link, "net:[%d]", &inode); err != nil || scanErr != nil {
			continue
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
	return namespaces, failed
}

// A ForbiddenError counts the processes that the kernel does not let us examine.
type ForbiddenError struct {
	Forbidden, Examined int
	First               error // for the first of the forbidden processes
}

// Error implements error.
func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("netns: %d of %d processes may not be examined, the first: %v", e.Forbidden, e.Forbidden+e.Examined, e.First)
}

// Unwrap returns First.
func (e *ForbiddenError) Unwrap() error { return e.First }

// processLink returns the path and the content of the link to the namespace of a process. If the
// first thread has ended, it returns those of another thread.
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

// Merge returns each namespace once. For one that is listed several times, it returns the first
// name, and the processes of all entries.
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

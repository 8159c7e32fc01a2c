//go:build linux

package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrGone means that a namespace does not exist any more. That is normal.
var ErrGone = errors.New("network namespace is gone")

// Visit calls fn on a thread of its own, which the Visitor moves to other network namespaces.
// When fn returns, the thread returns to its first namespace. If that fails, the thread ends.
//
// Goroutines that fn starts are not in the namespace. proc is the mount point of procfs. The
// error is that of fn, or of the thread's return.
func Visit(proc string, fn func(*Visitor) error) error {
	result := make(chan error)
	go func() { result <- visit(proc, fn) }()
	return <-result
}

// visit runs in a goroutine of its own.
func visit(proc string, fn func(*Visitor) error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The runtime cannot end the first thread of a process: it would stay in a foreign
		// namespace. As long as this goroutine keeps it, the next one has another thread.
		defer runtime.UnlockOSThread()
		return Visit(proc, fn)
	}
	home, err := unix.Open(selfPath(proc), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("netns: open own namespace: %w", err)
	}
	defer unix.Close(home)

	err = fn(&Visitor{})
	if homeErr := unix.Setns(home, unix.CLONE_NEWNET); homeErr != nil {
		// The thread stays locked: the runtime ends it instead of giving it to other goroutines.
		return errors.Join(err, fmt.Errorf("netns: return to own namespace: %w", homeErr))
	}
	runtime.UnlockOSThread()
	return err
}

// Unshare calls fn on a thread of its own in a new network namespace, which has only the interface lo and
// ends when fn returns. It needs CAP_SYS_ADMIN. Goroutines that fn starts are not in the namespace.
func Unshare(fn func() error) error {
	result := make(chan error)
	go func() { result <- unshare(fn) }()
	return <-result
}

// unshare runs in a goroutine of its own. Its thread stays locked: the runtime ends it with the goroutine.
func unshare(fn func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread() // as in visit
		return Unshare(fn)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("netns: make a namespace: %w", os.NewSyscallError("unshare", err))
	}
	return fn()
}

// A Visitor moves its thread from one network namespace to the next.
type Visitor struct{}

// Enter moves the thread to a namespace. Files of /proc/sys/net and /proc/thread-self/net that
// it opens after that belong to that namespace, and so do sockets that it creates. The cookie is
// the kernel's number for the namespace (SO_NETNS_COOKIE, Linux 5.14; 0 before). Unlike the
// inode, it is never given to another namespace.
//
// If the namespace cannot be entered, the thread stays where it was. The error is then ErrGone
// or the kernel's refusal: setns(2) needs CAP_SYS_ADMIN in the user namespaces of both the
// caller and the network namespace.
func (v *Visitor) Enter(ns Namespace) (cookie uint64, err error) {
	fd, err := open(ns)
	if err != nil {
		return 0, err
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	// Nothing must keep the namespace alive once the thread has left it.
	unix.Close(fd)
	if errors.Is(err, unix.EINVAL) {
		return 0, ErrGone // it is no network namespace
	}
	if err != nil {
		return 0, fmt.Errorf("netns: enter: %w", os.NewSyscallError("setns", err))
	}
	return cookieOf(unix.AF_UNIX, 0)
}

// open opens a namespace by one of its paths.
func open(ns Namespace) (fd int, err error) {
	err = ErrGone
	for _, path := range ns.paths {
		fd, err = openPath(path, ns.Inode, ns.device)
		if !errors.Is(err, ErrGone) {
			break
		}
	}
	return fd, err
}

// openPath opens path. The error is ErrGone if path is not the namespace with that inode.
func openPath(path string, inode, device uint64) (fd int, err error) {
	// The path may be a FIFO by now: without O_NONBLOCK, open would wait.
	fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENXIO) {
		return -1, ErrGone
	}
	if errors.Is(err, unix.EACCES) && unix.Lstat(path, new(unix.Stat_t)) != nil {
		return -1, ErrGone // for a process that has just ended, the kernel says EACCES
	}
	if err != nil {
		return -1, fmt.Errorf("netns: open: %w", err)
	}
	if err := checkNamespace(fd, inode, device); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// checkNamespace returns ErrGone if a file is not the namespace with that inode. device is the device of
// nsfs, or 0 if it is not known.
func checkNamespace(fd int, inode, device uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("netns: examine: %w", os.NewSyscallError("fstat", err))
	}
	if st.Ino != inode {
		return ErrGone
	}
	if st.Dev == device {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("netns: examine: %w", os.NewSyscallError("fstatfs", err))
	}
	if fs.Type != unix.NSFS_MAGIC {
		return ErrGone
	}
	return nil
}

// Cookie returns the cookie of the calling thread's namespace, see Enter. It opens a socket of
// AF_NETLINK, which the process needs in any case; AF_UNIX may be forbidden.
func Cookie() (uint64, error) { return cookieOf(unix.AF_NETLINK, unix.NETLINK_SOCK_DIAG) }

// cookieOf returns the cookie of the thread's namespace, from a socket of that family.
func cookieOf(family, protocol int) (uint64, error) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return 0, fmt.Errorf("netns: open socket: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	unix.Close(fd)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return 0, fmt.Errorf("netns: get cookie: %w", err)
	}
	return cookie, nil
}

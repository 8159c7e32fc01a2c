//go:build linux

package netns

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrGone means that a namespace does not exist any more, which is normal.
var ErrGone = errors.New("network namespace is gone")

// Enter calls fn in a namespace, with the number that the kernel has for it as long as
// it runs: unlike the inode it is never given to another namespace (SO_NETNS_COOKIE,
// Linux 5.14; 0 before).
//
// Files of /proc/sys/net and /proc/thread-self/net that fn opens and sockets that it makes
// are of the namespace; it must not start goroutines for that. proc is the mount point of
// procfs.
//
// The error is that of fn, ErrGone, or the kernel's refusal: setns(2) needs CAP_SYS_ADMIN in
// the user namespaces of both the caller and the network namespace.
func Enter(proc string, ns Namespace, fn func(cookie uint64) error) error {
	result := make(chan error)
	go func() { result <- enter(proc, ns, fn) }()
	return <-result
}

// enter runs in a goroutine of its own. Its thread goes back to where it came from, or
// ends with the goroutine.
func enter(proc string, ns Namespace, fn func(cookie uint64) error) error {
	runtime.LockOSThread()
	home, err := unix.Open(selfPath(proc), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("netns: open own namespace: %w", err)
	}
	defer unix.Close(home)

	fd, err := open(ns)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	// Nothing must keep the namespace longer than the thread is in it.
	unix.Close(fd)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("netns: enter: %w", err)
	}

	err = call(fn)
	if homeErr := unix.Setns(home, unix.CLONE_NEWNET); homeErr != nil {
		// Still locked: the runtime ends the thread instead of giving it to others.
		return errors.Join(err, fmt.Errorf("netns: return: %w", homeErr))
	}
	runtime.UnlockOSThread()
	return err
}

// open opens a namespace by one of its paths.
func open(ns Namespace) (fd int, err error) {
	err = ErrGone
	for _, path := range ns.paths {
		fd, err = openPath(path, ns.Inode)
		if !errors.Is(err, ErrGone) {
			break
		}
	}
	return fd, err
}

// openPath opens a namespace, if it is the one that was found.
func openPath(path string, inode uint64) (fd int, err error) {
	// A name can be taken by a FIFO since.
	fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENXIO) {
		return -1, ErrGone
	}
	if err != nil {
		return -1, fmt.Errorf("netns: open: %w", err)
	}
	var (
		fs unix.Statfs_t
		st unix.Stat_t
	)
	same := unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.NSFS_MAGIC && unix.Fstat(fd, &st) == nil && st.Ino == inode
	if !same {
		unix.Close(fd)
		return -1, ErrGone
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		unix.Close(fd)
		return -1, ErrGone // never was a network namespace
	}
	return fd, nil
}

// call calls fn with the cookie of the thread's namespace.
func call(fn func(cookie uint64) error) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("netns: open socket: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	unix.Close(fd)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return fmt.Errorf("netns: get cookie: %w", err)
	}
	return fn(cookie)
}

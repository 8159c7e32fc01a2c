//go:build linux

package netnstest

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Mount creates a network namespace like New and mounts it at path, like "ip netns add". It
// calls inside, if not nil, in that namespace. The test itself stays in its own.
func Mount(tb testing.TB, path string, inside func()) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		tb.Fatal(err)
	}
	f.Close()
	tb.Cleanup(func() { Unmount(tb, path) })
	callInside(tb, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := setUp(); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}, inside)
}

// Unmount removes a namespace that Mount created, like "ip netns del". It does nothing if the
// namespace is already removed.
func Unmount(tb testing.TB, path string) {
	tb.Helper()
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		tb.Errorf("unmount %q: %v", path, err)
	}
	_ = os.Remove(path)
}

// In calls inside in the namespace that is mounted at path.
func In(tb testing.TB, path string, inside func()) {
	tb.Helper()
	callInside(tb, func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Setns(fd, unix.CLONE_NEWNET)
	}, inside)
}

// callInside calls enter, which moves the thread to another namespace, and then inside. After
// that it moves the thread back to the test's namespace.
func callInside(tb testing.TB, enter func() error, inside func()) {
	tb.Helper()
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() {
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			tb.Fatalf("return to the test's namespace: %v", err) // the thread stays locked
		}
		unix.Close(home)
		runtime.UnlockOSThread()
	}()
	if err := enter(); err != nil {
		tb.Fatalf("enter a namespace: %v", err)
	}
	if inside != nil {
		inside()
	}
}

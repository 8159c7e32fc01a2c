//go:build linux

package netnstest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// LockTraces waits until tests of other packages that have a program of BPF on a tracepoint or a function end: it sees the whole
// host, so one test would count what another does. Like HostRoot, it skips the test for other users.
func LockTraces(tb testing.TB) {
	tb.Helper()
	HostRoot(tb)
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "ephemeral_port_exporter-netnstest.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		tb.Fatalf("wait for other tests: %v", err)
	}
}

// Tracefs mounts tracefs at its usual mount point, which it returns.
func Tracefs(tb testing.TB) string {
	tb.Helper()
	const path = "/sys/kernel/tracing"
	// EBUSY: it is already mounted.
	if err := unix.Mount("tracefs", path, "tracefs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		tb.Fatalf("mount tracefs: %v", err)
	}
	return path
}

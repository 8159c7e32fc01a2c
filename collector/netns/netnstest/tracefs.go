//go:build linux

package netnstest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// tracefs is the usual mount point of tracefs.
const tracefs = "/sys/kernel/tracing"

// Tracefs mounts tracefs for the tests of the package. It waits until tests of other packages
// that need tracefs end: BPF programs see the whole host, so one test would count the failures of
// another. Like HostRoot, it skips the test for other users.
func Tracefs(tb testing.TB) {
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
	// EBUSY: it is already mounted.
	if err := unix.Mount("tracefs", tracefs, "tracefs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		tb.Fatalf("mount tracefs: %v", err)
	}
}

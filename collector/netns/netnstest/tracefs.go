//go:build linux

package netnstest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tracefs is the usual mount point of tracefs.
const tracefs = "/sys/kernel/tracing"

// Tracefs mounts tracefs for the tests of the package. It waits until tests of other packages
// that need tracefs end: BPF programs see the whole host, so one test would count the failures of
// another. Only root outside of user namespaces may mount tracefs and load BPF programs. For
// other users the test is skipped, except in CI.
func Tracefs(tb testing.TB) {
	tb.Helper()
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		tb.Fatal(err)
	}
	if all := strings.Fields(string(b)); os.Geteuid() != 0 || all[2] != "4294967295" {
		if os.Getenv("CI") == "" {
			tb.Skip("tracefs and BPF need root outside of user namespaces")
		}
		tb.Fatalf("uid %d, uid map %q: not root outside of user namespaces", os.Geteuid(), b)
	}
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

// Untracefs unmounts tracefs.
func Untracefs(tb testing.TB) {
	tb.Helper()
	if err := unix.Unmount(tracefs, 0); err != nil {
		tb.Fatalf("unmount tracefs: %v", err)
	}
}

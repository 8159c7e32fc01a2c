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

// tracefs is where tracefs belongs.
const tracefs = "/sys/kernel/tracing"

// Tracefs mounts tracefs for the tests of the package, and waits for tests of other packages that
// need it to end: BPF programs see the whole host, and what one test does would be in the counts of
// another. The kernel grants both to root outside of user namespaces only: else the test
// is skipped, but never under CI.
func Tracefs(tb testing.TB) {
	tb.Helper()
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		tb.Fatal(err)
	}
	if all := strings.Fields(string(b)); os.Geteuid() != 0 || all[2] != "4294967295" {
		if os.Getenv("CI") == "" {
			tb.Skip("tracefs and BPF are for root, outside of user namespaces")
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
	// EBUSY: it is there.
	if err := unix.Mount("tracefs", tracefs, "tracefs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		tb.Fatalf("mount tracefs: %v", err)
	}
}

// Untracefs unmounts it.
func Untracefs(tb testing.TB) {
	tb.Helper()
	if err := unix.Unmount(tracefs, 0); err != nil {
		tb.Fatalf("unmount tracefs: %v", err)
	}
}

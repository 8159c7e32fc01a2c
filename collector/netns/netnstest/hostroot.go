//go:build linux

package netnstest

import (
	"os"
	"strings"
	"testing"
)

// IsHostRoot reports whether the tests run as root outside of user namespaces. Only then may they
// mount tracefs and cgroup2, load BPF programs, and install packages.
func IsHostRoot() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	ids := strings.Fields(string(b))
	return err == nil && os.Geteuid() == 0 && len(ids) == 3 && ids[2] == "4294967295"
}

// HostRoot skips the test unless IsHostRoot. In CI that is an error.
func HostRoot(tb testing.TB) {
	tb.Helper()
	if IsHostRoot() {
		return
	}
	if os.Getenv("CI") == "" {
		tb.Skip("tracefs, BPF, control groups and packages need root outside of user namespaces")
	}
	tb.Fatalf("uid %d is not root outside of user namespaces", os.Geteuid())
}

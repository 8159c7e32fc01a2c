//go:build linux

package netnstest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// RaiseConntrackLimit sets net.netfilter.nf_conntrack_max of the host until the end of the test, if it is
// lower. It needs root of the host.
func RaiseConntrackLimit(tb testing.TB, limit int) {
	tb.Helper()
	HostRoot(tb)
	// Only the first network namespace of the host can set it. The process that started this one is there.
	outside := fmt.Sprintf("/proc/%d/ns/net", os.Getppid())
	set := func(value string) {
		In(tb, outside, func() { Sysctl(tb, "netfilter/nf_conntrack_max", value) })
	}
	before, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		tb.Fatal(err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(before))); err != nil || n >= limit {
		return
	}
	set(strconv.Itoa(limit))
	tb.Cleanup(func() { set(string(before)) })
}

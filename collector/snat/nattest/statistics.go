//go:build linux

package nattest

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// Statistics are counters of /proc/net/stat/nf_conntrack, summed over the CPUs.
type Statistics struct {
	InsertFailed, Drop, EarlyDrop int
}

// ReadStatistics reads the counters of the calling test's namespace.
func ReadStatistics(tb testing.TB) Statistics {
	tb.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
	if err != nil {
		tb.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	names := strings.Fields(lines[0])
	sum := map[string]int{}
	for _, line := range lines[1:] {
		for i, field := range strings.Fields(line) {
			n, err := strconv.ParseUint(field, 16, 32)
			if err != nil {
				tb.Fatalf("/proc/net/stat/nf_conntrack: %v", err)
			}
			sum[names[i]] += int(n)
		}
	}
	return Statistics{InsertFailed: sum["insert_failed"], Drop: sum["drop"], EarlyDrop: sum["early_drop"]}
}

// Flows returns the rows of the calling test's /proc/net/nf_conntrack that contain all of some strings.
func Flows(tb testing.TB, contain ...string) []string {
	tb.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
	if err != nil {
		tb.Fatal(err)
	}
	var rows []string
next:
	for row := range strings.Lines(string(b)) {
		for _, s := range contain {
			if !strings.Contains(row, s) {
				continue next
			}
		}
		rows = append(rows, strings.TrimSpace(row))
	}
	return rows
}

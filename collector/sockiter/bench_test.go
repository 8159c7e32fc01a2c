//go:build linux

package sockiter

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// BenchmarkSockets lists 4000 sockets. It reports the time of the CPU: other processes change it less.
func BenchmarkSockets(b *testing.B) {
	it := newIterator(b)
	defer it.Close()
	netnstest.New(b)
	const sockets = 4000
	client("192.0.2.1:80").Hold(b, sockets)
	start := cpuTime(b)
	for b.Loop() {
		n := 0
		if err := it.Sockets(0, 65535, time.Now().Add(time.Minute), func(*Socket) { n++ }); err != nil || n != sockets {
			b.Fatalf("%d sockets, %v", n, err)
		}
	}
	b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N*sockets), "cpu-ns/socket")
}

// cpuTime returns the time that the process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

//go:build linux

package conntrack

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/conntrack/conntracktest"
	"ephemeral_port_exporter/collector/netns/netnstest"
)

// BenchmarkFlows lists 300,000 flows with source NAT, in turns with a loop that only receives the same
// dump. The CPU time is that of the thread. It needs root of the host: it raises
// net.netfilter.nf_conntrack_max meanwhile.
func BenchmarkFlows(b *testing.B) {
	const flows = 300_000
	netnstest.RaiseConntrackLimit(b, 2*flows)
	netnstest.New(b)
	fill(b, flows)

	c := dial(b)
	var bare, ours, ratio []float64
	for b.Loop() {
		used := cpu(b)
		n := receive(b, c)
		between := cpu(b)
		seen := 0
		if err := c.Flows(func(*Flow) { seen++ }); err != nil || seen != flows {
			b.Fatalf("%d flows, %v", seen, err)
		}
		bare = append(bare, float64((between-used).Nanoseconds())/flows)
		ours = append(ours, float64((cpu(b)-between).Nanoseconds())/flows)
		ratio = append(ratio, ours[len(ours)-1]/bare[len(bare)-1])
		b.ReportMetric(float64(n)/flows, "B/flow")
	}
	b.ReportMetric(median(bare), "bare-CPU-ns/flow")
	b.ReportMetric(median(ours), "CPU-ns/flow")
	b.ReportMetric(median(ratio), "times-bare")
}

// BenchmarkOthers is a dump of a namespace without flows, while another one has 250,000: the kernel walks the table that all share.
func BenchmarkOthers(b *testing.B) {
	netnstest.New(b)
	c := dial(b)
	empty := b.TempDir() + "/other"
	netnstest.Mount(b, empty, func() { fill(b, 250_000) })
	var used []float64
	for b.Loop() {
		before := cpu(b)
		if err := c.Flows(func(*Flow) { b.Error("a flow of another namespace") }); err != nil {
			b.Fatal(err)
		}
		used = append(used, float64((cpu(b) - before).Microseconds()))
	}
	b.ReportMetric(median(used), "CPU-us/dump")
}

// fill creates TCP flows with source NAT to 10 destinations in the calling thread's namespace.
func fill(b *testing.B, n int) {
	b.Helper()
	err := conntracktest.Open(b).Create(n, func(i int) conntracktest.Flow {
		f := conntracktest.Flow{
			Protocol: unix.IPPROTO_TCP, State: 3, Timeout: 36000,
			Original: conntracktest.Tuple{
				Source:      netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 15), byte(i >> 7)}), 1024+uint16(i&127)),
				Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i / 30_000)}), 443),
			},
		}
		f.Reply = f.Original.Reverse()
		f.Reply.Destination = netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), 10_000+uint16(i%30_000))
		return f
	})
	if err != nil {
		b.Fatal(err)
	}
}

// receive asks for the same dump as Flows and returns its bytes.
func receive(b *testing.B, c *Conn) (total int) {
	b.Helper()
	if _, err := c.conn.Send(typeGet, 0x301, make([]byte, sizeofGenMsg)); err != nil {
		b.Fatal(err)
	}
	for {
		datagram, err := c.conn.Receive()
		if err != nil {
			b.Fatal(err)
		}
		total += len(datagram)
		if datagram[4] == unix.NLMSG_DONE {
			return total
		}
	}
}

// cpu returns the CPU time of the calling thread, to which netnstest.New has locked the benchmark.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

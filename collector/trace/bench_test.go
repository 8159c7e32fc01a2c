//go:build linux

package trace

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// BenchmarkConnect measures the CPU time of connections without a Probe and with one, in turns: of those that the other side
// resets, of those that the client closes first, and of connects that fail. ratio is that with a Probe divided by that without.
func BenchmarkConnect(b *testing.B) {
	local := netip.MustParseAddrPort("198.51.100.7:7301")
	b.Run("succeeds", func(b *testing.B) {
		netnstest.LockTraces(b)
		netnstest.New(b)
		listener := netnstest.Listen(b, local.String(), false)
		compare(b, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Connect(fd, netnstest.Sockaddr(local, false)); err != nil {
				return err
			}
			accepted, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			if err != nil {
				return err
			}
			defer unix.Close(accepted)
			// A reset leaves no TIME_WAIT. With TIME_WAIT, each connect() would be slower than the last.
			return unix.SetsockoptLinger(accepted, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		})
	})
	b.Run("closes", func(b *testing.B) {
		netnstest.LockTraces(b)
		netnstest.New(b)
		netnstest.Sysctl(b, "ipv4/tcp_max_tw_buckets", "0") // no TIME_WAIT, with which each connect() would be slower than the last
		listener := netnstest.Listen(b, local.String(), false)
		compare(b, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := unix.Connect(fd, netnstest.Sockaddr(local, false)); err != nil {
				return err
			}
			accepted, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			if err != nil {
				return err
			}
			return errors.Join(unix.Close(fd), unix.Close(accepted))
		})
	})
	b.Run("fails", func(b *testing.B) {
		netnstest.LockTraces(b)
		netnstest.New(b)
		netnstest.Sysctl(b, "ipv4/ip_local_port_range", "40000 40001")
		netnstest.Client{Destination: local}.Hold(b, 2)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer unix.Close(fd)
		compare(b, func() error {
			if err := unix.Connect(fd, netnstest.Sockaddr(local, false)); !errors.Is(err, unix.EADDRNOTAVAIL) {
				return errors.Join(errors.New("connect() did not fail"), err)
			}
			return nil
		})
	})
}

// compare calls connect in rounds without a Probe and with one, and reports the medians of the CPU time of a call, and of the
// differences between a round and the next.
func compare(b *testing.B, connect func() error) {
	const perRound = 5000
	var without, with, more []time.Duration
	round := func() time.Duration {
		start := threadTime(b)
		for range perRound {
			if err := connect(); err != nil {
				b.Fatal(err)
			}
		}
		return (threadTime(b) - start) / perRound
	}
	for i := 0; b.Loop(); i++ {
		var without1, with1 time.Duration
		for _, probed := range []bool{i%2 == 0, i%2 != 0} {
			if !probed {
				without1 = round()
				continue
			}
			p, err := Attach()
			if err != nil {
				b.Fatal(err)
			}
			with1 = round()
			if err := p.Close(); err != nil {
				b.Fatal(err)
			}
		}
		without, with, more = append(without, without1), append(with, with1), append(more, with1-without1)
	}
	median := func(rounds []time.Duration) float64 {
		slices.Sort(rounds)
		return float64(rounds[len(rounds)/2].Nanoseconds())
	}
	b.ReportMetric(0, "ns/op") // a round has no meaning
	b.ReportMetric(median(without), "cpu-ns-without")
	b.ReportMetric(median(with), "cpu-ns-with")
	b.ReportMetric(median(more), "cpu-ns-more")
	b.ReportMetric(median(with)/median(without), "ratio")
}

// threadTime returns the CPU time of this thread, which also handles the packets that it sends to itself.
func threadTime(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkCounts reads a full table.
func BenchmarkCounts(b *testing.B) {
	netnstest.LockTraces(b)
	netnstest.New(b)
	noPorts(b)
	p, err := Attach()
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	unlimited(b, p)
	for i := range TableSize {
		c := netnstest.Client{Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), 7302)}
		if err := dial(c); !errors.Is(err, unix.EADDRNOTAVAIL) {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		for i := range p.Failures.state {
			p.Failures.state[i].events-- // so that there is something to count
		}
		if counts, _, err := p.Failures.Counts(time.Now()); err != nil || len(counts) != TableSize {
			b.Fatalf("%d pools, %v", len(counts), err)
		}
	}
}

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

// BenchmarkConnect measures connects without a Probe and with one, in turns. ratio is the rate with
// a Probe divided by the rate without.
func BenchmarkConnect(b *testing.B) {
	local := netip.MustParseAddrPort("198.51.100.7:7301")
	b.Run("succeeds", func(b *testing.B) {
		netnstest.Tracefs(b)
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
	b.Run("fails", func(b *testing.B) {
		netnstest.Tracefs(b)
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

// compare calls connect in rounds without a Probe and with one, and reports the medians.
func compare(b *testing.B, connect func() error) {
	const perRound = 1000
	var without, with []time.Duration
	round := func() time.Duration {
		start := time.Now()
		for range perRound {
			if err := connect(); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(start) / perRound
	}
	for b.Loop() {
		without = append(without, round())
		p, err := Attach()
		if err != nil {
			b.Fatal(err)
		}
		with = append(with, round())
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
	median := func(rounds []time.Duration) float64 {
		slices.Sort(rounds)
		return rounds[len(rounds)/2].Seconds()
	}
	b.ReportMetric(0, "ns/op") // a round has no meaning
	b.ReportMetric(1/median(without), "connects/s-without")
	b.ReportMetric(1/median(with), "connects/s-with")
	b.ReportMetric(median(without)/median(with), "ratio")
}

// BenchmarkCounts reads a full table.
func BenchmarkCounts(b *testing.B) {
	netnstest.Tracefs(b)
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

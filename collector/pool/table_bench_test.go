package pool

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// BenchmarkAdd measures the cost of a socket, by the number of destinations.
func BenchmarkAdd(b *testing.B) {
	s := Settings{PortRange: PortRange{Low: 1024, High: 65535}, TimeWaitLength: tenPorts.TimeWaitLength}
	for _, destinations := range []int{1, 20, 1000, 100_000} {
		b.Run(fmt.Sprint(destinations), func(b *testing.B) {
			random := rand.New(rand.NewPCG(1, 2))
			sockets := make([]Socket, 1<<18)
			for i := range sockets {
				d := random.IntN(destinations)
				sockets[i] = Socket{
					State:  tcpstate.Established,
					Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, 1}), uint16(1024+random.IntN(60000))),
					Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(d >> 16), byte(d >> 8), byte(d)}), 443),
				}
			}
			t := NewTable(s)
			for i := 0; b.Loop(); i++ {
				t.Add(&sockets[i%len(sockets)])
			}
		})
	}
}

// BenchmarkInfer measures the cost of a socket, by the number of destinations that fill a small range.
func BenchmarkInfer(b *testing.B) {
	const ports = 100
	for _, destinations := range []int{20, 200, 2000} {
		b.Run(fmt.Sprint(destinations), func(b *testing.B) {
			for b.Loop() {
				t := NewTable(hundredPorts)
				for i := range destinations * ports {
					d := i / ports
					t.Add(&Socket{
						State:  tcpstate.Established,
						Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, 1}), uint16(40000+i%ports)),
						Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(d >> 8), byte(d)}), 443),
					})
				}
				t.Infer(new(Knowledge), everything)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*destinations*ports), "ns/socket")
		})
	}
}

// BenchmarkScan measures what a scan of a host takes beyond the reading of its sockets, after others have been scanned.
func BenchmarkScan(b *testing.B) {
	for _, host := range []struct{ sources, destinations, connections int }{
		{1, 20, 15000}, {1, 120_000, 1}, {10, 50_000, 2}, {1, 12_000, 10},
	} {
		b.Run(fmt.Sprint(host.sources*host.destinations, "x", host.connections), func(b *testing.B) {
			random := rand.New(rand.NewPCG(1, 2))
			var sockets []Socket
			for i := range host.sources * host.destinations {
				d := i % host.destinations
				for range host.connections {
					sockets = append(sockets, Socket{
						State:  tcpstate.Established,
						Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i / host.destinations)}), uint16(1024+random.IntN(60000))),
						Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(d >> 16), byte(d >> 8), byte(d)}), 443),
						Cgroup: 4711,
					})
				}
			}
			random.Shuffle(len(sockets), func(i, j int) { sockets[i], sockets[j] = sockets[j], sockets[i] })
			s := Settings{PortRange: PortRange{Low: 1024, High: 65535}, TimeWaitLength: tenPorts.TimeWaitLength, TWReuse: 2, Timestamps: 1}
			limits := Limits{Most: 256}
			known, t := new(Knowledge), new(Table)
			b.ReportAllocs()
			scan := func() {
				t.Reset(s)
				t.Recall(*known, 0)
				for i := range sockets {
					t.Add(&sockets[i])
				}
				_ = t.Questions(limits)
				t.Infer(known, limits)
				r := t.Report(limits)
				known.Keep(&r)
				t.Release()
			}
			scan()
			before := cpuTime(b)
			for b.Loop() {
				scan()
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N*len(sockets)), "cpu-ns/socket")
		})
	}
}

// cpuTime returns the CPU time of the process, in ns.
func cpuTime(b *testing.B) int64 {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return used.Utime.Nano() + used.Stime.Nano()
}

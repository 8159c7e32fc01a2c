package snat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"ephemeral_port_exporter/collector/internal/limit"
	"ephemeral_port_exporter/collector/internal/portset"
)

// BenchmarkReport makes a report of 256 pools with 1000 ports each, out of the default range.
func BenchmarkReport(b *testing.B) {
	settings := settings
	settings.PortRanges = []portset.Range{{Low: 1024, High: 65535}}
	table := NewTable(settings)
	for i := range 256 {
		f := tcpFlow(Established, 20000)
		f.Destination = netip.AddrPortFrom(f.Destination.Addr(), uint16(1+i))
		flows(table, 1000, f)
	}
	for b.Loop() {
		table.Report(limit.Limits{MinPorts: 10, Most: 256})
	}
}

// BenchmarkScan measures what a scan of a gateway takes beyond the reading of its flows, after others have been scanned.
func BenchmarkScan(b *testing.B) {
	settings := settings
	settings.PortRanges = []portset.Range{{Low: 1024, High: 65535}}
	for _, host := range []struct{ destinations, flows int }{{20, 15_000}, {100_000, 3}, {12_000, 10}} {
		b.Run(fmt.Sprint(host.destinations, "x", host.flows), func(b *testing.B) {
			var all []Flow
			for d := range host.destinations {
				for i := range host.flows {
					f := tcpFlow(Established, uint16(1024+d%1000+i))
					f.Client = netip.AddrFrom4([4]byte{10, 0, 0, byte((d + i) % 50)})
					f.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, byte(d >> 16), byte(d >> 8), byte(d)}), 443)
					all = append(all, f)
				}
			}
			rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			table := new(Table)
			scan := func() {
				table.Reset(settings)
				for i := range all {
					table.Add(&all[i])
				}
				table.Report(limit.Limits{Most: 256})
				table.Release()
			}
			scan()
			b.ReportAllocs()
			for b.Loop() {
				scan()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(all)), "ns/flow")
		})
	}
}

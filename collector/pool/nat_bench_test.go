package pool

import (
	"net/netip"
	"testing"
)

// BenchmarkNATReport makes a report of 256 pools with 1000 ports each, out of the default range.
func BenchmarkNATReport(b *testing.B) {
	settings := natSettings
	settings.PortRange = PortRange{Low: 1024, High: 65535}
	table := NewNATTable(settings)
	for i := range 256 {
		f := tcpFlow(NATEstablished, 20000)
		f.Destination = netip.AddrPortFrom(f.Destination.Addr(), uint16(1+i))
		flows(table, 1000, f)
	}
	for b.Loop() {
		table.Report(Limits{MinPorts: 10, Most: 256})
	}
}

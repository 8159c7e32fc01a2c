package snat

import (
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

//go:build linux

package main

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// BenchmarkUDP has 50,100 UDP sockets: first none, then in another network namespace that is not in
// scope, then in that of the exporter. The yardstick receives the same answers and discards them.
func BenchmarkUDP(b *testing.B) {
	netnstest.Sysctl(b, "ipv4/ip_local_port_range", "1024 65535")
	hold := func() {
		client := netnstest.UDP{Remote: netip.MustParseAddrPort("198.51.100.7:53")}
		for range 3 {
			netnstest.HoldInChild(b, netnstest.Holding{UDP: &client, Count: 16700})
		}
	}
	e := startBench(b, benchAddress)
	scrapes := func(families int) float64 {
		var cpu []float64
		for range 20 {
			used, metrics := e.scrape(b)
			if !strings.Contains(metrics, "\nephemeral_port_udp_collect_success{netns=\"self\"} 1\n") || strings.Count(metrics, "\nephemeral_port_udp_ports{") != families {
				b.Fatalf("UDP was not read as expected:\n%s", metrics)
			}
			cpu = append(cpu, used.Seconds()*1000)
		}
		return median(cpu)
	}
	without := scrapes(0)
	netnstest.Mount(b, filepath.Join(b.TempDir(), "other"), func() {
		netnstest.Sysctl(b, "ipv4/ip_local_port_range", "1024 65535")
		hold()
	})
	elsewhere := scrapes(0)
	hold()
	scrapes(3)
	loop := startBareLoop(b, "udp")
	var with, bare, ratio []float64
	sockets := 0
	for b.Loop() {
		loopCPU, n := loop.dump(b)
		used, _ := e.scrape(b)
		sockets = n
		bare = append(bare, loopCPU.Seconds()*1000)
		with = append(with, used.Seconds()*1000)
		ratio = append(ratio, (used.Seconds()*1000-without)/(loopCPU.Seconds()*1000))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(sockets), "sockets")
	b.ReportMetric(without, "none-cpu-ms/scrape")
	b.ReportMetric(elsewhere, "elsewhere-cpu-ms/scrape")
	b.ReportMetric(median(with), "cpu-ms/scrape")
	b.ReportMetric(median(bare), "bare-cpu-ms")
	b.ReportMetric(median(ratio), "added-cpu/bare")
	b.ReportMetric(e.rss(b), "RSS-MB")
}

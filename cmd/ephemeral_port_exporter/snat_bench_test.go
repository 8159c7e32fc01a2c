//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// BenchmarkSNAT has flows with source NAT, of 50 clients. The yardstick
// receives the same dump of flows. It needs root of the host: it raises net.netfilter.nf_conntrack_max meanwhile.
func BenchmarkSNAT(b *testing.B) {
	for _, host := range []struct{ flows, destinations int }{{300_000, 20}, {300_000, 100_000}, {1_000_000, 20}, {1_000_000, 100_000}} {
		b.Run(fmt.Sprintf("%d-to-%d", host.flows, host.destinations), func(b *testing.B) { benchmarkSNAT(b, host.flows, host.destinations) })
	}
}

func benchmarkSNAT(b *testing.B, flows, destinations int) {
	netnstest.RaiseConntrackLimit(b, 2*flows)
	translate(b, flows, destinations)
	e := startBench(b, benchAddress, "--snat", "--collect.timeout=30s")
	loop := startBareLoop(b, "flows")
	var bare, ours, ratio, wall []float64
	for b.Loop() {
		loopCPU, rows := loop.dump(b)
		start := time.Now()
		cpu, metrics := e.scrape(b)
		wall = append(wall, time.Since(start).Seconds()*1000)
		if got := sample(b, metrics, `ephemeral_port_snat_collect_flows{netns="self"} `); rows < flows || got < float64(flows) {
			b.Fatalf("%d and %v flows, want %d", rows, got, flows)
		}
		bare = append(bare, float64(loopCPU.Nanoseconds())/float64(flows))
		ours = append(ours, float64(cpu.Nanoseconds())/float64(flows))
		ratio = append(ratio, cpu.Seconds()/loopCPU.Seconds())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(bare), "bare-cpu-ns/flow")
	b.ReportMetric(median(ours), "cpu-ns/flow")
	b.ReportMetric(median(ratio), "cpu/bare")
	b.ReportMetric(median(wall), "wall-ms/scrape")
	b.ReportMetric(e.rss(b), "RSS-MB")
}

// translate makes flows with source NAT: it sends the first packets of TCP connections of others to another network
// namespace, which drops them.
func translate(b *testing.B, flows, destinations int) {
	b.Helper()
	peer := filepath.Join(openTempDir(b), "peer")
	netnstest.Mount(b, peer, nil)
	netnstest.IP(b,
		"link add translated type veth peer name eth0 netns "+peer, "addr add 10.202.0.1/24 dev translated", "link set translated up",
		"neigh add 10.202.0.2 lladdr 02:00:00:00:00:02 dev translated", "route add 10.128.0.0/10 via 10.202.0.2",
	)
	netnstest.In(b, peer, func() { netnstest.IP(b, "link set eth0 up") })
	b.Cleanup(func() { netnstest.IP(b, "link del translated") })
	nft(b, `table ip translated {
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "translated" snat to 203.0.113.1
	}
}
`)
	b.Cleanup(func() { nft(b, "delete table ip translated\n") })
	b.Cleanup(func() { deleteFlows(b) })
	netnstest.Sysctl(b, "netfilter/nf_conntrack_tcp_timeout_syn_sent", "36000")

	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	each := flows / destinations
	low := min(30000, 65536-each)
	packet := make([]byte, 40) // IPv4 and TCP headers; the kernel fills in what is 0
	packet[0], packet[8], packet[9] = 4<<4|5, 64, unix.IPPROTO_TCP
	packet[32], packet[33] = 5<<4, 1<<1 // SYN
	for i := range flows {
		d := 1 + i/each
		source, destination := [4]byte{10, 201, 0, byte(i % 50)}, [4]byte{10, 128 + byte(d>>16), byte(d >> 8), byte(d)}
		copy(packet[12:], source[:])
		copy(packet[16:], destination[:])
		binary.BigEndian.PutUint16(packet[20:], uint16(low+i%each))
		binary.BigEndian.PutUint16(packet[22:], 443)
		if err := unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: destination}); err != nil {
			b.Fatalf("packet %d to %v: %v", i, netip.AddrFrom4(destination), err)
		}
	}
}

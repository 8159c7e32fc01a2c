//go:build linux

package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/cilium/ciliumtest"
)

var ciliumVersions = flag.String("cilium", "v1.20.2", "versions of Cilium whose datapath is tested, with commas between them")

// TestCiliumDatapath fills a pool by Cilium's own datapath. The program must say how many ports are taken, by whom, and how often a search fails: as
// often as the datapath fails on the same pool.
func TestCiliumDatapath(t *testing.T) {
	for version := range strings.SplitSeq(*ciliumVersions, ",") {
		t.Run(version, func(t *testing.T) { checkDatapath(t, version) })
	}
}

func checkDatapath(t *testing.T, version string) {
	d := ciliumtest.New(t, version)
	cmd := command(t, "--snat", "--path.bpffs="+d.Mount, "--web.listen-address=127.0.0.1:10392")
	e := start(t, cmd, "http://127.0.0.1:10392")
	var (
		server  = netip.MustParseAddrPort("192.0.2.1:443")
		pods    = 0
		nextPod = func(port uint16) netip.AddrPort {
			pods++
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(pods >> 8), byte(pods)}), port)
		}
		taken  []uint16
		failed = 0.0
	)
	counts := !slices.Contains([]string{"15", "16", "17"}, strings.Split(version, ".")[1]) // since 1.18
	const pool = `{destination_ip="192.0.2.1",destination_port="443",netns="self",protocol="tcp",source_ip="198.51.100.1"} `
	for _, fill := range []int{1000, 13000, 17000, 24000, 31000} {
		for len(taken) < fill {
			// This port is outside of the range, so that the datapath takes a random one.
			if port, ok := d.Send(unix.IPPROTO_TCP, nextPod(20000), server); ok {
				taken = append(taken, port)
			} else {
				failed++
			}
		}
		_, metrics := e.get(t, "/metrics")
		want := map[string]float64{
			"cilium_collect_success{netns=\"self\"} ": 1, "cilium_unassigned_total{netns=\"self\"} ": failed, "cilium_capacity_ports" + pool: ciliumtest.Ports,
			"utilization_ratio" + pool: float64(fill) / ciliumtest.Ports, "max_utilization_ratio{netns=\"self\"} ": float64(fill) / ciliumtest.Ports,
			"ports" + strings.Replace(pool, `"} `, `",state="no_connection"} `, 1): float64(fill),
		}
		if !counts {
			delete(want, "cilium_unassigned_total{netns=\"self\"} ")
			if strings.Contains(metrics, "\nephemeral_port_snat_cilium_unassigned_total") {
				t.Error("what the datapath does not count is said to be none")
			}
		}
		for series, want := range want {
			if got := sample(t, metrics, "ephemeral_port_snat_"+series); got != want {
				t.Errorf("with %d ports: %s%v, want %v", fill, series, got, want)
			}
		}
		predicted := sample(t, metrics, "ephemeral_port_snat_search_failure_ratio"+pool)

		// The same searches again and again, by clients whose port is taken.
		const searches = 4000
		failures := 0
		for i := range searches {
			client := nextPod(taken[i*7919%len(taken)])
			if port, ok := d.Send(unix.IPPROTO_TCP, client, server); ok {
				d.Forget(unix.IPPROTO_TCP, client, server, port)
			} else {
				failures++
				failed++
			}
		}
		measured := float64(failures) / searches
		deviation := math.Sqrt(predicted * (1 - predicted) / searches)
		t.Logf("%d of %d ports: %.4f of searches fail, predicted %.4f", fill, ciliumtest.Ports, measured, predicted)
		if math.Abs(measured-predicted) > 5*deviation+3./searches {
			t.Errorf("with %d ports, %.4f of %d searches fail, predicted %.4f", fill, measured, searches, predicted)
		}
	}
	checkCiliumRange(t, d.Mount)
	_, text := e.get(t, "/?format=text")
	if counts != strings.Contains(text, "Cilium gave no port to connections in the last 5 minutes") {
		t.Errorf("the datapath counts what it refuses: %v; page:\n%s", counts, text)
	}
	_, page := e.get(t, "/?format=json")
	var doc struct {
		Level string
		SNAT  []struct {
			Cilium    bool
			Capacity  int `json:"capacity_ports"`
			Level     string
			Diagnosis string
		}
	}
	if err := json.Unmarshal([]byte(page), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.SNAT) != 1 || !doc.SNAT[0].Cilium || doc.SNAT[0].Capacity != ciliumtest.Ports || doc.SNAT[0].Level != "exhausted" || !strings.Contains(doc.SNAT[0].Diagnosis, "Cilium's searches") {
		t.Errorf("page: %+v", doc)
	}
}

// checkCiliumRange checks that the program does not believe a flag which its flows contradict.
func checkCiliumRange(t *testing.T, mount string) {
	t.Helper()
	for ports, want := range map[string]string{"20000-25000": "Cilium chose many ports at random, and none below 327", "30000-45000": "have ports outside 45001-65535, which are those above --node-ports"} {
		e := start(t, command(t, "--snat", "--path.bpffs="+mount, "--node-ports="+ports, "--web.listen-address=127.0.0.1:10395"), "http://127.0.0.1:10395")
		_, metrics := e.get(t, "/metrics")
		if n := sample(t, metrics, `ephemeral_port_snat_unknown_pools{netns="self"} `); n != 1 || strings.Contains(metrics, "\nephemeral_port_snat_utilization_ratio{") || strings.Contains(metrics, "\nephemeral_port_snat_max_utilization_ratio{") {
			t.Errorf("with --node-ports=%s, %v pools are not known", ports, n)
		}
		if _, page := e.get(t, "/?format=json"); !strings.Contains(page, want) {
			t.Errorf("with --node-ports=%s, the page lacks %q:\n%s", ports, want, page)
		}
		if err := e.stop(t); err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkCilium has Cilium's datapath translate so many connections, of 50 clients, that its map of 524288 entries is nearly full.
func BenchmarkCilium(b *testing.B) {
	const connections = 250_000
	for _, destinations := range []int{20, 100_000} {
		b.Run(fmt.Sprintf("%d-to-%d", connections, destinations), func(b *testing.B) {
			d := ciliumtest.New(b, "v1.20.2")
			each := connections / destinations
			for i := range connections {
				n := i / each
				from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i % 50)}), uint16(40000+i%each))
				to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 128 + byte(n>>16), byte(n >> 8), byte(n)}), 443)
				if _, granted := d.Send(unix.IPPROTO_TCP, from, to); !granted {
					b.Fatalf("connection %d got no port", i)
				}
			}
			e := startBench(b, benchAddress, "--snat", "--path.bpffs="+d.Mount, "--collect.timeout=30s")
			var ours []float64
			for b.Loop() {
				cpu, metrics := e.scrape(b)
				// Of a full map, the kernel evicts some.
				if got := sample(b, metrics, `ephemeral_port_snat_collect_flows{netns="self"} `); got < 0.95*connections {
					b.Fatalf("%v flows, want %d", got, connections)
				}
				ours = append(ours, float64(cpu.Nanoseconds())/connections)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(ours), "cpu-ns/flow")
			b.ReportMetric(e.rss(b), "RSS-MB")
		})
	}
}

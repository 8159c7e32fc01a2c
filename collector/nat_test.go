package collector

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

// TestMetricsNAT checks that what is not known is absent, and that sockets and flows do not depend on
// each other.
func TestMetricsNAT(t *testing.T) {
	failed := errors.New("failed")
	size := scan.Conntrack{Result: read, Entries: 7}
	tests := []struct {
		name      string
		namespace scan.Namespace
		want      []string
	}{
		{"no connection tracking", scan.Namespace{Name: "a", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: failed}}}, []string{
			`collect_success{netns="a"} 0`,
		}},
		{"no limit, no counters", scan.Namespace{Name: "a", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: failed}}, Conntrack: size}, []string{
			`collect_success{netns="a"} 0`, `conntrack_entries{netns="a"} 7`,
		}},
		{"flows cannot be read", scan.Namespace{Name: "a", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}, Conntrack: size, NAT: scan.NAT{Result: scan.Result{Outcome: scan.Failed, Err: failed}}}, []string{
			`collect_success{netns="a"} 1`, `conntrack_entries{netns="a"} 7`, `snat_collect_success{netns="a"} 0`,
		}},
		{"Cilium is not read", scan.Namespace{Name: "a", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: failed}}, Cilium: scan.Cilium{Result: scan.Result{Outcome: scan.Failed, Err: failed}, Found: true}, NAT: scan.NAT{Result: read, Report: snat.Report{
			CapacityPorts: 100, MaxUtilization: 0.5, UnreportedMaxUtilization: math.NaN(), Flows: 50,
		}}}, []string{
			`collect_success{netns="a"} 0`,
			`snat_capacity_ports{netns="a",protocol="tcp"} 100`, `snat_capacity_ports{netns="a",protocol="udp"} 100`, `snat_cilium_collect_success{netns="a"} 0`,
			`snat_collect_duration_seconds{netns="a"} 0`, `snat_collect_flows{netns="a"} 50`, `snat_collect_success{netns="a"} 1`,
			`snat_outside_flows{netns="a"} 0`, `snat_unknown_pools{netns="a"} 0`, `snat_unreported_pools{netns="a"} 0`, `snat_unreported_ports{netns="a"} 0`,
		}},
		{"sockets cannot be read", scan.Namespace{Name: "a", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: failed}}, NAT: scan.NAT{Result: read, Report: snat.Report{
			CapacityPorts: 100, MaxUtilization: 0.5, UnreportedMaxUtilization: math.NaN(), Flows: 50, Outside: 3,
		}}}, []string{
			`collect_success{netns="a"} 0`,
			`snat_capacity_ports{netns="a",protocol="tcp"} 100`, `snat_capacity_ports{netns="a",protocol="udp"} 100`,
			`snat_collect_duration_seconds{netns="a"} 0`, `snat_collect_flows{netns="a"} 50`, `snat_collect_success{netns="a"} 1`,
			`snat_max_utilization_ratio{netns="a"} 0.5`, `snat_outside_flows{netns="a"} 3`, `snat_unknown_pools{netns="a"} 0`, `snat_unreported_pools{netns="a"} 0`, `snat_unreported_ports{netns="a"} 0`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for line := range strings.Lines(samples(t, scan.Snapshot{Namespaces: []scan.Namespace{tt.namespace}})) {
				if strings.HasPrefix(line, "ephemeral_port_udp_") {
					continue // see TestMetricsUDP
				}
				got = append(got, strings.TrimSpace(strings.TrimPrefix(line, "ephemeral_port_")))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("series (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMetricsNATUnknown checks that the numbers of a pool of which nothing is known are absent.
func TestMetricsNATUnknown(t *testing.T) {
	nan := math.NaN()
	p := snat.Pool{Protocol: snat.TCP, Utilization: nan, SearchFailure: nan, Ceiling: nan}
	got := samples(t, scan.Snapshot{Namespaces: []scan.Namespace{{Name: "a", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}, NAT: scan.NAT{Result: read, Report: snat.Report{
		Pools: []snat.Pool{p}, MaxUtilization: nan, UnknownPools: 1,
	}}}}})
	for name, want := range map[string]bool{"snat_ceiling": false, "snat_utilization": false, "snat_search_failure": false, "snat_max_utilization": false, `snat_unknown_pools{netns="a"} 1`: true, "snat_ports{": true} {
		if strings.Contains(got, "ephemeral_port_"+name) != want {
			t.Errorf("%s: %v, want %v", name, !want, want)
		}
	}
}

// TestMetricsNATCeiling checks that a ceiling that is not known is absent.
func TestMetricsNATCeiling(t *testing.T) {
	p := snat.Pool{Protocol: snat.TCP, Ceiling: math.NaN()}
	got := samples(t, scan.Snapshot{Namespaces: []scan.Namespace{{Name: "a", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}, NAT: scan.NAT{Result: read, Report: snat.Report{Pools: []snat.Pool{p}}}}}})
	if strings.Contains(got, "snat_ceiling") {
		t.Errorf("a number that is not known:\n%s", got)
	}
}

// TestMetricsNATBound checks the formula in metrics.md for the greatest number of series.
func TestMetricsNATBound(t *testing.T) {
	const limit, tracked = 256, 3
	var s scan.Snapshot
	for i := range tracked {
		s.Namespaces = append(s.Namespaces, scan.Namespace{
			Name: fmt.Sprint("router", i), TCP: scan.TCP{Result: scan.Result{Outcome: scan.Skipped}}, NAT: scan.NAT{Result: read},
			Conntrack: scan.Conntrack{Result: read, Entries: 1, Limit: 1, Counted: true},
		})
	}
	clients := []snat.Client{{Address: netip.MustParseAddr("10.0.0.1")}, {Address: netip.MustParseAddr("10.0.0.2")}, {Address: netip.MustParseAddr("10.0.0.3")}}
	for i := range limit {
		r := &s.Namespaces[i%tracked].NAT.Report
		r.Pools = append(r.Pools, snat.Pool{
			Protocol: snat.TCP, Address: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(i)), Clients: clients,
			Ports: [13]int{snat.SynRecv: 1, snat.LastAck: 1},
		})
	}
	b, err := os.ReadFile("../deploy/docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`series of --snat = (\d+) × max\(limit, tracked\) \+ (\d+) × tracked\n`).FindSubmatch(b)
	if m == nil {
		t.Fatal("no formula in metrics.md")
	}
	perPool, err1 := strconv.Atoi(string(m[1]))
	perNamespace, err2 := strconv.Atoi(string(m[2]))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	want := perPool*max(limit, tracked) + perNamespace*tracked
	if got := strings.Count(samples(t, s), "\n"); got != want {
		t.Errorf("%d series, metrics.md says %s = %d", got, m[0], want)
	}
}

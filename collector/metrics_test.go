package collector

import (
	"bytes"
	"errors"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

var updateGolden = flag.Bool("update-golden", false, "write testdata/metrics.prom anew")

// exposition is what /metrics says of a collector.
func exposition(t *testing.T, c prometheus.Collector) []byte {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// TestMetrics compares with testdata/metrics.prom, written by
//
//	go test ./collector -run TestMetrics -update-golden
func TestMetrics(t *testing.T) {
	report := pool.Report{
		Settings: pool.Settings{
			PortRange: pool.PortRange{Low: 32768, High: 60999},
			TWReuse:   2, TWReuseDelay: 1500 * time.Millisecond, Timestamps: 1,
			FinTimeout: 30 * time.Second, TimeWaitLimit: 131072, TimeWaitLength: time.Minute,
		},
		ReservedPorts: 5, BlockedPorts: 2, CapacityPorts: 28225,
		MaxUtilization: 0.75,
		Destinations: []pool.Destination{
			{
				Source: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddrPort("10.0.0.2:443"),
				Ports: [9]int{1, 2, 3, 4, 5, 6, 7, 8, 9}, Held: 45, Reusable: 6, Utilization: 0.5, Ceiling: 470.5, CloseRate: 12.5,
			},
			{
				Source: netip.MustParseAddr("fe80::1%2"), Address: netip.MustParseAddrPort("[fe80::2%2]:80"),
				Ports: [9]int{20}, Held: 20, Utilization: 0.25, Ceiling: 28225,
			},
		},
		Sources: []pool.Source{
			{Address: netip.MustParseAddr("10.0.0.1"), Ports: 45, BindParity: 40, Capacity: 28226, Utilization: 0.125},
		},
		UnreportedDestinations: 3, UnreportedPorts: 9,
		Sockets: 74,
	}
	got := exposition(t, New(scan.Snapshot{
		OthersRead: true,
		Namespaces: []scan.Namespace{
			{
				Name: scan.Self, Inode: 4026531840, Outcome: scan.Collected,
				Owner:  cgroup.Owner{PodUID: "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", ContainerID: "9b1c7a0d", Command: "pause\xff\n"},
				Report: report, TimeWaitSockets: 10000, TimeWaitOverflows: 7, Duration: 2500 * time.Microsecond,
			},
			{Outcome: scan.Idle}, {Outcome: scan.Idle}, {Outcome: scan.Failed}, // without a label
		},
		ConnectFailures: &scan.ConnectFailures{
			Pools: []scan.FailedPool{{
				Source: netip.MustParseAddr("198.51.100.1"), Destination: netip.MustParseAddrPort("10.0.0.2:443"), Failures: 100,
			}},
			Unattributed: 3,
		},
	}))
	const golden = "testdata/metrics.prom"
	if *updateGolden {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("exposition (-want +got):\n%s", diff)
	}

	problems, err := promlint.New(bytes.NewReader(got)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("promlint: %s: %s", p.Metric, p.Text)
	}
}

// TestMetricsFailure sends nothing that could be taken for a number.
func TestMetricsFailure(t *testing.T) {
	failed := errors.New("failed")
	want := `# HELP ephemeral_port_collect_success 1 if this scrape could read the network namespace, else 0 and none of its other metrics is there.
# TYPE ephemeral_port_collect_success gauge
ephemeral_port_collect_success{netns="self"} 0
`
	got := exposition(t, New(scan.Snapshot{
		Namespaces:      []scan.Namespace{{Name: scan.Self, Outcome: scan.Failed, Err: failed}},
		ConnectFailures: &scan.ConnectFailures{Err: failed},
	}))
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("exposition (-want +got):\n%s", diff)
	}
}

// TestMetricsPartial says nothing of sockets that were not read.
func TestMetricsPartial(t *testing.T) {
	n := scan.Namespace{Name: "few", Inode: 7, Outcome: scan.Idle, Partial: true, Report: pool.Report{CapacityPorts: 999}}
	text := string(exposition(t, New(scan.Snapshot{OthersRead: true, Namespaces: []scan.Namespace{n}})))
	for series, want := range map[string]bool{
		`ephemeral_port_capacity_ports{netns="few"} 999`:                 true,
		`ephemeral_port_collect_success{netns="few"} 1`:                  true,
		`ephemeral_port_max_utilization_ratio{netns="few"}`:              false,
		`ephemeral_port_unreported_ports{netns="few"}`:                   false,
		`ephemeral_port_collect_sockets{netns="few"}`:                    false,
		`ephemeral_port_namespaces{outcome="idle"} 1`:                    true,
		`ephemeral_port_namespaces{outcome="collected"} 0`:               true,
		`ephemeral_port_namespaces{outcome="failed"} 0`:                  true,
		`ephemeral_port_namespaces{outcome="deadline"} 0`:                true,
		`command="",container_id="",inode="7",netns="few",pod_uid=""} 1`: true,
	} {
		if strings.Contains(text, series) != want {
			t.Errorf("%s: there %v, want %v", series, !want, want)
		}
	}
}

// TestMetricsOldKernel has no reuse delay to tell.
func TestMetricsOldKernel(t *testing.T) {
	got := exposition(t, New(scan.Snapshot{Namespaces: []scan.Namespace{{Name: scan.Self, Outcome: scan.Collected}}}))
	if bytes.Contains(got, []byte("tcp_tw_reuse_delay_seconds")) {
		t.Error("a setting that this kernel does not have")
	}
}

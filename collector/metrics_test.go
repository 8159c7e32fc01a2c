package collector

import (
	"bytes"
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"

	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/procfs"
)

var updateGolden = flag.Bool("update-golden", false, "write testdata/metrics.prom anew")

// reportCollector sends the metrics of a given report, of a failed one if it is nil.
type reportCollector struct {
	descs  descs
	report *Report
	owner  netns.Owner // with it, as with --namespaces
}

func (c reportCollector) Describe(ch chan<- *prometheus.Desc) { c.descs.describe(ch) }

func (c reportCollector) Collect(ch chan<- prometheus.Metric) {
	if c.report == nil {
		c.descs.send(ch, Survey{NetNS: selfNetNS, Err: errors.New("failed")})
		return
	}
	s := Survey{NetNS: selfNetNS, Outcome: Collected, Report: *c.report}
	if c.owner != (netns.Owner{}) {
		s.Inode, s.Owner = 4026531840, c.owner
	}
	c.descs.send(ch, s)
	if s.Inode != 0 {
		c.descs.sendOutcomes(ch, []Survey{s, {Outcome: Idle}, {Outcome: Idle}, {Outcome: Failed}})
	}
}

// exposition is what /metrics says of collectors.
func exposition(t *testing.T, c ...prometheus.Collector) []byte {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c...)
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
	var f fakeFailures
	f.set(3, 0, 100)
	failures := NewConnectFailures(f.read, 1, slog.New(slog.DiscardHandler))
	got := exposition(t, failures, reportCollector{newDescs(), &Report{
		Settings: Settings{
			PortRange: procfs.PortRange{Low: 32768, High: 60999},
			TWReuse:   2, TWReuseDelay: 1500 * time.Millisecond, Timestamps: 1,
			FinTimeout: 30 * time.Second, TimeWaitLimit: 131072, TimeWaitLength: time.Minute,
		},
		ReservedPorts: 5, BlockedPorts: 2, CapacityPorts: 28225,
		TimeWaitSockets: 10000, TimeWaitOverflows: 7,
		MaxUtilization: 0.75,
		Destinations: []Destination{
			{
				Source: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddrPort("10.0.0.2:443"),
				Ports: [9]int{1, 2, 3, 4, 5, 6, 7, 8, 9}, Held: 45, Reusable: 6, Utilization: 0.5, Ceiling: 470.5, CloseRate: 12.5,
			},
			{
				Source: netip.MustParseAddr("fe80::1%2"), Address: netip.MustParseAddrPort("[fe80::2%2]:80"),
				Ports: [9]int{20}, Held: 20, Utilization: 0.25, Ceiling: 28225,
			},
		},
		Sources: []Source{
			{Address: netip.MustParseAddr("10.0.0.1"), Ports: 45, BindParity: 40, Capacity: 28226, Utilization: 0.125},
		},
		UnreportedDestinations: 3, UnreportedPorts: 9,
		Sockets: 74, Duration: 2500 * time.Microsecond,
	}, netns.Owner{PodUID: "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", ContainerID: "9b1c7a0d", Command: "pause\xff\n"}})
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
	want := `# HELP ephemeral_port_collect_success 1 if this scrape could read the network namespace, else 0 and none of its other metrics is there.
# TYPE ephemeral_port_collect_success gauge
ephemeral_port_collect_success{netns="self"} 0
`
	if diff := cmp.Diff(want, string(exposition(t, reportCollector{descs: newDescs()}))); diff != "" {
		t.Errorf("exposition (-want +got):\n%s", diff)
	}
}

// TestMetricsOldKernel has no reuse delay to tell.
func TestMetricsOldKernel(t *testing.T) {
	got := exposition(t, reportCollector{descs: newDescs(), report: &Report{Settings: tenPorts}})
	if bytes.Contains(got, []byte("tcp_tw_reuse_delay_seconds")) {
		t.Error("a setting that this kernel does not have")
	}
}

package collector

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math"
	"net/netip"
	"os"
	"regexp"
	"strconv"
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
	"ephemeral_port_exporter/collector/snat"
)

var updateGolden = flag.Bool("update-golden", false, "write testdata/metrics.prom anew")

// read is the Result of what was read.
var read = scan.Result{Outcome: scan.Collected}

// exposition returns the text of /metrics for a collector.
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

// TestMetrics compares the text with testdata/metrics.prom. This file was written by
//
//	go test ./collector -run TestMetrics -update-golden
func TestMetrics(t *testing.T) {
	report := pool.Report{
		Settings: pool.Settings{
			PortRange: pool.PortRange{Low: 32768, High: 60999},
			TWReuse:   2, TWReuseDelay: 1500 * time.Millisecond, Timestamps: 1,
			FinTimeout: 30 * time.Second, TimeWaitLength: time.Minute,
		},
		ReservedPorts: 5, BlockedPorts: 2, CapacityPorts: 28225, BoundPorts: 4, BoundUnknown: 3, BoundKnown: true,
		MaxUtilization: 0.75,
		Destinations: []pool.Destination{
			{
				Source: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddrPort("10.0.0.2:443"),
				Ports: [9]int{1, 2, 3, 4, 5, 6, 7, 8, 9}, Held: 45, Reusable: 6, Utilization: 0.5, Ceiling: 454.5, CloseRate: 12.5, Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1), Timestamps: pool.Yes,
			},
			{
				Source: netip.MustParseAddr("fe80::1%2"), Address: netip.MustParseAddrPort("[fe80::2%2]:80"),
				Owners: []pool.Owner{{Cgroup: 7, Ports: 15}, {Cgroup: 9, Ports: 3}, {Cgroup: 8, Ports: 2}},
				Ports:  [9]int{4: 20}, Held: 20, ReusableUnknown: 13, Utilization: 0.25, Ceiling: 28205, CloseRate: 30000, Exhaustion: 0.75, SureExhaustion: 1.5, Timestamps: pool.No,
			},
		},
		Sources: []pool.Source{
			{Address: netip.MustParseAddr("10.0.0.1"), Ports: 45, Bound: 30, Capacity: 28226, Utilization: 0.125},
		},
		UnreportedDestinations: 3, UnreportedPorts: [len(pool.States)]int{7, 2}, UnreportedSources: 2,
		Sockets: 74,
	}
	natReport := snat.Report{
		CapacityPorts: 64512, MaxUtilization: 0.75, UnreportedPools: 4, UnreportedPorts: 11, Flows: 62000,
		Pools: []snat.Pool{
			{
				Protocol: snat.TCP, Source: netip.MustParseAddr("192.0.2.1"), Address: netip.MustParseAddrPort("198.51.100.1:443"),
				Ports: [13]int{1, 2, 3, 4, 5, 6, 7, 8, 9}, Held: 45, Reusable: 24, Utilization: 0.75, SearchFailure: 0.125, Ceiling: math.Inf(1),
				Clients: []snat.Client{{Address: netip.MustParseAddr("10.1.0.2"), Ports: 30}, {Address: netip.MustParseAddr("10.1.0.3"), Ports: 15}},
			},
			{
				Protocol: snat.UDP, Source: netip.MustParseAddr("2001:db8::1"), Address: netip.MustParseAddrPort("[2001:db8::53]:53"),
				Ports: [13]int{9: 10, 10: 20, 11: 30}, Held: 60, Utilization: 0.5, Ceiling: 2000.5,
				Clients: []snat.Client{{Address: netip.MustParseAddr("2001:db8:1::2"), Ports: 60}},
			},
			{
				Protocol: snat.TCP, Source: netip.MustParseAddr("192.0.2.9"), Address: netip.MustParseAddrPort("198.51.100.1:443"), Cilium: true, Capacity: 32768,
				Ports: [13]int{snat.Established: 16000, snat.NoConnection: 384}, Held: 16384, Utilization: 0.5, SearchFailure: 0.055, Ceiling: math.NaN(),
			},
		},
	}
	got := exposition(t, New(scan.Snapshot{
		OthersRead: true,
		Cgroups: map[uint64]cgroup.Group{
			7: {Path: "/kubepods.slice/kubepods-pod3f8e1c2a.slice/cri-containerd-9b1c7a0d.scope", Workload: cgroup.Workload{PodUID: "3f8e1c2a", ContainerID: "9b1c7a0d"}},
			8: {Path: "/system.slice/haproxy.service"},
			9: {Path: "cgroup-9"},
		},
		Namespaces: []scan.Namespace{
			{
				Name: scan.Self, Inode: 4026531840, TCP: scan.TCP{Result: read, Report: report, Duration: 2500 * time.Microsecond},
				TimeWait: scan.TimeWait{Result: read, Sockets: 10000, Limit: 131072, Overflows: 7},
				Workload: scan.Workload{
					Workload: cgroup.Workload{PodUID: "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", ContainerID: "9b1c7a0d"},
					Command:  "pause\xff\n",
				},
				Conntrack: scan.Conntrack{Result: read, Entries: 64000, Limit: 262144, Counted: true, InsertFailed: 12, Dropped: 15, EarlyDropped: 2},
				NAT:       scan.NAT{Result: read, Report: natReport, Duration: 1500 * time.Microsecond},
				Cilium:    scan.Cilium{Result: read, Found: true, Counted: true, Unassigned: 812},
				UDP:       udpOf(15000, 12000, 300, 12250),
			},
			{TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}}, {TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}}, {TCP: scan.TCP{Result: scan.Result{Outcome: scan.Failed}}}, // without a label
		},
		Trace: &scan.Trace{
			Pools: []scan.FailedPool{
				{
					Netns: scan.Self, Cgroup: cgroup.Group{Path: "/system.slice/haproxy.service"},
					Source: netip.MustParseAddr("198.51.100.1"), Destination: netip.MustParseAddrPort("10.0.0.2:443"), Failures: 100,
				},
				{
					Netns: scan.Self, Cgroup: cgroup.Group{Path: "/kubepods.slice/pod3f8e1c2a", Workload: cgroup.Workload{PodUID: "3f8e1c2a", ContainerID: "9b1c7a0d"}},
					Source: netip.MustParseAddr("198.51.100.1"), Destination: netip.MustParseAddrPort("10.0.0.2:443"), Failures: 7,
				},
			},
			Unattributed: 3, Expired: 20, TableUtilization: 0.25, MissedRuns: 5, MissedRunsKnown: true,
			BindsCounted: true, BindsUnattributed: 2, BindsExpired: 30, Binds: []scan.FailedBind{
				{Netns: scan.Self, Cgroup: cgroup.Group{Path: "/system.slice/apache2.service"}, Source: netip.MustParseAddr("198.51.100.1"), Failures: 40},
				{Netns: scan.Self, Cgroup: cgroup.Group{Path: "/system.slice/unbound.service"}, Source: netip.MustParseAddr("::"), UDP: true, Failures: 8},
			},
			ClosesCounted: true, ClosesUnattributed: 25, ClosesExpired: 1000, ClosesTableUtilization: 0.125, Closes: []scan.ClosedPool{
				{
					Netns: scan.Self, Cgroup: cgroup.Group{Path: "/system.slice/job.service"},
					Source: netip.MustParseAddr("198.51.100.1"), Destination: netip.MustParseAddrPort("10.0.0.2:443"), Closes: 12000, Recent: 5700,
				},
				{ // without a series
					Netns: scan.Self, Cgroup: cgroup.Group{Path: "/system.slice/job.service"},
					Source: netip.MustParseAddr("198.51.100.1"), Destination: netip.MustParseAddrPort("10.0.0.3:443"), Recent: 2,
				},
			},
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

// TestMetricsFailure checks that a failed namespace has no measured values.
func TestMetricsFailure(t *testing.T) {
	failed := errors.New("failed")
	want := `# HELP ephemeral_port_collect_success 1 if this scrape could read the network namespace. If it is 0, the other metrics of the namespace are absent, except ephemeral_port_netns_info and those of UDP and connection tracking.
# TYPE ephemeral_port_collect_success gauge
ephemeral_port_collect_success{netns="self"} 0
# HELP ephemeral_port_trace_collect_success 1 if this scrape could read the counts of failed connects and binds, and of closes. If it is 0, they are absent. Only with --trace.
# TYPE ephemeral_port_trace_collect_success gauge
ephemeral_port_trace_collect_success 0
# HELP ephemeral_port_udp_collect_success 1 if this scrape could read the UDP sockets of the network namespace, or found too few to read. If it is 0, the metrics of UDP are absent. It is absent itself if the kernel cannot list UDP sockets.
# TYPE ephemeral_port_udp_collect_success gauge
ephemeral_port_udp_collect_success{netns="self"} 0
`
	unread := scan.Result{Outcome: scan.Failed, Err: failed}
	got := exposition(t, New(scan.Snapshot{
		Namespaces: []scan.Namespace{{Name: scan.Self, TCP: scan.TCP{Result: unread}, UDP: scan.UDP{Result: unread}}},
		Trace:      &scan.Trace{Err: failed},
	}))
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("exposition (-want +got):\n%s", diff)
	}
}

// TestMetricsIdle checks that an idle namespace has few series, and none for values that were not
// read.
func TestMetricsIdle(t *testing.T) {
	idle := func(timeWait int) scan.Namespace {
		return scan.Namespace{Name: "few", Inode: 7, TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}, TimeWait: scan.TimeWait{Result: scan.Result{Outcome: scan.Idle}, Sockets: timeWait}}
	}
	const series = `ephemeral_port_collect_success{netns="few"} 1
ephemeral_port_netns_info{command="",container_id="",inode="7",netns="few",pod_uid=""} 1
`
	for timeWait, want := range map[int]string{0: series, 3: series + "ephemeral_port_time_wait_sockets{netns=\"few\"} 3\n"} {
		if diff := cmp.Diff(want, samples(t, scan.Snapshot{Namespaces: []scan.Namespace{idle(timeWait)}})); diff != "" {
			t.Errorf("%d in TIME_WAIT (-want +got):\n%s", timeWait, diff)
		}
	}
}

// TestMetricsUnreported checks that destinations and pools that are only listed have no series.
func TestMetricsUnreported(t *testing.T) {
	got := samples(t, scan.Snapshot{Namespaces: []scan.Namespace{{
		Name: scan.Self,
		TCP: scan.TCP{Result: read, Report: pool.Report{Destinations: []pool.Destination{{
			Source: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddrPort("10.0.0.2:443"), Unreported: true, Owners: []pool.Owner{{Cgroup: 1, Ports: 1}},
		}}}},
		NAT: scan.NAT{Result: read, Report: snat.Report{Others: []snat.Pool{{
			Protocol: snat.TCP, Source: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddrPort("10.0.0.2:443"),
		}}}},
	}}})
	if strings.Contains(got, "10.0.0.2") {
		t.Errorf("series of what is only listed:\n%s", got)
	}
}

// TestMetricsStates checks that states through which connections pass within moments have series only while they are not 0, and that
// the sum of the states is what is held.
func TestMetricsStates(t *testing.T) {
	brief := map[string]bool{"syn_recv": true, "fin_wait1": true, "last_ack": true, "closing": true}
	for i, only := range pool.States {
		var held [len(pool.States)]int
		held[i] = 7
		report := pool.Report{
			UnreportedPorts: held,
			Destinations:    []pool.Destination{{Source: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddrPort("10.0.0.2:443"), Ports: held, Held: 7}},
		}
		got := samples(t, scan.Snapshot{Namespaces: []scan.Namespace{{Name: scan.Self, TCP: scan.TCP{Result: read, Report: report}}}})
		for _, metric := range []string{"destination_ports", "unreported_ports"} {
			want := map[string]string{only.String(): "7"}
			for _, state := range pool.States {
				if !brief[state.String()] && state != only {
					want[state.String()] = "0"
				}
			}
			series := map[string]string{}
			for _, m := range regexp.MustCompile(`_`+metric+`\{.*state="(\w+)"\} (\d+)`).FindAllStringSubmatch(got, -1) {
				series[m[1]] = m[2]
			}
			if diff := cmp.Diff(want, series); diff != "" {
				t.Errorf("%s, all in %v (-want +got):\n%s", metric, only, diff)
			}
		}
	}
}

// TestMetricsBound checks the formula in metrics.md for the greatest number of series.
func TestMetricsBound(t *testing.T) {
	const limit, collected, idle = 256, 3, 50
	address := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 443)
	}
	everyState := [len(pool.States)]int{1, 1, 1, 1, 1, 1, 1, 1, 1}
	var s scan.Snapshot
	s.OthersRead = true
	for i := range collected {
		n := scan.Namespace{Name: fmt.Sprint("busy", i), Inode: uint64(i + 1), TCP: scan.TCP{Result: read}}
		n.TCP.Report.Settings.TWReuseDelay, n.TCP.Report.BoundKnown, n.TCP.Report.UnreportedPorts = time.Second, true, everyState
		n.Conntrack = scan.Conntrack{Result: read, Limit: 1, Counted: true}
		n.TimeWait = scan.TimeWait{Result: read}
		n.UDP = udpOf(3, 1, 2, 3)
		for j := range n.UDP.Report.Pools {
			n.UDP.Report.Pools[j].Owners = []pool.Owner{{Cgroup: 1, Ports: 1}, {Cgroup: 2, Ports: 1}, {Cgroup: 3, Ports: 1}}
		}
		s.Namespaces = append(s.Namespaces, n)
	}
	for i := range limit { // the limit is for all namespaces together
		r := &s.Namespaces[i%collected].TCP.Report
		r.Destinations = append(r.Destinations, pool.Destination{
			Source: address(0).Addr(), Address: address(i), Timestamps: pool.Yes, ReusableUnknown: 1, Ports: everyState,
			Owners: []pool.Owner{{Cgroup: 1, Ports: 1}, {Cgroup: 2, Ports: 1}, {Cgroup: 3, Ports: 1}},
		})
		r.Sources = append(r.Sources, pool.Source{Address: address(i).Addr()})
	}
	for i := range idle {
		s.Namespaces = append(s.Namespaces, scan.Namespace{Name: fmt.Sprint("idle", i), Inode: uint64(1000 + i), TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}, TimeWait: scan.TimeWait{Result: scan.Result{Outcome: scan.Idle}, Sockets: 1}})
	}
	s.Cgroups = map[uint64]cgroup.Group{1: {Path: "/"}, 2: {Path: "/a"}, 3: {Path: "/b"}}
	s.Trace = &scan.Trace{MissedRunsKnown: true, BindsCounted: true, ClosesCounted: true} // binds share the limit with connects
	for i := range limit {
		s.Trace.Closes = append(s.Trace.Closes, scan.ClosedPool{Source: address(0).Addr(), Destination: address(i), Closes: 1})
		s.Trace.Pools = append(s.Trace.Pools, scan.FailedPool{Source: address(0).Addr(), Destination: address(i)})
	}

	b, err := os.ReadFile("../deploy/docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`series = (\d+) × max\(limit, collected\) \+ 2 × limit \+ (\d+) × collected \+ (\d+) × idle \+ (\d+)\n`).FindSubmatch(b)
	if m == nil {
		t.Fatal("no formula in metrics.md")
	}
	var factors [4]int
	for i := range factors {
		if factors[i], err = strconv.Atoi(string(m[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	want := factors[0]*max(limit, collected) + 2*limit + factors[1]*collected + factors[2]*idle + factors[3]
	if got := strings.Count(samples(t, s), "\n"); got != want {
		t.Errorf("%d series, metrics.md says %s = %d", got, m[0], want)
	}
}

// samples returns an exposition without its comments.
func samples(t *testing.T, s scan.Snapshot) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(string(exposition(t, New(s)))) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// TestMetricsOldKernel checks that there is no reuse delay on a kernel without that sysctl.
func TestMetricsOldKernel(t *testing.T) {
	got := exposition(t, New(scan.Snapshot{Namespaces: []scan.Namespace{{Name: scan.Self, TCP: scan.TCP{Result: read}}}}))
	if bytes.Contains(got, []byte("tcp_tw_reuse_delay_seconds")) {
		t.Error("a setting that this kernel does not have")
	}
}

// TestMetricsServersDiffer checks that of connections of which only some use timestamps, there is a share.
func TestMetricsServersDiffer(t *testing.T) {
	d := pool.Destination{Source: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddrPort("10.0.0.2:443")}
	for share, want := range map[float64]bool{0: false, 0.25: true} {
		d.TimestampsShare = share
		got := samples(t, scan.Snapshot{Namespaces: []scan.Namespace{{Name: scan.Self, TCP: scan.TCP{Result: read, Report: pool.Report{Destinations: []pool.Destination{d}}}}}})
		if strings.Contains(got, "destination_timestamps{") != want || want && !strings.Contains(got, `source_ip="10.0.0.1"} 0.25`) {
			t.Errorf("share %v:\n%s", share, got)
		}
	}
}

// TestMetricsBoundUnknown checks that the number of bound ports is absent, not 0, where it is not
// known.
func TestMetricsBoundUnknown(t *testing.T) {
	got := exposition(t, New(scan.Snapshot{Namespaces: []scan.Namespace{{Name: scan.Self, TCP: scan.TCP{Result: read}}}}))
	if bytes.Contains(got, []byte("bound_ports")) {
		t.Error("a number that is not known")
	}
}

// TestMetricsOwnerRemoved checks that a control group that was removed and made anew has one series:
// several with the same labels would fail the whole scrape. Without cgroup2 there are none.
func TestMetricsOwnerRemoved(t *testing.T) {
	d := pool.Destination{
		Source: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddrPort("10.0.0.2:443"),
		Owners: []pool.Owner{{Cgroup: 7, Ports: 5}, {Cgroup: 8, Ports: 4}, {Cgroup: 9, Ports: 3}},
	}
	service := cgroup.Group{Path: "/system.slice/haproxy.service"}
	s := scan.Snapshot{
		Namespaces: []scan.Namespace{{Name: scan.Self, TCP: scan.TCP{Result: read, Report: pool.Report{Destinations: []pool.Destination{d}}}}},
		Cgroups:    map[uint64]cgroup.Group{7: service, 8: {Path: "/system.slice/nginx.service"}, 9: service},
	}
	owners := func() string {
		var lines []string
		for line := range strings.Lines(samples(t, s)) {
			if rest, ok := strings.CutPrefix(line, "ephemeral_port_destination_owner_ports{cgroup="); ok {
				lines = append(lines, rest)
			}
		}
		return strings.Join(lines, "")
	}
	const labels = `,container_id="",destination_ip="10.0.0.2",destination_port="443",netns="self",pod_uid="",source_ip="10.0.0.1"} `
	want := `"/system.slice/haproxy.service"` + labels + "8\n" + `"/system.slice/nginx.service"` + labels + "4\n"
	if diff := cmp.Diff(want, owners()); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
	if s.Cgroups = nil; owners() != "" {
		t.Errorf("owners without cgroup2:\n%s", owners())
	}
}

//go:build linux

package deploy

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"ephemeral_port_exporter/collector"
	"ephemeral_port_exporter/collector/cgroup"
	ports "ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
	"ephemeral_port_exporter/deploy/deploytest"
)

// The fleet that the dashboard must be able to show, with the default of --destination.limit, and
// the part of it that the test makes. Queries read samples in proportion to the hosts' destinations.
const (
	fleetHosts, fleetDestinations = 100, 256
	testHosts, testDestinations   = 2, 128

	fleetRange = time.Hour // the default range of the dashboard
	testRange  = 20 * time.Minute
	testStep   = 15 * time.Second // of scrapes and queries
	testBefore = 15 * time.Minute // the longest range in the queries
)

// chosenHost is the host whose rows the test shows.
const chosenHost = "[::1]:10149"

// fleetEnd is the time of the last sample.
var fleetEnd = time.Date(2026, time.January, 1, 1, 0, 0, 0, time.UTC)

// cartUID is the UID of a pod.
const cartUID = "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b"

// busyHost returns the scan of a host that has all metrics, and as many destinations as the limit
// allows. Its second network namespace connects to the same addresses as the first.
func busyHost(host int) scan.Snapshot {
	capacity := 28232
	namespace := func(name string, inode uint64) scan.Namespace {
		n := scan.Namespace{Name: name, Inode: inode, TCP: scan.TCP{Result: scan.Result{Outcome: scan.Collected}, Duration: time.Millisecond}, TimeWait: scan.TimeWait{Result: scan.Result{Outcome: scan.Collected}, Sockets: 1000, Limit: 262144}}
		n.TCP.Report.Settings = ports.Settings{Timestamps: 1, TWReuseDelay: time.Second, TimeWaitLength: time.Minute}
		n.TCP.Report.CapacityPorts, n.TCP.Report.BoundPorts, n.TCP.Report.BoundKnown, n.TCP.Report.MaxUtilization = capacity, 10, true, 1
		n.Conntrack = scan.Conntrack{Result: scan.Result{Outcome: scan.Collected}, Entries: 200000, Limit: 262144, Counted: true, InsertFailed: 1, Dropped: 1, EarlyDropped: 1}
		n.NAT = scan.NAT{Result: scan.Result{Outcome: scan.Collected}, Report: snat.Report{CapacityPorts: 64512, MaxUtilization: 1}, Duration: time.Millisecond}
		n.UDP = scan.UDP{Result: scan.Result{Outcome: scan.Collected}, Sockets: capacity, Report: ports.UDPReport{CapacityPorts: capacity}}
		for i, family := range ports.UDPFamilies {
			n.UDP.Report.Pools[i] = ports.UDPPool{
				Family: family, Ports: capacity, Utilization: 1, Owners: []ports.Owner{{Cgroup: 1, Ports: 5000}, {Cgroup: 2, Ports: 100}, {Cgroup: 3, Ports: 10}},
			}
		}
		return n
	}
	s := scan.Snapshot{
		OthersRead: true,
		Namespaces: []scan.Namespace{namespace(scan.Self, 1), namespace("pod-1", 2)},
		Cgroups:    map[uint64]cgroup.Group{1: {Path: "/kubepods/pod" + cartUID, Workload: cgroup.Workload{PodUID: cartUID}}, 2: {Path: "/a"}, 3: {Path: "/b"}},
		Trace: &scan.Trace{
			MissedRunsKnown: true, Unattributed: 1, BindsCounted: true, BindsUnattributed: 1, ClosesCounted: true, ClosesUnattributed: 1,
		},
	}
	s.Namespaces[0].Cilium = scan.Cilium{Result: scan.Result{Outcome: scan.Collected}, Found: true, Counted: true, Unassigned: 1}
	source := netip.AddrFrom4([4]byte{10, 1, 0, byte(host)})
	for i := range testDestinations {
		n := &s.Namespaces[i%2]
		address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 2 >> 8), byte(i / 2)}), 443)
		if i/2%8 == 0 {
			address = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i/2)), 443)
		}
		d := ports.Destination{
			Source: source, Address: address, Timestamps: ports.Yes, CloseRate: 400, Ceiling: 450, Exhaustion: 30, SureExhaustion: 30,
			Utilization: 1 - float64(i)/1000, Reusable: 100,
			Owners: []ports.Owner{{Cgroup: 1, Ports: 5000}, {Cgroup: 2, Ports: 100}, {Cgroup: 3, Ports: 10}},
		}
		for state := range d.Ports {
			d.Ports[state] = capacity / 10
		}
		n.TCP.Report.Destinations = append(n.TCP.Report.Destinations, d)
		n.TCP.Report.Sources = append(n.TCP.Report.Sources, ports.Source{Address: address.Addr(), Ports: 100, Bound: 90, Capacity: capacity, Utilization: 0.5})
		nat := snat.Pool{
			Protocol: []snat.Protocol{snat.TCP, snat.UDP}[i/2%2], Source: source, Address: address, Reusable: 100, Cilium: i%4 == 0, Capacity: 32768,
			Utilization: 1 - float64(i)/1000, SearchFailure: 1 - float64(i)/1000, Ceiling: math.Inf(1),
		}
		for client := range snat.MaxClients {
			nat.Clients = append(nat.Clients, snat.Client{Address: netip.AddrFrom4([4]byte{10, 2, 0, byte(client)}), Ports: 100 - client})
		}
		for state := range nat.Ports {
			nat.Ports[state] = 5000
		}
		n.NAT.Report.Pools = append(n.NAT.Report.Pools, nat)
		s.Trace.Pools = append(s.Trace.Pools, scan.FailedPool{
			Netns: n.Name, Cgroup: s.Cgroups[1], Source: source, Destination: address, Failures: uint64(1 + i),
		})
		for group := uint64(1); group <= 3; group++ {
			s.Trace.Closes = append(s.Trace.Closes, scan.ClosedPool{
				Netns: n.Name, Cgroup: s.Cgroups[group], Source: source, Destination: address, Closes: uint64(1000*i) + group,
			})
		}
		s.Trace.Binds = append(s.Trace.Binds, scan.FailedBind{
			Netns: n.Name, Cgroup: s.Cgroups[1], Source: address.Addr(), UDP: i/2%2 == 0, Failures: uint64(1 + i),
		})
	}
	return s
}

// series returns the series of a host, each a line of the text format without a value, with the
// value. They have the labels that Prometheus adds, and some metrics that are not of the collector.
func series(t *testing.T, host int) map[string]string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector.New(busyHost(host)))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			t.Fatal(err)
		}
	}
	alert := `{alertname="EphemeralPortsExhausted",severity="critical",netns="self",source_ip="10.1.0.0",destination_ip="10.0.0.%d",destination_port="443"%s} 1` + "\n"
	for i := range testDestinations {
		fmt.Fprintf(&text, "ALERTS"+alert, i, `,alertstate="firing"`)
		fmt.Fprintf(&text, "ALERTS_FOR_STATE"+alert, i, "")
	}
	if host == 0 { // and kube-state-metrics
		fmt.Fprintf(&text, "kube_pod_info{uid=%q,namespace=\"shop\",pod=\"cart-0\",host_ip=\"::1\"} 1\n", cartUID)
		text.WriteString(`kube_service_info{uid="1",namespace="shop",service="db",cluster_ip="10.0.0.1"} 1` + "\n")
	}
	text.WriteString("ephemeral_port_exporter_build_info 1\nup 1\nprocess_start_time_seconds 1\nprocess_cpu_seconds_total 1\nprocess_resident_memory_bytes 1\n")

	instance := chosenHost
	if host > 0 {
		instance = fmt.Sprintf("host-%d:10149", host)
	}
	labels := fmt.Sprintf(`{job="ephemeral_port",instance=%q,`, instance)
	all := map[string]string{}
	for line := range strings.Lines(text.String()) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		name, value := line[:i], strings.TrimSpace(line[i:])
		if strings.Contains(name, "{") {
			name = strings.Replace(name, "{", labels, 1)
		} else {
			name += strings.TrimSuffix(labels, ",") + "}"
		}
		all[name] = value
	}
	return all
}

// makeFleet writes the samples of the hosts into the data directory of Prometheus, and those of the recording
// rules, as the rules make them.
func makeFleet(t *testing.T, data string) {
	t.Helper()
	promtool := deploytest.Tool(t, "promtool", "prometheus")
	path := filepath.Join(t.TempDir(), "fleet.txt")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	for host := range testHosts {
		for name, value := range series(t, host) {
			for at := fleetEnd.Add(-testRange - testBefore); !at.After(fleetEnd); at = at.Add(testStep) {
				if strings.Contains(name, "_total{") && (strings.Contains(name, "_conntrack_") || strings.Contains(name, "_closes_") || strings.Contains(name, "_cilium_")) {
					value = strconv.FormatInt(at.Unix(), 10) // these rise
				}
				fmt.Fprintf(w, "%s %s %d\n", name, value, at.Unix())
			}
		}
	}
	fmt.Fprintln(w, "# EOF")
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	deploytest.Run(t, promtool, "tsdb", "create-blocks-from", "openmetrics", "--quiet", path, data)
	for range 2 { // some rules read what others have recorded
		stop := prometheusOf(t, data)
		deploytest.Run(t, promtool, "tsdb", "create-blocks-from", "rules", "--url=http://127.0.0.1:9090",
			"--start="+fleetEnd.Add(-testRange-testBefore).Format(time.RFC3339), "--end="+fleetEnd.Format(time.RFC3339),
			"--eval-interval="+testStep.String(), "--output-dir="+data, "prometheus/rules.yml")
		stop()
	}
}

// prometheusOf runs Prometheus on a data directory, without targets, until the test ends or stop is called.
func prometheusOf(t *testing.T, data string) (stop func()) {
	t.Helper()
	cmd := background(t, deploytest.Tool(t, "prometheus", "prometheus"),
		"--config.file="+deploytest.Write(t, t.TempDir(), "prometheus.yml", ""), "--storage.tsdb.path="+data,
		"--storage.tsdb.retention.time=100y", "--storage.tsdb.allow-overlapping-blocks", "--web.listen-address=127.0.0.1:9090")
	waitFor(t, "vector(1)")
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}
}

// An answer is that of Prometheus to a query, with what it cost.
type answer struct {
	Data struct {
		Result []struct{ Metric map[string]string }
		Stats  struct {
			Samples struct{ TotalQueryableSamples, PeakSamples int }
		}
	}
}

// TestDashboardFleet asks every query of the dashboard about hosts that have as many series as the
// limits allow. Each has an answer, each line a name of its own, and no query reads more samples of a
// fleet than Prometheus reads in 2 s, or holds more in memory than it allows.
func TestDashboardFleet(t *testing.T) {
	if testing.Short() {
		t.Skip("short: makes two million samples")
	}
	// Prometheus's default of --query.max-samples is 50 million. In 2 s, Prometheus 2.42 reads more than 4 million
	// samples, or looks up more than 500,000 series: of 100 hosts, the dearest query took 0.8 s of CPU time for 308,000.
	const maxPeak, maxPeakInstant, maxRead = 50_000_000, 500_000, 4_000_000
	data := t.TempDir()
	makeFleet(t, data)
	prometheusOf(t, data)
	for _, p := range readDashboard(t).all() {
		lines := map[string]int{}
		named := 0 // queries whose series have the name of a metric
		for _, target := range p.Targets {
			expr := fillIn(target.Expr, chosenHost, testRange)
			step := time.Duration(0)
			if target.Range {
				step = max(testStep, parse(t, p.Interval))
			}
			a := ask(t, expr, step)
			if len(a.Data.Result) == 0 {
				t.Errorf("%s: no answer to %s", p.Title, expr)
			}
			if len(a.Data.Result) > 0 && a.Data.Result[0].Metric["__name__"] != "" {
				named++
			}
			for _, r := range a.Data.Result {
				lines[legend(target.LegendFormat, r.Metric)]++
			}

			// The statistics count what "@ end()" reads once for each step, but Prometheus reads it once.
			peak, read := a.Data.Stats.Samples.PeakSamples, a.Data.Stats.Samples.TotalQueryableSamples
			if worst := topk.FindStringSubmatch(target.Expr); worst != nil {
				rest := strings.ReplaceAll(target.Expr, " and "+worst[0], "")
				read = ask(t, fillIn(rest, chosenHost, testRange), step).Data.Stats.Samples.TotalQueryableSamples +
					ask(t, fillIn(worst[1]+")", chosenHost, testRange), 0).Data.Stats.Samples.TotalQueryableSamples
			}
			scale := fleetDestinations / testDestinations
			if target.Range {
				scale *= int(fleetRange / testRange)
			}
			if !strings.Contains(expr, "instance=") {
				scale *= fleetHosts / testHosts
			}
			t.Logf("%s %s: %d,000 samples read, %d,000 in memory", p.Title, target.RefID, scale*read/1000, scale*peak/1000)
			if scale*read > maxRead || scale*peak > maxPeak || !target.Range && scale*peak > maxPeakInstant {
				t.Errorf("%s: for the fleet, Prometheus reads %d samples and holds %d: %s", p.Title, scale*read, scale*peak, expr)
			}
		}
		if p.Type == "table" && named > 1 {
			t.Errorf("%s: %d queries with names: Grafana merges only rows whose labels are the same", p.Title, named)
		}
		if p.Type != "timeseries" {
			continue
		}
		if len(lines) > 20 {
			t.Errorf("%s: %d lines", p.Title, len(lines))
		}
		for line, n := range lines {
			if n > 1 {
				t.Errorf("%s: %d lines with the name %q", p.Title, n, line)
			}
		}
	}
}

// parse returns a duration, or 0 if there is none.
func parse(t *testing.T, duration string) time.Duration {
	t.Helper()
	if duration == "" {
		return 0
	}
	d, err := time.ParseDuration(duration)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// ask asks Prometheus about the end of the time of the samples, or about all of it, in steps.
func ask(t *testing.T, expr string, step time.Duration) answer {
	t.Helper()
	values := url.Values{"query": {expr}, "stats": {"all"}, "time": {fmt.Sprint(fleetEnd.Unix())}}
	path := "query"
	if step > 0 {
		path = "query_range"
		values.Set("start", fmt.Sprint(fleetEnd.Add(-testRange).Unix()))
		values.Set("end", fmt.Sprint(fleetEnd.Unix()))
		values.Set("step", fmt.Sprint(step.Seconds()))
	}
	var a answer
	if err := getJSON("http://127.0.0.1:9090/api/v1/"+path+"?"+values.Encode(), &a); err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return a
}

var legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)

// legend returns the name of a line.
func legend(format string, labels map[string]string) string {
	return legendLabel.ReplaceAllStringFunc(format, func(s string) string { return labels[s[2:len(s)-2]] })
}

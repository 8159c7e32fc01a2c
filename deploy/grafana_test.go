//go:build linux

package deploy

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/deploy/deploytest"
)

// dashboard is the part of Grafana's classic dashboard model that the tests check.
type dashboard struct {
	Inputs        any `json:"__inputs"`
	SchemaVersion int
	Title, UID    string
	Time          struct{ From, To string }
	Panels        []panel
	Annotations   struct{ List []struct{ Expr string } }
	Templating    struct{ List []variable }
}

// all returns the panels that are not rows, also those of collapsed rows.
func (d dashboard) all() []panel {
	var all []panel
	for _, p := range d.Panels {
		if p.Type != "row" {
			all = append(all, p)
		}
		all = append(all, p.Panels...)
	}
	return all
}

type datasource struct{ Type, UID string }

type variable struct {
	Name, Type string
	Datasource datasource
	Query      any
	Definition string
	Regex      string
	Sort       int
}

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               datasource
	GridPos                  struct{ X, Y, W, H int }
	Interval                 string
	FieldConfig              struct {
		Defaults struct {
			Unit       string
			Decimals   *int
			Thresholds struct{ Steps []struct{ Value *float64 } }
			Custom     struct{ ThresholdsStyle any }
		}
		Overrides []struct {
			Matcher    struct{ Options string }
			Properties []struct {
				ID    string
				Value any
			}
		}
	}
	Targets []struct {
		RefID        string
		Datasource   datasource
		Expr         string
		LegendFormat string
		Range        bool
	}
	Collapsed bool
	Panels    []panel
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(deploytest.Read(t, "grafana/dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

var fromVariable = datasource{Type: "prometheus", UID: "${datasource}"}

// TestDashboard checks what Grafana 10 and later need from a dashboard.
func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.Inputs != nil || d.SchemaVersion < 39 || d.SchemaVersion > 42 || d.UID == "" || d.Time.From != "now-1h" {
		t.Errorf("inputs %v, schema version %d, uid %q, from %q", d.Inputs, d.SchemaVersion, d.UID, d.Time.From)
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
		if v.Type == "query" && v.Datasource != fromVariable {
			t.Errorf("variable %s: data source %v", v.Name, v.Datasource)
		}
	}
	if want := []string{"datasource", "job", "instance", "netns", "scheme"}; !slices.Equal(variables, want) {
		t.Errorf("variables %v, want %v", variables, want)
	}

	var rows []string
	ids := map[int]bool{}
	var check func(panels []panel)
	check = func(panels []panel) {
		taken := map[[2]int]string{}
		for _, p := range panels {
			if p.ID == 0 || ids[p.ID] {
				t.Errorf("%s: id %d is not its own", p.Title, p.ID)
			}
			ids[p.ID] = true
			g := p.GridPos
			if g.X < 0 || g.W < 1 || g.H < 1 || g.X+g.W > 24 {
				t.Errorf("%s: outside of the grid: %+v", p.Title, g)
			}
			for x := g.X; x < g.X+g.W; x++ {
				for y := g.Y; y < g.Y+g.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" {
						t.Fatalf("%s lies on %s", p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
			if p.Title == "" {
				t.Errorf("panel %d has no title", p.ID)
			}
			if p.Type == "row" {
				title := p.Title
				if p.Collapsed {
					title += " (collapsed)"
				}
				rows = append(rows, title)
				check(p.Panels)
			}
		}
	}
	check(d.Panels)
	want := []string{
		"Now", "Firing alerts", "Worst destinations", "Trend", "Shared destinations", "Source NAT (collapsed)", "UDP (collapsed)",
		"Host: $instance", "Causes on $instance", "Network namespaces (collapsed)", "Exporter on $instance (collapsed)",
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	for _, p := range d.all() {
		if p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("%s: description %q, %d queries", p.Title, p.Description, len(p.Targets))
		}
		if p.Datasource != fromVariable {
			t.Errorf("%s: data source %v", p.Title, p.Datasource)
		}
		for _, target := range p.Targets {
			if target.Datasource != fromVariable {
				t.Errorf("%s: data source %v of query %s", p.Title, target.Datasource, target.RefID)
			}
			if p.Type != "table" && target.LegendFormat == "" {
				t.Errorf("%s: no legend for query %s", p.Title, target.RefID)
			}
			if target.Range != (p.Type == "timeseries") {
				t.Errorf("%s: query %s is of a range: %v", p.Title, target.RefID, target.Range)
			}
		}
	}
}

// TestDashboardUnits checks that ports read as whole numbers: "short" makes 8.08 K of 8080.
func TestDashboardUnits(t *testing.T) {
	for _, p := range readDashboard(t).all() {
		units := []any{p.FieldConfig.Defaults.Unit}
		for _, o := range p.FieldConfig.Overrides {
			for _, property := range o.Properties {
				if property.ID == "unit" {
					units = append(units, property.Value)
				}
			}
		}
		for _, u := range units {
			if !slices.Contains([]any{"none", "percentunit", "s", "bytes", "suffix:/s", "dateTimeFromNow"}, u) {
				t.Errorf("%s: unit %q", p.Title, u)
			}
		}
		if d := p.FieldConfig.Defaults; d.Unit == "none" && (d.Decimals == nil || *d.Decimals != 0) {
			t.Errorf("%s: numbers with decimals", p.Title)
		}
	}
}

// TestDashboardThresholds checks that no data is not green, and that no line is drawn at 0.
func TestDashboardThresholds(t *testing.T) {
	for _, p := range readDashboard(t).all() {
		d := p.FieldConfig.Defaults
		if p.Type == "stat" && (len(d.Thresholds.Steps) < 2 || d.Thresholds.Steps[1].Value == nil || *d.Thresholds.Steps[1].Value != 0) {
			t.Errorf("%s: the color of no data is that of 0", p.Title)
		}
		for _, step := range d.Thresholds.Steps {
			if d.Custom.ThresholdsStyle != nil && step.Value != nil && *step.Value < 0.01 {
				t.Errorf("%s: a line at %v", p.Title, *step.Value)
			}
		}
	}
}

// TestDashboardLinks checks that each table row with a host leads to the rows of the host, each with a
// destination to the status page, and each with an alert to its chapter of the runbook.
func TestDashboardLinks(t *testing.T) {
	d := readDashboard(t)
	want := map[string]string{
		"Host":        "/d/" + d.UID + "?${datasource:queryparam}&${job:queryparam}&${scheme:queryparam}&var-instance=${__data.fields.Host:percentencode}&${__url_time_range}",
		"Alert":       "$scheme://${__data.fields.Host}/runbook#${__data.fields.Alert}",
		"Destination": "$scheme://${__data.fields.Host}/?destination=${__data.fields.Destination:percentencode}",
	}
	found := map[string]int{}
	for _, p := range d.all() {
		if p.Type != "table" {
			continue
		}
		for _, o := range p.FieldConfig.Overrides {
			for _, property := range o.Properties {
				if property.ID != "links" || want[o.Matcher.Options] == "" {
					continue
				}
				link := property.Value.([]any)[0].(map[string]any)
				if link["url"] != want[o.Matcher.Options] {
					t.Errorf("%s: %s leads to %v", p.Title, o.Matcher.Options, link["url"])
				}
				found[o.Matcher.Options]++
			}
		}
	}
	if found["Host"] != 5 || found["Destination"] != 3 || found["Alert"] != 1 {
		t.Errorf("links of columns: %v", found)
	}
}

// fillIn replaces the variables in a query by values, as the data source of Grafana does it.
func fillIn(expr, instance string, within time.Duration) string {
	s := int(within.Seconds())
	return strings.NewReplacer(
		"$job", "ephemeral_port", "$instance", instance, "$netns", ".*",
		"$__rate_interval", "1m", "$__range", fmt.Sprintf("%ds", s), "$__interval", "1m",
	).Replace(expr)
}

// topk matches the forms of topk() whose series are the same at each step, with the function of the range.
var topk = regexp.MustCompile(`topk\(10, ((?:max_over_time|increase)\([^()]+\[\$__range\]) @ end\(\)\)(?: > 0)?\)`)

// TestDashboardQueries checks the queries with promtool, and that their metrics exist.
func TestDashboardQueries(t *testing.T) {
	metrics := deploytest.Read(t, "../collector/testdata/metrics.prom")
	var rules struct {
		Groups []struct {
			Rules []struct{ Record, Expr string }
		}
	}
	deploytest.Unmarshal(t, "prometheus/rules.yml", &rules)
	recorded := map[string]string{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			recorded[r.Record] = r.Expr
		}
	}
	d := readDashboard(t)
	metric := regexp.MustCompile(`(?:\w+:)?ephemeral_port_\w+(?::\w+)?`)
	unused := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\w+) `).FindAllStringSubmatch(metrics, -1) {
		unused[m[1]] = true
	}
	var use func(expr, where string)
	use = func(expr, where string) {
		for _, name := range metric.FindAllString(expr, -1) {
			switch name {
			case "ephemeral_port_connect_failures_", "ephemeral_port_": // of several, by a regular expression
				continue
			case "ephemeral_port_exporter_build_info": // not of the collector
				continue
			}
			delete(unused, name)
			if expr, ok := recorded[name]; ok {
				use(expr, where)
			} else if !strings.Contains(metrics, "\n# TYPE "+name+" ") {
				t.Errorf("%s: no such metric: %s", where, name)
			}
		}
	}

	var file strings.Builder
	file.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	check := func(where, expr string) {
		filled := fillIn(expr, "localhost:10149", time.Hour)
		if strings.Contains(filled, "$") && !strings.Contains(filled, "[$1]") {
			t.Errorf("%s: unknown variable in %s", where, expr)
		}
		if !strings.Contains(expr, `job=~"$job"`) {
			t.Errorf("%s: a query about every job: %s", where, expr)
		}
		if strings.Contains(expr, "vector(") {
			t.Errorf("%s: a number where there is no data: %s", where, expr)
		}
		if strings.Contains(expr, "instance=~") {
			t.Errorf("%s: the host as a regular expression: %s", where, expr)
		}
		fmt.Fprintf(&file, "      - {record: 'panel:%s', expr: '%s'}\n", strings.ToLower(regexp.MustCompile(`\W`).ReplaceAllString(where, "_")), filled)
		use(expr, where)
	}
	for _, p := range d.all() {
		for _, target := range p.Targets {
			check(p.Title+" "+target.RefID, target.Expr)
			n := len(topk.FindAllStringSubmatch(target.Expr, -1))
			if target.Range && strings.Count(target.Expr, "topk(") != n {
				t.Errorf("%s: series that come and go: %s", p.Title, target.Expr)
			}
		}
	}
	for _, a := range d.Annotations.List {
		if !strings.Contains(a.Expr, "ALERTS{") {
			t.Errorf("an annotation is not about alerts: %s", a.Expr)
		}
		check("annotation", a.Expr)
	}
	deploytest.Run(t, deploytest.Tool(t, "promtool", "prometheus"), "check", "rules", "--lint=none", deploytest.Write(t, t.TempDir(), "dashboard.yml", file.String()))

	// These have no place: snat_max_utilization_ratio has unreported pools too, an alert is about pools of which
	// nothing is known, bursts mislead the first of two forecasts, ports of unknown reuse count as used and
	// are rare, and expired failures are a part of a recorded number.
	for _, name := range []string{
		"ephemeral_port_connect_failures_expired_total", "ephemeral_port_bind_failures_expired_total", "ephemeral_port_destination_closes_expired_total",
		"ephemeral_port_destination_closes_unattributed_total",
		"ephemeral_port_destination_exhaustion_seconds", "ephemeral_port_snat_unreported_pools", "ephemeral_port_snat_unreported_ports", "ephemeral_port_snat_unreported_max_utilization_ratio", "ephemeral_port_snat_outside_flows", "ephemeral_port_snat_unknown_pools", "ephemeral_port_destination_reusable_unknown_ports",
	} {
		delete(unused, name)
	}
	if len(unused) > 0 {
		t.Errorf("metrics without a place: %v", unused)
	}
}

// TestDashboardHosts checks that the variable for the host begins with the worst one.
func TestDashboardHosts(t *testing.T) {
	for _, v := range readDashboard(t).Templating.List {
		if v.Name != "instance" {
			continue
		}
		if v.Sort != 0 || !strings.HasPrefix(v.Definition, "query_result(sort_desc(") || v.Query.(map[string]any)["query"] != v.Definition {
			t.Errorf("sort %d of %v, %s", v.Sort, v.Query, v.Definition)
		}
		m := regexp.MustCompile(strings.Trim(v.Regex, "/")).FindStringSubmatch(`{instance="[::1]:10149"} 0.9 1767225600000`)
		if m == nil || m[1] != "[::1]:10149" {
			t.Errorf("the host is %q", m)
		}
	}
}

// TestDashboardFailures checks that each failed connect is drawn once: also the first one to a destination, and
// those after a restart of the exporter. Lost scrapes draw none.
func TestDashboardFailures(t *testing.T) {
	const series = `ephemeral_port_connect_failures_total{job="ephemeral_port", instance="[::1]:10149", netns="self", cgroup="/a", source_ip="10.0.0.1", destination_ip="10.0.0.2", destination_port="443"}`
	rules, err := filepath.Abs("prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file strings.Builder
	fmt.Fprintf(&file, `rule_files: [%s]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - {series: '%s', values: '_x9 5x8 stale _x11 5x8 9x8 2x20'}
      - {series: 'ephemeral_port_connect_failures_unattributed_total{job="ephemeral_port", instance="[::1]:10149"}', values: '0x17 stale _x11 0x40'}
      - {series: 'ephemeral_port_connect_failures_expired_total{job="ephemeral_port", instance="[::1]:10149"}', values: '0x17 stale _x11 0x40'}
    promql_expr_test:
`, rules, series)
	panels := 0
	for _, p := range readDashboard(t).all() {
		if !strings.HasPrefix(p.Title, "Failed connects") || p.Type != "timeseries" {
			continue
		}
		panels++
		expr := "sum by (__name__) (" + fillIn(p.Targets[0].Expr, chosenHost, time.Hour) + ")"
		for minute, want := range map[int]string{3: "5", 4: "0", 5: "", 7: "", 8: "0", 9: "0", 10: "4", 11: "0", 12: "2", 13: "0"} {
			if want != "" {
				want = "{labels: '{}', value: " + want + "}"
			}
			fmt.Fprintf(&file, "      - {expr: '%s', eval_time: %dm, exp_samples: [%s]}\n", expr, minute, want)
		}
	}
	if panels != 2 {
		t.Errorf("%d panels of failed connects", panels)
	}
	deploytest.Run(t, deploytest.Tool(t, "promtool", "prometheus"), "test", "rules", deploytest.Write(t, t.TempDir(), "failures.yml", file.String()))
}

// TestDashboardPods checks that owners are pods with kube-state-metrics, and control groups without: all queries have
// the same rows.
func TestDashboardPods(t *testing.T) {
	const host = `job="ephemeral_port", instance="` + chosenHost + `", netns="self"`
	const to = host + `, source_ip="10.0.0.1", destination_ip="10.0.0.2", destination_port="443"`
	rules, err := filepath.Abs("prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file strings.Builder
	fmt.Fprintf(&file, "rule_files: [%s]\nevaluation_interval: 15s\ntests:\n", rules)
	for _, kube := range []bool{false, true} {
		owners := map[string]string{"/system.slice/a.service": "", "/kubepods/cart": cartUID}
		fmt.Fprintf(&file, "  - interval: 15s\n    input_series:\n")
		add := func(name, labels, values string) {
			fmt.Fprintf(&file, "      - {series: '%s{%s}', values: '%s'}\n", name, labels, values)
		}
		add("ephemeral_port_destination_utilization_ratio", to, "0.3x40")
		add("ephemeral_port_max_utilization_ratio", host, "0.3x40")
		add("ephemeral_port_max_utilization_ratio", strings.Replace(host, "self", "pod", 1), "0.3x40")
		add("ephemeral_port_netns_info", strings.Replace(host, "self", "pod", 1)+`, pod_uid="`+cartUID+`"`, "1x40")
		add("ephemeral_port_netns_info", host, "1x40")
		add("ephemeral_port_udp_capacity_ports", host, "1000x40")
		add("ephemeral_port_connect_failures_unattributed_total", host, "0x40")
		add("ephemeral_port_bind_failures_unattributed_total", host, "0x40")
		for cgroup, uid := range owners {
			owner := fmt.Sprintf(`, cgroup=%q, pod_uid=%q, container_id=%q`, cgroup, uid, uid)
			source, udp := host+`, protocol="tcp", source_ip="10.0.0.1"`, host+`, family="dual_stack"`
			if uid == "" {
				source, udp = strings.Replace(source, "tcp", "udp", 1), strings.Replace(udp, "dual_stack", "ipv4", 1)
			}
			add("ephemeral_port_destination_owner_ports", to+owner, fmt.Sprint(100+len(uid), "x40"))
			add("ephemeral_port_connect_failures_total", to+owner, "0+1x40")
			add("ephemeral_port_destination_closes_total", to+owner, "0+1x40")
			add("ephemeral_port_bind_failures_total", source+owner, "0+1x40")
			add("ephemeral_port_udp_owner_ports", udp+owner, "100x40")
			add("ephemeral_port_udp_utilization_ratio", udp, "0.3x40")
		}
		add("ephemeral_port_destination_owner_ports", to+`, cgroup="/kubepods/cart-sidecar", pod_uid="`+cartUID+`", container_id="2"`, "50x40")
		pod, uid := "/kubepods/cart", cartUID
		if kube {
			pod, uid = "shop/cart-0", "shop/cart-0"
			add("kube_pod_info", `uid="`+cartUID+`", namespace="shop", pod="cart-0"`, "1x40")
		}
		file.WriteString("    promql_expr_test:\n")
		queries := 0
		for _, p := range readDashboard(t).all() {
			for _, target := range p.Targets {
				if !regexp.MustCompile("kube_pod_info|worst_owner").MatchString(target.Expr) {
					continue
				}
				queries++
				label, want, count := "cgroup", []string{pod, "/system.slice/a.service"}, "count"
				switch p.Title {
				case "Firing alerts": // several
					count = "group"
				case "Open connections by owner":
					if !kube {
						want = append(want, "/kubepods/cart-sidecar")
					}
				case "Worst network namespaces":
					label, want = "pod_uid", []string{uid, ""}
				case "Owners of UDP ports":
					want = []string{pod}
				case "Worst destinations": // the pod with most, of all containers
					want = []string{pod}
				}
				var samples []string
				for _, owner := range want {
					labels := fmt.Sprintf(`{%s="%s"}`, label, owner)
					if owner == "" {
						labels = "{}"
					}
					samples = append(samples, fmt.Sprintf("{labels: '%s', value: 1}", labels))
				}
				fmt.Fprintf(&file, "      - {expr: '%s by (%s) (%s)', eval_time: 10m, exp_samples: [%s]}\n", count, label, fillIn(target.Expr, chosenHost, 10*time.Minute), strings.Join(samples, ", "))
			}
		}
		if queries < 8 {
			t.Errorf("%d queries about owners", queries)
		}
	}
	deploytest.Run(t, deploytest.Tool(t, "promtool", "prometheus"), "test", "rules", deploytest.Write(t, t.TempDir(), "pods.yml", file.String()))
}

// testDashboardQueries runs queries in the live Prometheus of an end-to-end test: those about failed
// connects, or all others. TestDashboardFleet has those that need more than one host, a kernel that tells of failed binds,
// clients that bind first or close again and again, many UDP sockets, source NAT, or kube-state-metrics.
func testDashboardQueries(t *testing.T, failures bool) {
	asked := 0
	for _, p := range readDashboard(t).all() {
		for _, target := range p.Targets {
			if regexp.MustCompile("connect_failures|port_trace_").MatchString(target.Expr) != failures || strings.Contains(target.Expr, "bind_failures") || regexp.MustCompile("shared|bind_first|kube_service|closes_total|_(snat|conntrack|udp)_").MatchString(target.Expr) {
				continue
			}
			asked++
			waitFor(t, fillIn(target.Expr, "localhost:10149", time.Hour))
		}
	}
	if asked == 0 {
		t.Error("no query")
	}
}

// TestGrafanaProvisioning checks the address of Prometheus, and that there is a path of dashboards.
func TestGrafanaProvisioning(t *testing.T) {
	var sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct{ Name, Type, URL string }
	}
	deploytest.Unmarshal(t, "grafana/provisioning/datasources/prometheus.yml", &sources)
	if sources.APIVersion != 1 || len(sources.Datasources) != 1 || sources.Datasources[0].Type != "prometheus" || sources.Datasources[0].URL != "http://localhost:9090" {
		t.Errorf("data sources: %+v", sources)
	}
	var dashboards struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Type string
			Options    struct{ Path string }
		}
	}
	deploytest.Unmarshal(t, "grafana/provisioning/dashboards/ephemeral_port.yml", &dashboards)
	if dashboards.APIVersion != 1 || len(dashboards.Providers) != 1 || dashboards.Providers[0].Type != "file" || dashboards.Providers[0].Options.Path == "" {
		t.Errorf("dashboards: %+v", dashboards)
	}
}

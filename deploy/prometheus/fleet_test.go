//go:build linux

package prometheus

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"

	"ephemeral_port_exporter/deploy/deploytest"
)

// A rulesTest is one test of "promtool test rules".
type rulesTest struct {
	Name     string `yaml:",omitempty"`
	Interval string
	Series   []inputSeries `yaml:"input_series"`
	Exprs    []exprTest    `yaml:"promql_expr_test"`
}

type inputSeries struct{ Series, Values string }

type exprTest struct {
	Expr    string
	Time    string   `yaml:"eval_time"`
	Samples []sample `yaml:"exp_samples"`
}

type sample struct {
	Labels string
	Value  float64
}

// add adds a series.
func (r *rulesTest) add(name, labels, values string) {
	r.Series = append(r.Series, inputSeries{Series: name + "{" + labels + "}", Values: values})
}

// expect adds a query half an hour after the start. want has labels and a value for each series of the result.
func (r *rulesTest) expect(expr string, want map[string]float64) {
	e := exprTest{Expr: expr, Time: "30m"}
	for labels, value := range want {
		e.Samples = append(e.Samples, sample{labels, value})
	}
	r.Exprs = append(r.Exprs, e)
}

// testRules runs promtool on tests of the shipped rules, with that interval of scrapes and evaluations.
func testRules(t *testing.T, interval string, tests ...rulesTest) {
	t.Helper()
	rules, err := filepath.Abs("rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	for i := range tests {
		tests[i].Interval = interval
	}
	b, err := yaml.Marshal(map[string]any{"rule_files": []string{rules}, "evaluation_interval": interval, "tests": tests})
	if err != nil {
		t.Fatal(err)
	}
	runPromtool(t, "test", "rules", deploytest.Write(t, t.TempDir(), "test.yml", string(b)))
}

// scrapes is the number of scrapes every 15 s in half an hour.
const scrapes = 121

// repeat repeats the values for half an hour at least.
func repeat(values ...string) string {
	all := make([]string, scrapes)
	for i := range all {
		all[i] = values[i%len(values)]
	}
	return strings.Join(all, " ")
}

const (
	proxy = `job="ephemeral_port", instance="proxy-1:10149", netns="self"`
	pool  = proxy + `, source_ip="10.0.0.1", destination_ip="10.0.0.2", destination_port="443"`
)

// TestRulesSwing checks alerts on values that swing from scrape to scrape: each one fires
// from a certain minute on without a gap, or never.
func TestRulesSwing(t *testing.T) {
	// Connects fail at the ceiling, but 70% of the scrapes are less than 0.98.
	exhausted := make([]string, scrapes)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // The same in each run.
	for i := range exhausted {
		exhausted[i] = "0.97"
		if i == 0 || random.Float64() < 0.3 {
			exhausted[i] = "1"
		}
	}
	once := "0.5x9 1 0.5x109"
	type values map[string]string
	var tests []rulesTest
	for _, tc := range []struct {
		alert string
		from  int // seconds after the start, or 0 for never
		of    values
	}{
		{"EphemeralPortsExhausted", 15, values{"ephemeral_port_destination_utilization_ratio": strings.Join(exhausted, " ")}},
		{"EphemeralPortsNearlyExhausted", 165, values{"ephemeral_port_destination_utilization_ratio": repeat("0.7", "0.7", "0.8")}},
		{"EphemeralPortsNearlyExhausted", 0, values{"ephemeral_port_destination_utilization_ratio": once}},
		{"EphemeralPortsHalfUsed", 345, values{
			"ephemeral_port_destination_utilization_ratio": repeat("0.4", "0.4", "0.5"),
			"ephemeral_port_destination_closes_per_second": repeat("600"),
		}},
		{"EphemeralPortsHalfUsed", 0, values{
			"ephemeral_port_destination_utilization_ratio": "0.4x9 1 0.4x109",
			"ephemeral_port_destination_closes_per_second": repeat("600"),
		}},
		{"EphemeralPortsHalfUsed", 0, values{"ephemeral_port_destination_utilization_ratio": repeat("0.4", "0.5", "0.6")}},
		{"EphemeralPortsWorstUnreported", 165, values{"ephemeral_port_max_utilization_ratio": repeat("0.7", "0.7", "0.8")}},
		{"EphemeralPortsWorstUnreported", 0, values{ // the two are not high in the same scrape
			"ephemeral_port_max_utilization_ratio":         repeat("0.7", "0.7", "0.8"),
			"ephemeral_port_destination_utilization_ratio": repeat("0.7", "0.8", "0.7"),
		}},
		{"EphemeralPortsPossiblyExhausted", 345, values{"ephemeral_port_max_possible_utilization_ratio": repeat("0.7", "0.7", "0.8")}},
		{"EphemeralPortsPossiblyExhausted", 0, values{
			"ephemeral_port_max_possible_utilization_ratio": repeat("0.8"),
			"ephemeral_port_max_utilization_ratio":          repeat("0.7", "0.7", "0.8"),
		}},
		{"EphemeralPortsRateNearCeiling", 105, values{
			"ephemeral_port_destination_closes_per_second":           repeat("86", "100"),
			"ephemeral_port_destination_ceiling_requests_per_second": repeat("100"),
			"ephemeral_port_destination_utilization_ratio":           repeat("0.4", "0.4", "0.5"),
		}},
		{"EphemeralPortsRateNearCeiling", 0, values{
			"ephemeral_port_destination_closes_per_second":           repeat("20", "100", "100"),
			"ephemeral_port_destination_ceiling_requests_per_second": repeat("100"),
			"ephemeral_port_destination_utilization_ratio":           repeat("0.7"),
		}},
		{"EphemeralPortsExhaustionPredicted", 15, values{"ephemeral_port_destination_sure_exhaustion_seconds": repeat("40", "40", "40", "40", "Inf")}},
		{"EphemeralPortsExhaustionPredicted", 0, values{"ephemeral_port_destination_sure_exhaustion_seconds": repeat("Inf", "Inf", "40")}},
		{"EphemeralPortsSourceNearlyExhausted", 180, values{
			"ephemeral_port_source_utilization_ratio": repeat("0.7", "0.7", "0.8"),
			"ephemeral_port_source_bound_ports":       repeat("800"),
			"ephemeral_port_source_ports":             repeat("800"),
		}},
		{"EphemeralPortsCloseWait", 660, values{`ephemeral_port_destination_ports`: repeat("150", "300")}},
		{"EphemeralPortsCloseWait", 0, values{`ephemeral_port_destination_ports`: repeat("100", "100", "300")}}, // comes and goes: no leak
		{"EphemeralPortsSynSent", 165, values{`ephemeral_port_destination_ports`: repeat("0", "0", "200")}},
		{"EphemeralPortsCollectFailing", 165, values{"ephemeral_port_collect_success": repeat("1", "1", "0")}},
		{"EphemeralPortsCollectFailing", 0, values{"ephemeral_port_collect_success": "1x9 0 1x109"}},
		{"EphemeralPortsSynSent", 0, values{`ephemeral_port_destination_ports`: "0x9 900 0x109"}},
	} {
		test := rulesTest{}
		for name, v := range tc.of {
			labels := pool
			switch name {
			case "ephemeral_port_max_utilization_ratio", "ephemeral_port_max_possible_utilization_ratio", "ephemeral_port_collect_success":
				labels = proxy
			case "ephemeral_port_destination_ports":
				labels += `, state="` + map[string]string{"EphemeralPortsCloseWait": "close_wait", "EphemeralPortsSynSent": "syn_sent"}[tc.alert] + `"`
			}
			if strings.HasPrefix(name, "ephemeral_port_source_") {
				labels = proxy + `, source_ip="10.0.0.1"`
			}
			test.add(name, labels, v)
		}
		test.add("ephemeral_port_capacity_ports", proxy, repeat("1000"))
		firing := fmt.Sprintf("ALERTS{alertname=%q, alertstate=%q}", tc.alert, "firing")
		if tc.from == 0 {
			test.expect("sum(count_over_time("+firing+"[30m:15s]))", nil)
		} else {
			// The range begins between two evaluations: Prometheus 3 does not include its beginning.
			test.expect(fmt.Sprintf("sum(count_over_time(%s[%ds:15s]))", firing, 30*60-tc.from+5), map[string]float64{"{}": float64((30*60-tc.from)/15 + 1)})
		}
		tests = append(tests, test)
	}

	// One high value fires at once, and no longer than 5 minutes.
	test := rulesTest{}
	test.add("ephemeral_port_destination_utilization_ratio", pool, "0.5x98 1 0.5x20") // at 24m45s
	test.expect(`sum(ALERTS{alertname="EphemeralPortsExhausted", alertstate="firing"} offset 5m15s)`, map[string]float64{"{}": 1})
	test.expect(`sum(ALERTS{alertname="EphemeralPortsExhausted", alertstate="firing"} offset 45s)`, map[string]float64{"{}": 1})
	test.expect(`sum(ALERTS{alertname="EphemeralPortsExhausted", alertstate="firing"})`, nil)
	testRules(t, "15s", append(tests, test)...)
}

// TestRulesFleet checks the rules with 50 hosts in trouble, one of which has an IPv6 address. Half of them
// have pods. Another job scrapes three of them too.
func TestRulesFleet(t *testing.T) {
	test := rulesTest{}
	host := func(job string, i int) {
		instance := fmt.Sprintf("proxy-%d:10149", i)
		if i == 7 {
			instance = "[2001:db8::7]:10149"
		}
		reuse, low, high := "2", "32768", "60999"
		if i == 3 {
			reuse, low, high = "1", "1024", "65535" // the odd host
		}
		netns := func(name, destination, utilization, used string) {
			self := fmt.Sprintf(`job=%q, instance=%q, netns=%q`, job, instance, name)
			to := self + fmt.Sprintf(`, source_ip="10.0.0.1", destination_ip=%q, destination_port="443"`, destination)
			test.add("ephemeral_port_capacity_ports", self, repeat("1000"))
			test.add("ephemeral_port_max_utilization_ratio", self, repeat(utilization))
			test.add("ephemeral_port_tcp_tw_reuse", self, repeat(reuse))
			test.add("ephemeral_port_tcp_timestamps", self, repeat("1"))
			test.add("ephemeral_port_range_low", self, repeat(low))
			test.add("ephemeral_port_range_high", self, repeat(high))
			test.add("ephemeral_port_destination_utilization_ratio", to, repeat(utilization))
			test.add("ephemeral_port_destination_reusable_ports", to, repeat("0"))
			test.add("ephemeral_port_destination_closes_per_second", to, repeat("10"))
			test.add("ephemeral_port_destination_ceiling_requests_per_second", to, repeat("10"))
			test.add("ephemeral_port_destination_ports", to+`, state="close_wait"`, repeat(used))
			test.add("ephemeral_port_destination_ports", to+`, state="time_wait"`, repeat("0"))
		}
		test.add("up", fmt.Sprintf(`job=%q, instance=%q`, job, instance), repeat("1"))
		netns("self", "2001:db8::443", "1", "1000")
		if i%2 == 0 {
			netns("pod", "2001:db8::443", "0.3", "300")
			netns("", "10.0.0.2", "0.1", "100")
		}
	}
	test.add("ephemeral_port:settings_differ", `test="on"`, repeat("1"))
	for i := range 50 {
		host("proxies", i)
	}
	for i := 6; i < 9; i++ {
		host("ephemeral_port", i)
	}

	test.expect(`count by (alertname, job) (ALERTS{alertstate="firing"})`, map[string]float64{
		`{alertname="EphemeralPortsExhausted", job="proxies"}`:              50,
		`{alertname="EphemeralPortsNearlyExhausted", job="proxies"}`:        50,
		`{alertname="EphemeralPortsRateNearCeiling", job="proxies"}`:        100,
		`{alertname="EphemeralPortsCloseWait", job="proxies"}`:              75,
		`{alertname="EphemeralPortsSettingsDiffer", job="proxies"}`:         2,
		`{alertname="EphemeralPortsExhausted", job="ephemeral_port"}`:       3,
		`{alertname="EphemeralPortsNearlyExhausted", job="ephemeral_port"}`: 3,
		`{alertname="EphemeralPortsRateNearCeiling", job="ephemeral_port"}`: 6,
		`{alertname="EphemeralPortsCloseWait", job="ephemeral_port"}`:       5,
	})
	test.expect(`count(ALERTS{instance=""})`, nil)
	test.expect(`count by (instance, setting) (ALERTS{alertname="EphemeralPortsSettingsDiffer", alertstate="firing"})`, map[string]float64{
		`{instance="proxy-3:10149", setting="tcp_tw_reuse"}`:        1,
		`{instance="proxy-3:10149", setting="ip_local_port_range"}`: 1,
	})
	test.expect(`count by (job) (instance:ephemeral_port_utilization:max1m{instance!=""})`, map[string]float64{`{job="proxies"}`: 50, `{job="ephemeral_port"}`: 3})
	test.expect(`instance:ephemeral_port_utilization:max1m{instance="[2001:db8::7]:10149"}`, map[string]float64{
		`instance:ephemeral_port_utilization:max1m{job="proxies", instance="[2001:db8::7]:10149"}`:        1,
		`instance:ephemeral_port_utilization:max1m{job="ephemeral_port", instance="[2001:db8::7]:10149"}`: 1,
	})
	test.expect(`job_destination:ephemeral_port_used_ports:sum{destination_ip="2001:db8::443"}`, map[string]float64{
		`job_destination:ephemeral_port_used_ports:sum{job="proxies", destination_ip="2001:db8::443", destination_port="443"}`:        50*1000 + 25*300,
		`job_destination:ephemeral_port_used_ports:sum{job="ephemeral_port", destination_ip="2001:db8::443", destination_port="443"}`: 3*1000 + 2*300,
	})
	test.expect(`job_destination:ephemeral_port_instances_over_half:count{destination_ip="2001:db8::443"}`, map[string]float64{
		`job_destination:ephemeral_port_instances_over_half:count{job="proxies", destination_ip="2001:db8::443", destination_port="443"}`:        50,
		`job_destination:ephemeral_port_instances_over_half:count{job="ephemeral_port", destination_ip="2001:db8::443", destination_port="443"}`: 3,
	})
	testRules(t, "1m", test)
}

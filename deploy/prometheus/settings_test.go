//go:build linux

package prometheus

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"

	"ephemeral_port_exporter/deploy/deploytest"
)

// settingsGroup is the group of rules.yml with what people change.
const settingsGroup = "ephemeral_port_settings"

var (
	// usedSettings are where an alert reads a setting, and what it takes without it.
	usedSettings = regexp.MustCompile(`scalar\(min\(ephemeral_port:(\w+)\) or vector\(([0-9.]+)\)\)`)

	// setSettings are the lines of the group.
	setSettings = regexp.MustCompile(`\{record: 'ephemeral_port:(\w+)', expr: '([0-9.]+)'\}`)
)

// A settingTest has series on which an alert depends on a setting: it fires with one of the values, and not with the other.
type settingTest struct {
	setting, value string
	alert          string
	severity       string // if it is about that
	series         map[string]string
	reverse        bool // fires with the value only
}

const (
	namespace = `{job="ephemeral_port", instance="proxy-1:10149", netns="self"}`
	to        = `{job="ephemeral_port", instance="proxy-1:10149", netns="self", source_ip="10.0.0.1", destination_ip="10.0.0.2", destination_port="443"}`
)

// in returns the labels of the ports in a state.
func in(state string) string { return strings.TrimSuffix(to, "}") + `, state="` + state + `"}` }

var settingTests = []settingTest{
	{setting: "half_used", value: "0.6", alert: "EphemeralPortsHalfBound", series: map[string]string{
		"ephemeral_port_bound_ports" + namespace: "550x40", "ephemeral_port_capacity_ports" + namespace: "1000x40",
	}},
	{setting: "nearly_exhausted", value: "0.9", alert: "EphemeralPortsNearlyExhausted", series: map[string]string{"ephemeral_port_destination_utilization_ratio" + to: "0.85x40"}},
	{setting: "exhausted", value: "0.995", alert: "EphemeralPortsExhausted", series: map[string]string{"ephemeral_port_destination_utilization_ratio" + to: "0.99x40"}},
	{setting: "rise", value: "0.2", alert: "EphemeralPortsHalfUsed", series: map[string]string{"ephemeral_port_destination_utilization_ratio" + to: "0.4x14 0.55x24"}},
	{setting: "connect_search", value: "0.5", alert: "EphemeralPortsHalfUsed", series: map[string]string{
		"ephemeral_port_destination_utilization_ratio" + to: "0.6x40", "ephemeral_port_destination_closes_per_second" + to: "20x40", "ephemeral_port_capacity_ports" + namespace: "28232x40",
	}},
	{setting: "rate_near_ceiling", value: "0.99", alert: "EphemeralPortsRateNearCeiling", series: nearCeiling},
	{setting: "rate_critical_used", value: "0.9", alert: "EphemeralPortsRateNearCeiling", severity: "critical", series: nearCeiling},
	{setting: "forecast_seconds", value: "10", alert: "EphemeralPortsExhaustionPredicted", series: map[string]string{"ephemeral_port_destination_sure_exhaustion_seconds" + to: "40x40"}},
	{setting: "forecast_seconds", value: "60", alert: "EphemeralPortsOpenConnectionsRise", series: openRise},
	{setting: "open_rise_used", value: "0.5", alert: "EphemeralPortsOpenConnectionsRise", series: openRise},
	{setting: "close_wait", value: "0.5", alert: "EphemeralPortsCloseWait", series: map[string]string{
		"ephemeral_port_destination_ports" + in("close_wait"): "300x40", "ephemeral_port_capacity_ports" + namespace: "1000x40",
	}},
	{setting: "close_wait_ports", value: "2000", alert: "EphemeralPortsCloseWait", series: map[string]string{
		"ephemeral_port_destination_ports" + in("close_wait"): "300+10x40", "ephemeral_port_capacity_ports" + namespace: "28232x40",
	}},
	{setting: "syn_sent", value: "0.5", alert: "EphemeralPortsSynSent", series: map[string]string{
		"ephemeral_port_destination_ports" + in("syn_sent"): "300x40", "ephemeral_port_destination_ports" + in("established"): "500x40", "ephemeral_port_capacity_ports" + namespace: "1000x40",
	}},
	{setting: "syn_sent_of_open", value: "0.9", alert: "EphemeralPortsSynSent", series: synSent},
	{setting: "syn_sent_ports", value: "200", alert: "EphemeralPortsSynSent", series: synSent},
	{setting: "search_failure", value: "0.05", alert: "EphemeralPortsSNATNearlyExhausted", series: map[string]string{
		"ephemeral_port_snat_utilization_ratio" + to: "0.4x40", "ephemeral_port_snat_search_failure_ratio" + to: "0.02x40",
	}},
	{setting: "search_failure_critical", value: "0.5", alert: "EphemeralPortsSNATExhausted", series: map[string]string{
		"ephemeral_port_snat_utilization_ratio" + to: "0.4x40", "ephemeral_port_snat_search_failure_ratio" + to: "0.2x40",
		"ephemeral_port_conntrack_insert_failed_total" + namespace: "0+10x40",
	}},
	{setting: "conntrack", value: "0.99", alert: "EphemeralPortsConntrackNearlyFull", series: map[string]string{
		"ephemeral_port_conntrack_entries" + namespace: "95x40", "ephemeral_port_conntrack_limit_entries" + namespace: "100x40",
	}},
	{setting: "unreported_ports", value: "0.9", alert: "EphemeralPortsUnreported", series: unreported},
	{setting: "unreported", value: "0", alert: "EphemeralPortsUnreported", series: unreported},
	{setting: "settings_differ", value: "1", reverse: true, alert: "EphemeralPortsSettingsDiffer", series: map[string]string{
		`ephemeral_port_tcp_tw_reuse{job="ephemeral_port", instance="proxy-1:10149", netns="self"}`: "2x40",
		`ephemeral_port_tcp_tw_reuse{job="ephemeral_port", instance="proxy-2:10149", netns="self"}`: "1x40",
		`ephemeral_port_tcp_tw_reuse{job="ephemeral_port", instance="proxy-3:10149", netns="self"}`: "2x40",
	}},
}

var (
	nearCeiling = map[string]string{
		"ephemeral_port_destination_closes_per_second" + to: "95x40", "ephemeral_port_destination_ceiling_requests_per_second" + to: "100x40",
		"ephemeral_port_destination_utilization_ratio" + to: "0.75x40",
	}
	openRise = map[string]string{
		"ephemeral_port_destination_ports" + in("established"): "0+70x40", "ephemeral_port_capacity_ports" + namespace: "1000x40",
		"ephemeral_port_destination_utilization_ratio" + to: "0.4x40",
	}
	synSent = map[string]string{
		"ephemeral_port_destination_ports" + in("syn_sent"): "150x40", "ephemeral_port_destination_ports" + in("established"): "100x40", "ephemeral_port_capacity_ports" + namespace: "28232x40",
	}
	unreported = map[string]string{
		`ephemeral_port_unreported_ports{job="ephemeral_port", instance="proxy-1:10149", netns="self", state="established"}`: "600x40",
		"ephemeral_port_capacity_ports" + namespace: "1000x40",
	}
)

// set returns the rules with another value of a setting.
func set(t *testing.T, rules, setting, value string) string {
	t.Helper()
	changed := regexp.MustCompile(`(record: 'ephemeral_port:`+setting+`', expr: ')[^']*`).ReplaceAllString(rules, "${1}"+value)
	if changed == rules {
		t.Fatalf("no setting %s", setting)
	}
	return changed
}

// TestSettings changes each value at the top of rules.yml: its alert must follow. Without the group, the alerts must fire as with it.
func TestSettings(t *testing.T) {
	rules := deploytest.Read(t, "rules.yml")
	values := map[string]string{}
	for _, m := range setSettings.FindAllStringSubmatch(rules, -1) {
		values[m[1]] = m[2]
	}
	used := map[string]bool{"settings_differ": true, "unreported": true}
	for _, m := range usedSettings.FindAllStringSubmatch(rules, -1) {
		used[m[1]] = true
		if values[m[1]] != m[2] {
			t.Errorf("%s is %q, and an alert has %s", m[1], values[m[1]], m[2])
		}
	}
	if len(values) < 18 || !maps.Equal(used, trueFor(values)) {
		t.Errorf("settings %v, used %v", values, used)
	}
	tested := map[string]bool{}
	for _, tt := range settingTests {
		tested[tt.setting] = true
	}
	if !maps.Equal(tested, trueFor(values)) {
		t.Errorf("settings %v, tested %v", values, tested)
	}

	start, end := strings.Index(rules, "  # Change figures here."), strings.Index(rules, "  - name: ephemeral_port_records\n")
	runSettings(t, rules, settingTests)
	runSettings(t, rules[:start]+rules[end:], settingTests)
	for len(settingTests) > 0 { // as many at once as no alert depends on two of
		changed, done := rules, map[string]bool{}
		var now, later []settingTest
		for _, tt := range settingTests {
			if done[tt.alert] || done[tt.setting] {
				later = append(later, tt)
				continue
			}
			done[tt.alert], done[tt.setting] = true, true
			changed = set(t, changed, tt.setting, tt.value)
			tt.reverse = !tt.reverse
			now = append(now, tt)
		}
		runSettings(t, changed, now)
		settingTests = later
	}
}

func trueFor(values map[string]string) map[string]bool {
	keys := map[string]bool{}
	for key := range values {
		keys[key] = true
	}
	return keys
}

// runSettings runs tests with these rules.
func runSettings(t *testing.T, rules string, settings []settingTest) {
	t.Helper()
	test := rulesTest{Interval: "1m"}
	for i, tt := range settings {
		job := fmt.Sprintf(`job="test-%d"`, i) // each its own
		for _, name := range slices.Sorted(maps.Keys(tt.series)) {
			test.Series = append(test.Series, inputSeries{strings.Replace(name, `job="ephemeral_port"`, job, 1), tt.series[name]})
		}
		selector := fmt.Sprintf(`alertname=%q, alertstate="firing", `, tt.alert) + job
		if tt.severity != "" {
			selector += fmt.Sprintf(`, severity=%q`, tt.severity)
		}
		want := map[string]float64{"{}": 1}
		if tt.reverse {
			want = nil
		}
		test.expect(fmt.Sprintf("group(ALERTS{%s})", selector), want)
	}
	dir := t.TempDir()
	b, err := yaml.Marshal(map[string]any{"rule_files": []string{deploytest.Write(t, dir, "rules.yml", rules)}, "evaluation_interval": "1m", "tests": []rulesTest{test}})
	if err != nil {
		t.Fatal(err)
	}
	runPromtool(t, "test", "rules", deploytest.Write(t, dir, "test.yml", string(b)))
}

// TestLinks has the links elsewhere, and targets whose label instance is a name. TestAlerts has the text of all others.
func TestLinks(t *testing.T) {
	const shipped = "labels: {status: 'http://INSTANCE', runbook: 'http://INSTANCE/runbook'}"
	const elsewhere = "labels: {status: 'https://exporters.example.com/INSTANCE', runbook: 'https://wiki.example.com/runbook'}"
	rules := strings.Replace(deploytest.Read(t, "rules.yml"), shipped, elsewhere, 1)
	if !strings.Contains(rules, elsewhere) {
		t.Fatal("rules.yml does not have its links")
	}
	dir := t.TempDir()
	deploytest.Write(t, dir, "rules.yml", rules)
	runPromtool(t, "test", "rules", deploytest.Write(t, dir, "test.yml", `
rule_files: [rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'ephemeral_port_destination_utilization_ratio{job="proxies", instance="proxy-1", netns="self", source_ip="10.0.0.1", destination_ip="10.0.0.2", destination_port="443"}', values: '0.9x9'}
      - {series: 'up{job="ephemeral_port", instance="proxy-2"}', values: '0x9'}
    alert_rule_test:
      - alertname: EphemeralPortsNearlyExhausted
        eval_time: 9m
        exp_alerts:
          - exp_labels: {job: proxies, instance: proxy-1, netns: self, source_ip: 10.0.0.1, destination_ip: 10.0.0.2, destination_port: '443', severity: critical}
            exp_annotations:
              summary: Ports to 10.0.0.2:443 are nearly exhausted on proxy-1
              description: >-
                Up to 90% of the ports from 10.0.0.1 to 10.0.0.2:443 are in use on proxy-1 (network namespace self). At 100%, connect()
                fails with EADDRNOTAVAIL.
              filled_by: 'not known: --trace tells who closes connections'
              runbook_url: https://wiki.example.com/runbook#ephemeralportsnearlyexhausted
              status_url: https://exporters.example.com/proxy-1/?destination=10.0.0.2:443
      - alertname: EphemeralPortExporterDown
        eval_time: 9m
        exp_alerts:
          - exp_labels: {job: ephemeral_port, instance: proxy-2, severity: critical}
            exp_annotations:
              summary: ephemeral_port_exporter on proxy-2 is down
              description: >-
                Prometheus cannot scrape proxy-2 of ephemeral_port. Until this is fixed, no other alert on its ports can fire.
              runbook_url: https://wiki.example.com/runbook#ephemeralportexporterdown
`))
}

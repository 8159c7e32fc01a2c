package helm

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

// TestCluster checks that the chart needs nothing but Kubernetes unless it is asked to.
func TestCluster(t *testing.T) {
	m := build(t, "{}")
	if m.podMonitor != nil || m.service != nil || m.serviceMonitor != nil || m.rule != nil || m.dashboard != nil {
		t.Errorf("%+v", m)
	}
}

// TestRules changes each value of the rules: the PrometheusRule must have the groups of the rule file, with that line of its first
// group changed.
func TestRules(t *testing.T) {
	rules := readFile(t, rulesFile)
	rule := func(name, value string) string {
		return fmt.Sprintf("{record: 'ephemeral_port:%s', expr: '%s'}", name, value)
	}
	links := func(status, runbook string) string {
		return fmt.Sprintf("labels: {status: '%s', runbook: '%s'}", status, runbook)
	}
	shipped := links("http://INSTANCE", "http://INSTANCE/runbook")
	type change struct{ values, old, new string }
	changes := []change{
		{"{rules: {enabled: true}}", "", ""},
		{"{rules: {enabled: true}, webConfig: {secretName: exporter-web, tls: true}}", shipped, links("https://INSTANCE", "https://INSTANCE/runbook")},
		{"{rules: {enabled: true, links: {status: 'https://exporters.example.com/INSTANCE'}}}", shipped, links("https://exporters.example.com/INSTANCE", "https://exporters.example.com/INSTANCE/runbook")},
		{"{rules: {enabled: true, links: {runbook: 'https://wiki.example.com/runbook'}}}", shipped, links("http://INSTANCE", "https://wiki.example.com/runbook")},
		{"{rules: {enabled: true, optional: {settingsDiffer: true}}}", rule("settings_differ", "0"), rule("settings_differ", "1")},
		{"{rules: {enabled: true, optional: {unreported: false}}}", rule("unreported", "1"), rule("unreported", "0")},
	}
	var values struct {
		Rules struct {
			Thresholds map[string]json.Number
			Optional   map[string]bool
		}
	}
	if err := yaml.Unmarshal([]byte(readFile(t, "values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	for name, value := range values.Rules.Thresholds {
		snake := regexp.MustCompile("[A-Z]").ReplaceAllStringFunc(name, func(s string) string { return "_" + strings.ToLower(s) })
		changes = append(changes, change{fmt.Sprintf("{rules: {enabled: true, thresholds: {%s: 12.5}}}", name), rule(snake, value.String()), rule(snake, "12.5")})
	}
	if n := strings.Count(rules, "{record: 'ephemeral_port:"); n != len(values.Rules.Thresholds)+len(values.Rules.Optional) {
		t.Errorf("rules.yml has %d figures, the chart %d and %d", n, len(values.Rules.Thresholds), len(values.Rules.Optional))
	}
	for _, c := range changes {
		if strings.Count(rules, c.old) != 1 && c.old != "" {
			t.Errorf("%s: rules.yml does not have %s", c.values, c.old)
		}
		var want monitoring.PrometheusRuleSpec
		if err := yaml.UnmarshalStrict([]byte(strings.Replace(rules, c.old, c.new, 1)), &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, build(t, c.values).rule.Spec); diff != "" {
			t.Errorf("%s (-rules.yml +PrometheusRule):\n%s", c.values, diff)
		}
	}
}

// TestDashboard checks that the ConfigMap has the dashboard, byte for byte, and the label that the
// sidecar of Grafana's chart looks for.
func TestDashboard(t *testing.T) {
	dashboard := build(t, "{dashboard: {enabled: true}}").dashboard
	if diff := cmp.Diff(map[string]string{"ephemeral-port.json": readFile(t, dashboardFile)}, dashboard.Data); diff != "" {
		t.Errorf("(-dashboard.json +ConfigMap):\n%s", diff)
	}
	if dashboard.Labels["grafana_dashboard"] != "1" {
		t.Errorf("labels %v", dashboard.Labels)
	}
}

// TestJob checks that the alert on a lost exporter holds for the names which the Prometheus operator
// makes: the job has the value of the label jobLabel, of the pods or of the Service.
func TestJob(t *testing.T) {
	alert := regexp.MustCompile(`up\{job=~"([^"]+)"\} == 0`).FindStringSubmatch(readFile(t, rulesFile))
	if alert == nil {
		t.Fatal("no job in rules.yml")
	}
	matcher := regexp.MustCompile("^(?:" + alert[1] + ")$")
	for _, names := range []string{"", "fullnameOverride: epe, "} {
		pods := build(t, "{"+names+"monitor: {enabled: true}}")
		services := build(t, "{"+names+"monitor: {enabled: true, kind: ServiceMonitor}}")
		for kind, job := range map[string]string{
			"PodMonitor":     pods.daemonSet.Spec.Template.Labels[pods.podMonitor.Spec.JobLabel],
			"ServiceMonitor": services.service.Labels[services.serviceMonitor.Spec.JobLabel],
		} {
			if !matcher.MatchString(job) {
				t.Errorf("%s: the alert does not know job %q", kind, job)
			}
			if !strings.Contains(readFile(t, "../prometheus/rules_test.yml"), `up{job="`+job+`", `) {
				t.Errorf("%s: rules_test.yml does not have job %q", kind, job)
			}
		}
	}
}

// TestNode checks that the series have the name of the node, and the address of the exporter as the
// instance, for the links in alerts.
func TestNode(t *testing.T) {
	pods := build(t, "{monitor: {enabled: true}}")
	services := build(t, "{monitor: {enabled: true, kind: ServiceMonitor}}")
	want := []monitoring.RelabelConfig{{SourceLabels: []monitoring.LabelName{"__meta_kubernetes_pod_node_name"}, TargetLabel: "node"}}
	for _, got := range [][]monitoring.RelabelConfig{pods.podMonitor.Spec.PodMetricsEndpoints[0].RelabelConfigs, services.serviceMonitor.Spec.Endpoints[0].RelabelConfigs} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

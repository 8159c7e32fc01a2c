package helm

import (
	"os"
	"os/exec"
	"path/filepath"
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

// TestRules checks that the PrometheusRule has the groups of the rule file, with the links as the
// commands of install.md change them.
func TestRules(t *testing.T) {
	sed := regexp.MustCompile(`(?m)^sed -i .* rules\.yml$`).FindAllString(readFile(t, "../docs/install.md"), -1)
	if len(sed) != 2 {
		t.Fatalf("commands of install.md: %q", sed)
	}
	https, runbook := sed[0], sed[1]
	for _, test := range []struct {
		values   string
		commands []string
	}{
		{"{rules: {enabled: true}}", nil},
		{"{rules: {enabled: true}, webConfig: {secretName: exporter-web, tls: true}}", []string{https}},
		{"{rules: {enabled: true, runbookURL: https://wiki.example.com/runbook}}", []string{runbook}},
		{"{rules: {enabled: true, runbookURL: https://wiki.example.com/runbook}, webConfig: {secretName: exporter-web, tls: true}}", []string{https, runbook}},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "rules.yml")
		if err := os.WriteFile(path, []byte(readFile(t, rulesFile)), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, command := range test.commands {
			before := readFile(t, path)
			cmd := exec.Command("sh", "-c", command)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", command, err, out)
			}
			if readFile(t, path) == before {
				t.Errorf("%s changes nothing", command)
			}
		}
		var want monitoring.PrometheusRuleSpec
		if err := yaml.UnmarshalStrict([]byte(readFile(t, path)), &want); err != nil {
			t.Fatal(err)
		}
		if len(want.Groups) == 0 {
			t.Fatal("no groups in rules.yml")
		}
		if diff := cmp.Diff(want, build(t, test.values).rule.Spec); diff != "" {
			t.Errorf("%s (-rules.yml +PrometheusRule):\n%s", test.values, diff)
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

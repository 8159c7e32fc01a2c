//go:build linux

package prometheus

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/netns/netnstest"
	ports "ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/deploy/deploytest"
)

// ruleGroups is the part of a rule file that the tests check.
type ruleGroups struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Record, Alert, Expr, For string
			Labels, Annotations      map[string]string
		}
	}
}

// runPromtool runs promtool of a current Prometheus, and that of Debian, which is years older. Both must
// succeed.
func runPromtool(t *testing.T, args ...string) {
	t.Helper()
	deploytest.Run(t, netnstest.ProgramPath(promtoolProgram), args...)
	deploytest.Run(t, deploytest.Tool(t, "promtool", "prometheus"), args...)
}

// TestPrometheusConfig checks the configuration and the rules with promtool.
func TestPrometheusConfig(t *testing.T) {
	runPromtool(t, "check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
	runPromtool(t, "check", "rules", "--lint=all", "--lint-fatal", "rules.yml")
	if strings.Contains(deploytest.Read(t, "prometheus.yml"), "target_label: instance") {
		t.Error("prometheus.yml changes the label instance: the links of the alerts need its address and port, unless ephemeral_port:links has others")
	}
}

// TestRules checks that each alert fires, does not fire just below its threshold, and resolves.
func TestRules(t *testing.T) {
	runPromtool(t, "test", "rules", "rules_test.yml")
}

// TestQueries checks that the queries in the documents are valid.
func TestQueries(t *testing.T) {
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	type rule struct {
		Record string            `json:"record"`
		Expr   string            `json:"expr"`
		Labels map[string]string `json:"labels"`
	}
	var rules []rule
	for _, path := range append(documents, "../../README.md", "../runbook.md") {
		for i, m := range regexp.MustCompile("(?s)\n```promql\n(.*?)\n```\n").FindAllStringSubmatch(deploytest.Read(t, path), -1) {
			rules = append(rules, rule{fmt.Sprint("query", i), m[1], map[string]string{"document": path}})
		}
	}
	if len(rules) < 20 {
		t.Errorf("only %d queries in the documents", len(rules))
	}
	file, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "queries", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	runPromtool(t, "check", "rules", deploytest.Write(t, t.TempDir(), "queries.yml", string(file)))
}

// TestAlerts checks that each alert has its annotations, a chapter and a row in the runbook, and a test.
func TestAlerts(t *testing.T) {
	var rules ruleGroups
	deploytest.Unmarshal(t, "rules.yml", &rules)
	runbook := deploytest.Read(t, "../runbook.md")
	tests := deploytest.Read(t, "rules_test.yml") + deploytest.Read(t, "kubernetes_test.go")
	alerts := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				if g.Name != settingsGroup && !strings.Contains(tests, r.Record) && !strings.HasPrefix(r.Record, "source:") {
					t.Errorf("%s: no test in rules_test.yml or kubernetes_test.go", r.Record)
				}
				continue
			}
			alerts[r.Alert] = true
			if r.For == "" {
				t.Errorf("%s: no for", r.Alert)
			}
			switch r.Labels["severity"] {
			case "critical", "warning", "info":
			default:
				t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
			}
			text := r.Annotations["summary"] + r.Annotations["description"]
			for _, want := range []string{"$labels.instance", "$labels.destination_ip", "$labels.destination_port", "$labels.source_ip", "$value"} {
				needed := want == "$labels.instance" ||
					strings.HasPrefix(want, "$labels.dest") && strings.Contains(r.Expr, "destination_ports{") ||
					want == "$value" && g.Name == "ephemeral_port_exhaustion"
				if needed && !strings.Contains(text, want) {
					t.Errorf("%s: neither summary nor description has %s", r.Alert, want)
				}
			}
			runbookURL := link("runbook", "/runbook")
			if r.Alert == "EphemeralPortExporterDown" { // an exporter of the job that answers
				runbookURL = `{{ $up := printf "ephemeral_port_exporter_build_info{job=%q}" $labels.job | query }}{{ $runbook := "http://INSTANCE/runbook" }}` +
					`{{ with query "ephemeral_port:links" }}{{ $runbook = . | first | label "runbook" }}{{ end }}` +
					`{{ if $up }}{{ reReplaceAll "INSTANCE" ($up | first | label "instance") $runbook }}{{ else if match "INSTANCE" $runbook }}runbook.md{{ else }}{{ $runbook }}{{ end }}`
			}
			if got, want := r.Annotations["runbook_url"], runbookURL+"#"+strings.ToLower(r.Alert); got != want {
				t.Errorf("%s: runbook_url %q, want %q", r.Alert, got, want)
			}
			statusURL := ""
			if strings.Contains(text, "$labels.destination_ip") {
				statusURL = link("status", "") + `/?destination={{ if match ":" $labels.destination_ip }}{{ printf "[%s]" $labels.destination_ip | urlquery }}{{ else }}{{ $labels.destination_ip }}{{ end }}:{{ $labels.destination_port }}`
			}
			if got := r.Annotations["status_url"]; got != statusURL {
				t.Errorf("%s: status_url %q, want %q", r.Alert, got, statusURL)
			}
			row := regexp.MustCompile(`\n\| \[` + r.Alert + `\]\(#` + strings.ToLower(r.Alert) + `\) \| ([a-z, ]+) \| `).FindStringSubmatch(runbook)
			if row == nil || !slices.Contains(strings.Split(row[1], ", "), r.Labels["severity"]) {
				t.Errorf("%s: the contents of runbook.md do not have it with its severity", r.Alert)
			}
			if !strings.Contains(runbook, "\n## "+r.Alert+"\n") {
				t.Errorf("%s: no chapter in runbook.md", r.Alert)
			}
			if !strings.Contains(tests, "alertname: "+r.Alert+"\n") || !strings.Contains(tests, "alertname: "+r.Alert+", ") {
				t.Errorf("%s: rules_test.yml does not have it fire and not fire", r.Alert)
			}
		}
	}
	if rows := strings.Count(runbook, "\n| [Ephemeral"); rows == 0 || rows != len(alerts) {
		t.Errorf("%d alerts in rules.yml, %d in the contents of runbook.md", len(alerts), rows)
	}
	for line := range strings.Lines(runbook) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "## Ephemeral")
		if ok && !strings.Contains(deploytest.Read(t, "rules.yml"), "alert: Ephemeral"+name+"\n") {
			t.Errorf("runbook.md has a chapter for Ephemeral%s, which is no alert", name)
		}
	}
}

// link returns the text of an annotation that is a link: that of ephemeral_port:links, or one to the exporter.
func link(label, path string) string {
	return fmt.Sprintf(`{{ with query "ephemeral_port:links" }}{{ . | first | label %q | reReplaceAll "INSTANCE" $labels.instance }}{{ else }}http://{{ $labels.instance }}%s{{ end }}`, label, path)
}

// notOfPools are the alerts that no threshold of a pool is about, and why.
var notOfPools = map[string]string{
	"EphemeralPortsConnectFailingUnattributed": "it has no destination",
	"EphemeralPortsBindFailing":                "a failed bind has no destination",
	"EphemeralPortsOpenConnectionsRise":        "one scan shows no trend",
	"EphemeralPortsSettingsDiffer":             "it is about a host",
	"EphemeralPortsUnreported":                 "it is about the limits of the exporter",
	"EphemeralPortsCollectFailing":             "it is about the exporter",
	"EphemeralPortsUDPCollectFailing":          "it is about the exporter",
	"EphemeralPortsSNATCollectFailing":         "it is about the exporter",
	"EphemeralPortsNamespacesUnread":           "it is about the exporter",
	"EphemeralPortExporterDown":                "it is about the exporter",
	"EphemeralPortsConntrackInsertFailed":      "the kernel counts drops for a network namespace, not for a pool",
}

// ofTime are the settings of alerts that the status page has no threshold for, and why.
var ofTime = map[string]string{
	"rise":               "one scan shows no trend",
	"connect_search":     "the page shows closes and ports",
	"rate_critical_used": "the page is critical as soon as closes are near the ceiling",
	"close_wait_ports":   "one scan shows no trend",
}

// TestThresholds compares the alerts about pools with the thresholds of the status page: in rules.yml, and in the
// contents of the runbook.
func TestThresholds(t *testing.T) {
	type alert struct {
		Values   []float64
		Severity string
	}
	want := map[string]alert{}
	hints := map[string]float64{} // of alerts that one scan cannot tell
	for _, threshold := range advice.Thresholds() {
		if threshold.Level == advice.Calm {
			hints[threshold.Alert] = threshold.At
			continue
		}
		a := want[threshold.Alert]
		a.Severity = map[advice.Level]string{advice.Warning: "warning", advice.Critical: "critical", advice.Exhausted: "critical"}[threshold.Level]
		if threshold.Kind == advice.TimeWait { // the alert counts for longer
			want[threshold.Alert] = a
			continue
		}
		switch threshold.Of {
		case advice.Failures:
			a.Severity = "critical" // of the last 5 minutes; those of the page can be 15 minutes old
		case advice.Possible:
			a.Severity = "warning" // the page is calm only where it knows
			a.Values = append(a.Values, threshold.At)
		case advice.NotKnown:
			a.Severity = "warning" // the page is calm only if it knows
		case advice.Exhaustion:
			a.Severity = "warning" // the forecast swings from scan to scan; the page shows one
			a.Values = append(a.Values, threshold.At)
		default:
			a.Values = append(a.Values, threshold.At)
		}
		want[threshold.Alert] = a
	}
	delete(want, "") // levels without an alert

	var rules ruleGroups
	deploytest.Unmarshal(t, "rules.yml", &rules)
	runbook := deploytest.Read(t, "../runbook.md")
	seen := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			expr := usedSettings.ReplaceAllStringFunc(r.Expr, func(use string) string {
				m := usedSettings.FindStringSubmatch(use)
				if ofTime[m[1]] != "" || m[1] == "syn_sent_ports" && m[2] == fmt.Sprint(ports.ManySynSent) {
					return "a setting"
				}
				return m[2]
			})
			if at, ok := hints[r.Alert]; ok && !strings.HasSuffix(expr, fmt.Sprintf(" >= %v", at)) {
				t.Errorf("%s does not end at %v: %s", r.Alert, at, expr)
			}
			w, ok := want[r.Alert]
			if r.Alert == "EphemeralPortsRateNearCeiling" && r.Labels["severity"] == "warning" {
				w.Severity, w.Values = "warning", append(w.Values, 0.5) // half of the ports: else it is a burst
			}
			seen[r.Alert] = true
			if _, known := notOfPools[r.Alert]; r.Alert == "" || known && !ok {
				continue
			} else if !ok {
				t.Errorf("%s: the status page has no threshold for it", r.Alert)
				continue
			}
			var values []float64
			for _, m := range regexp.MustCompile(`(>=|exhaustion_seconds <) ([0-9.]+)`).FindAllStringSubmatch(expr, -1) {
				value, err := strconv.ParseFloat(m[2], 64)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Contains(values, value) {
					values = append(values, value)
				}
			}
			if !slices.Equal(values, w.Values) || r.Labels["severity"] != w.Severity {
				t.Errorf("%s is %s at %v, the status page has %s at %v", r.Alert, r.Labels["severity"], values, w.Severity, w.Values)
			}
			_, row, _ := strings.Cut(runbook, "\n| ["+r.Alert+"](")
			row, _, _ = strings.Cut(row, "\n")
			for _, value := range w.Values {
				text := fmt.Sprintf("%.0f%%", 100*value)
				switch value {
				case 0.2:
					text = "a fifth"
				case 600:
					text = "within 10 minutes"
				}
				if !strings.Contains(row, text) {
					t.Errorf("%s: the contents of the runbook do not say %q: %s", r.Alert, text, row)
				}
			}
		}
	}
	for name := range want {
		if !seen[name] {
			t.Errorf("rules.yml has no alert %s", name)
		}
	}
}

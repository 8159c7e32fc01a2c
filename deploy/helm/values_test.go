package helm

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// TestBadValues checks that the schema rejects values that have no effect, or would fail in the cluster.
func TestBadValues(t *testing.T) {
	for values, want := range map[string]string{
		"nameSpaces: all":                         "'nameSpaces' not allowed",
		"namespaces: every":                       "'/namespaces'",
		"namespaces: true":                        "'/namespaces'",
		`exact: "true"`:                           "'/exact'",
		"trace: yes please":                       "'/trace'",
		"owners: null":                            "", // falls back to the default
		"image: registry.example.com/epe":         "'/image'",
		`image: {repository: ""}`:                 "'/image/repository'",
		"image: {tag: 1.2}":                       "'/image/tag'",
		"image: {digest: 0123}":                   "'/image/digest'",
		"image: {digest: sha256:0123}":            "'/image/digest'",
		"image: {pullPolicy: Sometimes}":          "'/image/pullPolicy'",
		"image: {pullSecrets: [registry]}":        "'/image/pullSecrets/0'",
		"image: {pullSecret: registry}":           "'pullSecret' not allowed",
		"fullnameOverride: Exporter_1":            "'/fullnameOverride'",
		"port: 0":                                 "'/port'",
		"port: 65536":                             "'/port'",
		`port: "10149"`:                           "'/port'",
		"extraArgs: --collect.timeout=8s":         "'/extraArgs'",
		"extraArgs: [collect.timeout=8s]":         "'/extraArgs/0'",
		"log: {level: trace}":                     "'/log/level'",
		"log: {format: text}":                     "'/log/format'",
		"webConfig: {tls: true}":                  "'/webConfig/secretName'",
		"webConfig: {secretName: a, key: ../a}":   "'/webConfig/key'",
		"webConfig: {basic_auth_users: {a: b}}":   "'basic_auth_users' not allowed",
		"monitor: {kind: Probe}":                  "'/monitor/kind'",
		"monitor: {enabled: PodMonitor}":          "'/monitor/enabled'",
		"monitor: {labels: [release]}":            "'/monitor/labels'",
		"monitor: {labels: {release: 1}}":         "'/monitor/labels/release'",
		"monitor: {interval: 30}":                 "'/monitor/interval'",
		"monitor: {interval: 30 s}":               "'/monitor/interval'",
		"monitor: {basicAuth: {username: a}}":     "'/monitor/basicAuth/username'",
		"monitor: {basicAuth: {user: {}}}":        "'user' not allowed",
		"monitor: {tlsConfig: {caFile: ca.crt}}":  "'caFile' not allowed",
		"rules: {links: {runbook: wiki/runbook}}": "'/rules/links/runbook'",
		"rules: {links: {status: 'http://{{'}}":   "'/rules/links/status'",
		"rules: {thresholds: {halfUsed: 0}}":      "'/rules/thresholds/halfUsed'",
		"rules: {thresholds: {half_used: 0.6}}":   "'half_used'",
		"rules: {optional: {unreported: 1}}":      "'/rules/optional/unreported'",
		"rules: {labels: kube-prometheus-stack}":  "'/rules/labels'",
		"dashboard: {folder: Network}":            "'folder' not allowed",
		"resources: {cpu: 1}":                     "'cpu' not allowed",
		"goMemLimit: 200Mi":                       "'/goMemLimit'",
		"tolerations: [{operator: Always}]":       "'/tolerations/0/operator'",
		"affinity: {nodes: {}}":                   "'nodes' not allowed",
		"nodeSelector: {proxy: true}":             "'/nodeSelector/proxy'",
		"updateStrategy: {type: Recreate}":        "'/updateStrategy/type'",
		"seccompProfile: {type: None}":            "'/seccompProfile/type'",
		"seccompProfile: {type: Localhost}":       "'/seccompProfile'",
		"seLinuxOptions: {kind: spc_t}":           "'kind' not allowed",
		"podAnnotations: {a: true}":               "'/podAnnotations/a'",
		"nodePorts: 30000":                        "'/nodePorts'",
		"cilium: true":                            "'/snat'",
		"nodePorts: 30000-":                       "'/nodePorts'",
	} {
		_, err := template(load(t), values)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %s", values, err, want)
		}
	}
}

// TestSchema checks that values.yaml has and documents all values of the schema, which allows no others.
func TestSchema(t *testing.T) {
	type schema struct {
		Properties           map[string]schema
		AdditionalProperties any
	}
	var root schema
	if err := json.Unmarshal([]byte(readFile(t, "values.schema.json")), &root); err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict([]byte(readFile(t, "values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	var check func(path string, s schema, values map[string]any)
	check = func(path string, s schema, values map[string]any) {
		if s.AdditionalProperties != false {
			t.Errorf("%s may have any property", path)
		}
		for name, property := range s.Properties {
			_, known := values[name]
			if !known && len(values) > 0 && path+name != "global" && path+name != "seccompProfile.localhostProfile" {
				t.Errorf("values.yaml does not have %s%s", path, name)
			}
			if len(property.Properties) > 0 {
				nested, _ := values[name].(map[string]any)
				check(path+name+".", property, nested)
			}
		}
	}
	check("", root, values)
}

// TestReadme checks that the table of the README has the values of values.yaml and their defaults, and that its file of
// values makes all objects.
func TestReadme(t *testing.T) {
	readme := readFile(t, "README.md")
	_, example, found := strings.Cut(readme, "\n```yaml\n")
	if !found {
		t.Fatal("the README has no values")
	}
	example, _, _ = strings.Cut(example, "```\n")
	m := build(t, example)
	if m.podMonitor == nil || m.rule == nil || m.dashboard == nil {
		t.Errorf("not all objects: %+v", m)
	}
	var values map[string]any
	if err := yaml.Unmarshal([]byte(readFile(t, "values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	want := defaults(t, "", values, []string{"image", "log", "webConfig", "monitor", "rules", "dashboard"})
	got := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (?:`([^`]+)` )?\\| (.+) \\|$").FindAllStringSubmatch(readme, -1) {
		got[row[1]] = row[2]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-values.yaml +README.md):\n%s", diff)
	}
}

// defaults returns the values by their paths, in JSON if they are no plain words. It takes these sections apart.
func defaults(t *testing.T, path string, values map[string]any, sections []string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for name, value := range values {
		if section, ok := value.(map[string]any); ok && slices.Contains(sections, path+name) {
			maps.Copy(all, defaults(t, path+name+".", section, nil))
			continue
		}
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		all[path+name] = strings.Trim(string(text), `"`)
	}
	return all
}

// TestNotes checks what helm install prints.
func TestNotes(t *testing.T) {
	for values, want := range map[string][]string{
		"{}": {
			"The DaemonSet prod-ephemeral-port-exporter runs", "the TCP and UDP ports of the node.\nFlags of these features and extraArgs: --path.cgroup=/host/sys/fs/cgroup\n",
			"at http://localhost:10149/ while", "kubectl --namespace monitoring port-forward POD 10149\n",
			"\nNo monitor is on.", "scrape port 10149 of each node.\nRules and alerts are off, see rules.enabled. The dashboard is off, see dashboard.enabled.\n",
		},
		"{namespaces: all, snat: true, exact: true, trace: true, owners: false, extraArgs: [--destination.limit=1]}": {
			"of the node and of all pods, and the ports of source NAT.\nIt knows which ports are bound (exact).\nIt counts failed connects (trace).\n" +
				"Flags of these features and extraArgs: --namespaces=all --snat --exact --trace --destination.limit=1\n",
		},
		"owners: false": {"ports of the node.\n\nSee the page"},
		"{namespaces: named, owners: false, port: 9999, webConfig: {secretName: web, tls: true}}": {
			"the node and of pods with a mounted network namespace.\n", "at https://localhost:9999/ while", "port-forward POD 9999\n",
		},
		"monitor: {enabled: true}": {
			"\nA PodMonitor has Prometheus scrape it. If the Prometheus selects monitors by labels, set monitor.labels.\nRules and",
		},
		"{monitor: {enabled: true, kind: ServiceMonitor, labels: {release: a}}, rules: {enabled: true}, dashboard: {enabled: true}}": {
			"\nA ServiceMonitor has Prometheus scrape it, if the Prometheus selects these labels: {\"release\":\"a\"}.\nRules and alerts are on. The dashboard is on.\n",
		},
	} {
		files, err := render(load(t), values)
		if err != nil {
			t.Fatalf("%s: %v", values, err)
		}
		for _, text := range want {
			if !strings.Contains(files[notesFile], text) {
				t.Errorf("%s: no %q in\n%s", values, text, files[notesFile])
			}
		}
	}
}

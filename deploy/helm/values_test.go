package helm

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestBadValues checks that the schema rejects values that have no effect, or would fail in the cluster.
func TestBadValues(t *testing.T) {
	for values, want := range map[string]string{
		"nameSpaces: all":                        "'nameSpaces' not allowed",
		"namespaces: every":                      "'/namespaces'",
		"namespaces: true":                       "'/namespaces'",
		`exact: "true"`:                          "'/exact'",
		"connectFailures: yes please":            "'/connectFailures'",
		"owners: null":                           "", // falls back to the default
		"image: registry.example.com/epe":        "'/image'",
		`image: {repository: ""}`:                "'/image/repository'",
		"image: {tag: 1.2}":                      "'/image/tag'",
		"image: {digest: 0123}":                  "'/image/digest'",
		"image: {digest: sha256:0123}":           "'/image/digest'",
		"image: {pullPolicy: Sometimes}":         "'/image/pullPolicy'",
		"image: {pullSecrets: [registry]}":       "'/image/pullSecrets/0'",
		"image: {pullSecret: registry}":          "'pullSecret' not allowed",
		"fullnameOverride: Exporter_1":           "'/fullnameOverride'",
		"port: 0":                                "'/port'",
		"port: 65536":                            "'/port'",
		`port: "10149"`:                          "'/port'",
		"extraArgs: --collect.timeout=8s":        "'/extraArgs'",
		"extraArgs: [collect.timeout=8s]":        "'/extraArgs/0'",
		"log: {level: trace}":                    "'/log/level'",
		"log: {format: text}":                    "'/log/format'",
		"webConfig: {tls: true}":                 "'/webConfig/secretName'",
		"webConfig: {secretName: a, key: ../a}":  "'/webConfig/key'",
		"webConfig: {basic_auth_users: {a: b}}":  "'basic_auth_users' not allowed",
		"monitor: {kind: Probe}":                 "'/monitor/kind'",
		"monitor: {enabled: PodMonitor}":         "'/monitor/enabled'",
		"monitor: {labels: [release]}":           "'/monitor/labels'",
		"monitor: {labels: {release: 1}}":        "'/monitor/labels/release'",
		"monitor: {interval: 30}":                "'/monitor/interval'",
		"monitor: {interval: 30 s}":              "'/monitor/interval'",
		"monitor: {basicAuth: {username: a}}":    "'/monitor/basicAuth/username'",
		"monitor: {basicAuth: {user: {}}}":       "'user' not allowed",
		"monitor: {tlsConfig: {caFile: ca.crt}}": "'caFile' not allowed",
		"rules: {runbookURL: wiki/runbook}":      "'/rules/runbookURL'",
		"rules: {labels: kube-prometheus-stack}": "'/rules/labels'",
		"dashboard: {folder: Network}":           "'folder' not allowed",
		"resources: {cpu: 1}":                    "'cpu' not allowed",
		"goMemLimit: 200Mi":                      "'/goMemLimit'",
		"tolerations: [{operator: Always}]":      "'/tolerations/0/operator'",
		"affinity: {nodes: {}}":                  "'nodes' not allowed",
		"nodeSelector: {proxy: true}":            "'/nodeSelector/proxy'",
		"updateStrategy: {type: Recreate}":       "'/updateStrategy/type'",
		"seccompProfile: {type: None}":           "'/seccompProfile/type'",
		"seccompProfile: {type: Localhost}":      "'/seccompProfile'",
		"seLinuxOptions: {kind: spc_t}":          "'kind' not allowed",
		"podAnnotations: {a: true}":              "'/podAnnotations/a'",
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

// TestReadme checks that the values in install.md exist, and that its file of values makes all objects.
func TestReadme(t *testing.T) {
	_, chapter, _ := strings.Cut(readFile(t, "../docs/install.md"), "\n## Kubernetes\n")
	_, example, found := strings.Cut(chapter, "\n```yaml\n")
	if !found {
		t.Fatal("install.md has no values")
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
	_, table, found := strings.Cut(chapter, "\n| value of the chart |")
	if !found {
		t.Fatal("install.md has no table of values")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := 0
	for line := range strings.Lines(table) {
		column, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(column, -1) {
			rows++
			var value any = values
			for key := range strings.SplitSeq(m[1], ".") {
				section, _ := value.(map[string]any)
				if value = section[key]; value == nil {
					t.Errorf("values.yaml has no %s", m[1])
				}
			}
		}
	}
	if rows < 10 {
		t.Errorf("install.md has %d values", rows)
	}
}

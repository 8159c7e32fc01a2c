// Package helm checks the chart of this directory without a cluster.
package helm

import (
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files")

// The files that the chart shares with those who do not use Kubernetes.
const (
	rulesFile     = "../prometheus/rules.yml"
	dashboardFile = "../grafana/dashboard.json"
)

// readFile returns the content of a file of the repository.
func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// load loads the chart.
func load(t *testing.T) *chart.Chart {
	t.Helper()
	slog.SetLogLoggerLevel(slog.LevelWarn) // Helm logs each symbolic link
	c, err := loader.Load(".")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// notesFile is the template whose text helm install prints.
const notesFile = "ephemeral-port-exporter/templates/NOTES.txt"

// render returns what the templates make of these values, which are YAML.
func render(c *chart.Chart, values string) (map[string]string, error) {
	parsed, err := loader.LoadValues(strings.NewReader(values))
	if err != nil {
		return nil, err
	}
	release := common.ReleaseOptions{Name: "prod", Namespace: "monitoring", Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(c, parsed, release, nil)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

// template returns what helm template prints for these values.
func template(c *chart.Chart, values string) (string, error) {
	files, err := render(c, values)
	if err != nil {
		return "", err
	}
	delete(files, notesFile)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if text := strings.TrimSpace(files[name]); text != "" {
			fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", name, text)
		}
	}
	return b.String(), nil
}

// A manifest holds the objects of the chart. Those that are not there are nil.
type manifest struct {
	account        *core.ServiceAccount
	daemonSet      *apps.DaemonSet
	podMonitor     *monitoring.PodMonitor
	service        *core.Service
	serviceMonitor *monitoring.ServiceMonitor
	rule           *monitoring.PrometheusRule
	dashboard      *core.ConfigMap
}

// decode decodes a manifest strictly: unknown and duplicate fields are errors.
func decode(t *testing.T, text string) manifest {
	t.Helper()
	var m manifest
	for document := range strings.SplitSeq("\n"+text, "\n---\n") {
		if document == "" {
			continue
		}
		document += "\n"
		var head struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
		}
		if err := yaml.Unmarshal([]byte(document), &head); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		var err error
		switch head.Kind {
		case "ServiceAccount":
			err = decodeInto(&m.account, document)
		case "DaemonSet":
			err = decodeInto(&m.daemonSet, document)
		case "PodMonitor":
			err = decodeInto(&m.podMonitor, document)
		case "Service":
			err = decodeInto(&m.service, document)
		case "ServiceMonitor":
			err = decodeInto(&m.serviceMonitor, document)
		case "PrometheusRule":
			err = decodeInto(&m.rule, document)
		case "ConfigMap":
			err = decodeInto(&m.dashboard, document)
		default:
			t.Errorf("%s is not expected", head.Kind)
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", head.Kind, err, document)
		}
		if head.Metadata.Name == "" || head.Metadata.Namespace != "monitoring" {
			t.Errorf("%s %q is in namespace %q", head.Kind, head.Metadata.Name, head.Metadata.Namespace)
		}
	}
	if m.account == nil || m.daemonSet == nil {
		t.Fatalf("no ServiceAccount or no DaemonSet in\n%s", text)
	}
	return m
}

func decodeInto[T any](into **T, document string) error {
	if *into != nil {
		return fmt.Errorf("it is there twice")
	}
	*into = new(T)
	return yaml.UnmarshalStrict([]byte(document), *into)
}

// build decodes what the chart makes of these values.
func build(t *testing.T, values string) manifest {
	t.Helper()
	text, err := template(load(t), values)
	if err != nil {
		t.Fatalf("%v\n%s", err, values)
	}
	return decode(t, text)
}

// TestGolden compares what the chart makes with testdata/NAME.golden.yaml, for the values in
// testdata/NAME.yaml. It also lints the chart with these values. Golden files have no rules and no
// dashboard: TestRules and TestDashboard check these.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, path := range paths {
		name, golden := strings.CutSuffix(path, ".golden.yaml")
		if golden {
			readFile(t, name+".yaml") // one without values would be out of date
			continue
		}
		tested++
		t.Run(filepath.Base(path), func(t *testing.T) {
			values := readFile(t, path)
			c := load(t)
			for _, f := range c.Files {
				switch f.Name {
				case "files/rules.yml":
					f.Data = []byte("groups: []\n")
				case "files/dashboard.json":
					f.Data = []byte("{}\n")
				}
			}
			got, err := template(c, values)
			if err != nil {
				t.Fatal(err)
			}
			decode(t, got)
			goldenPath := strings.TrimSuffix(path, ".yaml") + ".golden.yaml"
			if *update {
				if err := os.WriteFile(goldenPath, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(readFile(t, goldenPath), got); diff != "" {
				t.Errorf("(-%s +got), see -update:\n%s", goldenPath, diff)
			}

			parsed, err := loader.LoadValues(strings.NewReader(values))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range lint.RunAll(".", parsed, "monitoring").Messages {
				if m.Severity > support.InfoSev {
					t.Error(m)
				}
			}
		})
	}
	if tested < 10 {
		t.Errorf("%d sets of values in testdata", tested)
	}
}

//go:build linux

package deploy

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dashboard is the part of Grafana's classic dashboard model that the tests check.
type dashboard struct {
	Inputs        any `json:"__inputs"`
	SchemaVersion int
	Title, UID    string
	Panels        []panel
	Templating    struct{ List []variable }
}

type datasource struct{ Type, UID string }

type variable struct {
	Name, Type string
	Datasource datasource
}

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               datasource
	GridPos                  struct{ X, Y, W, H int }
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Targets                  []struct {
		RefID        string
		Datasource   datasource
		Expr         string
		LegendFormat string
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(readFile(t, "grafana/dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

var fromVariable = datasource{Type: "prometheus", UID: "${datasource}"}

// TestDashboard checks what Grafana 10 and later need from a dashboard.
func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.Inputs != nil || d.SchemaVersion < 39 || d.SchemaVersion > 42 || d.UID == "" {
		t.Errorf("inputs %v, schema version %d, uid %q", d.Inputs, d.SchemaVersion, d.UID)
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
		if v.Type == "query" && v.Datasource != fromVariable {
			t.Errorf("variable %s: data source %v", v.Name, v.Datasource)
		}
	}
	if want := []string{"datasource", "job", "instance", "netns"}; !slices.Equal(variables, want) {
		t.Errorf("variables %v, want %v", variables, want)
	}

	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range d.Panels {
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
			continue
		}
		if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
			t.Errorf("%s: description %q, unit %q, %d queries", p.Title, p.Description, p.FieldConfig.Defaults.Unit, len(p.Targets))
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
			if !strings.Contains(target.Expr, `job=~"$job"`) {
				t.Errorf("%s: query %s is of every job", p.Title, target.RefID)
			}
		}
	}
}

// fillIn replaces the variables in a query by values of the test's Prometheus.
func fillIn(expr string) string {
	return strings.NewReplacer("$job", "ephemeral_port", "$instance", "localhost:10149", "$netns", "self", "$__rate_interval", "1m").Replace(expr)
}

// TestDashboardQueries checks the queries with promtool, and that their metrics exist.
func TestDashboardQueries(t *testing.T) {
	metrics := readFile(t, "../collector/testdata/metrics.prom")
	metric := regexp.MustCompile(`ephemeral_port_\w+`)
	var rules strings.Builder
	rules.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			expr := fillIn(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("%s: unknown variable in %s", p.Title, target.Expr)
			}
			fmt.Fprintf(&rules, "      - {record: 'panel:%d:%s', expr: '%s'}\n", p.ID, target.RefID, expr)
			for _, name := range metric.FindAllString(target.Expr, -1) {
				if !strings.Contains(metrics, "\n# TYPE "+name+" ") {
					t.Errorf("%s: no such metric: %s", p.Title, name)
				}
			}
		}
	}
	run(t, tool(t, "promtool", "prometheus"), "check", "rules", "--lint=none", write(t, t.TempDir(), "dashboard.yml", rules.String()))
}

// testDashboardQueries runs queries in the live Prometheus of an end-to-end test: those about failed
// connects, or all others.
func testDashboardQueries(t *testing.T, failures bool) {
	asked := 0
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			// This has a result only if a connect without a series of its own failed.
			if strings.Contains(target.Expr, "connect_failures_unattributed") || strings.Contains(target.Expr, "connect_failures") != failures {
				continue
			}
			asked++
			waitFor(t, fillIn(target.Expr))
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
	unmarshal(t, "grafana/provisioning/datasources/prometheus.yml", &sources)
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
	unmarshal(t, "grafana/provisioning/dashboards/ephemeral_port.yml", &dashboards)
	if dashboards.APIVersion != 1 || len(dashboards.Providers) != 1 || dashboards.Providers[0].Type != "file" || dashboards.Providers[0].Options.Path == "" {
		t.Errorf("dashboards: %+v", dashboards)
	}
}

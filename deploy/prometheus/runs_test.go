//go:build linux

package prometheus

import (
	"flag"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v2"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/deploy/deploytest"
)

var updateRuns = flag.Bool("update-runs", false, "write the tables of alerts.md")

// A recordedRun is a file of runs/testdata.
type recordedRun struct {
	Corpus string `yaml:"-"`

	Name, About, Answer string
	Connects, Failed    int
	First               float64 `yaml:"first_failed_seconds"`
	Median              float64 `yaml:"median_connect_microseconds"`
	P99                 float64 `yaml:"p99_connect_microseconds"`
	Scrapes             int
	Series              []inputSeries
}

const (
	recorded  = 5  // seconds between the scrapes of the records
	evaluated = 15 // seconds between the evaluations of the rules at least
)

// replayed are the times between scrapes at which the rules are judged, in seconds.

var replayed = []int{5, 15, 30, 60}

// expand writes out the values of a series.
func expand(t *testing.T, values string) []string {
	t.Helper()
	var all []string
	for v := range strings.FieldsSeq(values) {
		value, times, ok := strings.Cut(v, "x")
		n := 0
		if ok {
			var err error
			if n, err = strconv.Atoi(times); err != nil {
				t.Fatal(err)
			}
			if value == "_" {
				n--
			}
		}
		all = append(all, slices.Repeat([]string{value}, n+1)...)
	}
	return all
}

// addTo adds the record to a test as with another time between scrapes. Its job is its name.
func (r *recordedRun) addTo(t *testing.T, test *rulesTest, seconds int) {
	t.Helper()
	for _, s := range r.Series {
		all := expand(t, s.Values)
		var some []string
		for i := 0; i < len(all); i += seconds / recorded {
			some = append(some, all[i])
		}
		name := strings.Replace(s.Series, `job="ephemeral_port"`, fmt.Sprintf("job=%q", r.job()), 1)
		test.Series = append(test.Series, inputSeries{name, strings.Join(append(some, "stale"), " ")})
	}
}

func (r *recordedRun) job() string { return "ephemeral_port " + r.Corpus + " " + r.Name }

// An outcome is when an alert of a run first fired at a time between scrapes, in seconds after the start.
type outcome struct {
	job             string
	seconds         int
	alert, severity string
}

// groupNames returns the groups of rules.yml in their order.
func groupNames(t *testing.T) (names []string) {
	t.Helper()
	var rules ruleGroups
	deploytest.Unmarshal(t, "rules.yml", &rules)
	for _, g := range rules.Groups {
		names = append(names, g.Name)
	}
	return names
}

// replay returns which alerts fire in the runs, with the groups of rules evaluated in that order.
func replay(t *testing.T, runs []recordedRun, seconds int, groups []string) map[outcome]float64 {
	t.Helper()
	rules, err := filepath.Abs("rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	step, end := max(seconds, evaluated), 0
	test := rulesTest{Interval: fmt.Sprintf("%ds", seconds)}
	for _, r := range runs {
		r.addTo(t, &test, seconds)
		end = max(end, (r.Scrapes-1)*recorded/step*step)
	}
	test.Exprs = []exprTest{{
		Expr: fmt.Sprintf(`min by (alertname, job, severity) (min_over_time(timestamp(ALERTS{alertstate="firing"})[%ds:%ds]))`, end+1, step),
		Time: fmt.Sprintf("%ds", end),
	}}
	b, err := yaml.Marshal(map[string]any{"rule_files": []string{rules}, "evaluation_interval": fmt.Sprintf("%ds", step), "group_eval_order": groups, "tests": []rulesTest{test}})
	if err != nil {
		t.Fatal(err)
	}
	// promtool has no other way to say what an expression is: nothing is expected, and it says what it got.
	out, err := exec.Command(netnstest.ProgramPath(promtoolProgram), "test", "rules", deploytest.Write(t, t.TempDir(), "test.yml", string(b))).CombinedOutput()
	outcomes := map[outcome]float64{}
	for _, m := range regexp.MustCompile(`\{alertname="(\w+)", job="([^"]+)", severity="(\w+)"\} ([0-9.E+]+)`).FindAllStringSubmatch(string(out), -1) {
		at, err := strconv.ParseFloat(m[4], 64)
		if err != nil {
			t.Fatal(err)
		}
		outcomes[outcome{m[2], seconds, m[1], m[3]}] = at
	}
	if len(outcomes) == 0 {
		t.Fatalf("%v: %.2000s", err, out)
	}
	return outcomes
}

// TestRuns replays the recorded runs at several times between scrapes. Of each, the worst severity must be the right answer, and a page
// must come in time. alerts.md has the outcome.
func TestRuns(t *testing.T) {
	for _, corpus := range []string{"tuned", "judged"} {
		t.Run(corpus, func(t *testing.T) {
			paths, err := filepath.Glob("runs/testdata/" + corpus + "/*.yml")
			if err != nil {
				t.Fatal(err)
			}
			var runs []recordedRun
			for _, path := range paths {
				r := recordedRun{Corpus: corpus}
				deploytest.Unmarshal(t, path, &r)
				runs = append(runs, r)
			}
			groups := groupNames(t)
			outcomes := map[outcome]float64{}
			// Prometheus evaluates groups at once: an alert reads what was recorded now, or by the evaluation before.
			for _, order := range [][]string{reversed(groups), groups} {
				for _, seconds := range replayed {
					maps.Copy(outcomes, replay(t, runs, seconds, order))
				}
				for _, r := range runs {
					for _, seconds := range replayed {
						r.check(t, outcomes, seconds)
					}
				}
				if !slices.Equal(order, groups) {
					clear(outcomes)
				}
			}
			checkDocument(t, corpus, table(runs, outcomes))
		})
	}
}

// reversed returns names in the opposite order.
func reversed(names []string) []string {
	names = slices.Clone(names)
	slices.Reverse(names)
	return names
}

// checkDocument compares the table of a corpus with that of alerts.md, or writes it.
func checkDocument(t *testing.T, corpus, table string) {
	t.Helper()
	const path = "../docs/alerts.md"
	document := deploytest.Read(t, path)
	chapter := strings.Index(document, map[string]string{"tuned": "\n## What they make the alerts do\n", "judged": "\n## Runs that no rule was tuned on\n"}[corpus])
	if chapter < 0 {
		t.Fatalf("alerts.md has no chapter on the runs %s", corpus)
	}
	start := chapter + strings.Index(document[chapter:], "\n| run |") + 1
	end := start + strings.Index(document[start:], "\n\n") + 1
	got := document[start:end]
	switch {
	case *updateRuns:
		deploytest.Write(t, filepath.Dir(path), filepath.Base(path), document[:start]+table+document[end:])
	case got != table:
		t.Errorf("alerts.md (-document +outcome):\n%s", cmp.Diff(got, table))
	}
}

// deviations are the runs whose outcome is not the right answer, and why the rules are as they are.
var deviations = map[string]string{
	"judged loopback": "with half of the ports in use all the time, it is not known which ones are bound; and by chance, 200 ports swing to 85%",
	"judged restart":  "with half of the ports in use all the time, it is not known which ones are bound",
}

// check compares the outcome with the right answer.
func (r *recordedRun) check(t *testing.T, outcomes map[outcome]float64, seconds int) {
	t.Helper()
	worst, page := "silent", 0.
	for o, at := range outcomes {
		if o.job != r.job() || o.seconds != seconds {
			continue
		}
		switch {
		case o.severity == "critical" && (worst != "page" || at < page):
			worst, page = "page", at
		case o.severity == "warning" && worst == "silent":
			worst = "warn"
		}
	}
	if worst != r.Answer && deviations[r.Corpus+" "+r.Name] == "" {
		t.Errorf("%s/%s at %d s: %s, want %s", r.Corpus, r.Name, seconds, worst, r.Answer)
	}
	if late := page - r.First - float64(2*seconds); r.Failed > 0 && late > 0 {
		t.Errorf("%s/%s at %d s: the page comes %v s after the first connect that failed", r.Corpus, r.Name, seconds, page-r.First)
	}
}

// table returns the rows of the runs.
func table(runs []recordedRun, outcomes map[outcome]float64) string {
	alerts := map[string]bool{}
	for o := range outcomes {
		alerts[o.alert] = true
	}
	columns := slices.Sorted(maps.Keys(alerts))
	var b strings.Builder
	b.WriteString("| run | right answer | failed | first page |")
	for _, alert := range columns {
		b.WriteString(" " + strings.TrimPrefix(strings.TrimPrefix(alert, "Ephemeral"), "Ports") + " |")
	}
	b.WriteString("\n|---|---|---|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, r := range runs {
		fmt.Fprintf(&b, "| %s: %s | %s | %d | %s |", r.Name, strings.TrimSuffix(r.About, "."), r.Answer, r.Failed, r.page(outcomes))
		for _, alert := range columns {
			fmt.Fprintf(&b, " %s |", r.cell(outcomes, alert))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// page says when the first page comes at 15 s between scrapes.
func (r *recordedRun) page(outcomes map[outcome]float64) string {
	first := -1.
	for o, at := range outcomes {
		if o.job == r.job() && o.seconds == 15 && o.severity == "critical" && (first < 0 || at < first) {
			first = at
		}
	}
	switch {
	case first < 0:
		return ""
	case r.Failed == 0:
		return fmt.Sprintf("at %.0f s", first)
	case first <= r.First:
		return fmt.Sprintf("%.0f s before", r.First-first)
	default:
		return fmt.Sprintf("%.0f s after", first-r.First)
	}
}

// cell says with which severity an alert fires, and at which times between scrapes if not at all of them.
func (r *recordedRun) cell(outcomes map[outcome]float64, alert string) string {
	var words []string
	for _, severity := range []string{"critical", "warning", "info"} {
		var at []string
		for _, seconds := range replayed {
			if _, ok := outcomes[outcome{r.job(), seconds, alert, severity}]; ok {
				at = append(at, strconv.Itoa(seconds))
			}
		}
		word := map[string]string{"critical": "page", "warning": "warn", "info": "info"}[severity]
		switch {
		case len(at) == len(replayed):
			words = append(words, word)
		case len(at) > 0:
			words = append(words, word+" "+strings.Join(at, " "))
		}
	}
	return strings.Join(words, ", ")
}

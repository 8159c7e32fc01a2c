//go:build linux

package main

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kingpin/v2"
	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// readme returns the cells of the tables of the README whose rows begin with a name.
func readmeRows(t *testing.T, name string) [][]string {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "| `"+name) {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i, c := range cells {
			cells[i] = strings.ReplaceAll(strings.TrimSpace(c), "`", "")
		}
		rows = append(rows, cells)
	}
	return rows
}

// TestReadmeMetrics compares the table with the exported metrics: names, types, labels.
func TestReadmeMetrics(t *testing.T) {
	golden, err := os.ReadFile("../../collector/testdata/metrics.prom")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	types := regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`)
	label := regexp.MustCompile(`(\w+)="`)
	for _, m := range types.FindAllStringSubmatch(string(golden), -1) {
		_, sample, _ := strings.Cut(string(golden), "\n"+m[1]+"{")
		sample, _, _ = strings.Cut(sample, "}")
		var labels []string
		for _, l := range label.FindAllStringSubmatch(sample, -1) {
			if l[1] != "netns" {
				labels = append(labels, l[1])
			}
		}
		slices.Sort(labels)
		want = append(want, strings.Join(append(m[1:], labels...), " "))
	}
	for _, row := range readmeRows(t, "ephemeral_port_") {
		labels := strings.Fields(row[2])
		slices.Sort(labels)
		got = append(got, strings.Join(append(row[:2:2], labels...), " "))
		if row[3] == "" {
			t.Errorf("%s has no meaning", row[0])
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-exported +README):\n%s", diff)
	}
}

// TestReadmeFlags compares the table with the flags: names and defaults.
func TestReadmeFlags(t *testing.T) {
	app := kingpin.New(name, "").Version("")
	addFlags(app)
	var want, got []string
	for _, f := range app.Model().Flags {
		if f.Hidden {
			continue
		}
		value := strings.Join(f.Default, " ")
		if f.IsBoolFlag() && value == "" {
			value = "false"
		}
		want = append(want, strings.TrimSpace("--"+f.Name+" "+value))
	}
	for _, row := range readmeRows(t, "--") {
		got = append(got, strings.TrimSpace(row[0]+" "+row[1]))
		if row[2] == "" {
			t.Errorf("%s has no meaning", row[0])
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flags (-program +README):\n%s", diff)
	}
}

// TestReadmeIncident runs the incident that the README shows, and gets what it says.
func TestReadmeIncident(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("no curl: install the package curl")
		}
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "\n### An incident in one minute\n")
	_, section, _ = strings.Cut(section, "\n```sh\n")
	script, section, _ := strings.Cut(section, "\n```\n")
	_, section, _ = strings.Cut(section, "\n```\n")
	want, _, ok := strings.Cut(section, "\n```\n")
	const build, binary = "CGO_ENABLED=0 go build -o /tmp/ephemeral_port_exporter ./cmd/ephemeral_port_exporter\n", "/tmp/ephemeral_port_exporter"
	if !ok || !strings.HasPrefix(script, build) {
		t.Fatalf("not the script and its output:\n%s\n%s", script, want)
	}
	script = strings.ReplaceAll(strings.TrimPrefix(script, build), binary, netnstest.ProgramPath(name))

	got, err := exec.Command("bash", "-c", script).CombinedOutput()
	if err != nil {
		t.Errorf("%v:\n%s", err, got)
	}
	// How fast the machine is, and how late a timer of its kernel can be.
	times := regexp.MustCompile(`after \d+ ms|(closes_per_second\{.*\}) .*|(ceiling_requests_per_second\{.*\}) 3\.\d+`)
	normal := func(text string) string { return strings.TrimSpace(times.ReplaceAllString(text, "$1$2")) }
	if diff := cmp.Diff(normal(want), normal(string(got))); diff != "" {
		t.Errorf("(-README +got):\n%s", diff)
	}
}

// TestReadmePrograms compares the table with what TestPrograms finds.
func TestReadmePrograms(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, p := range programs {
		want = append(want, p.readme())
	}
	_, section, _ := strings.Cut(string(readme), "\n## Programs\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "| ") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	if diff := cmp.Diff(want, got[min(len(got), 1):]); diff != "" {
		t.Errorf("programs (-tested +README):\n%s", diff)
	}
}

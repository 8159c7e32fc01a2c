//go:build linux

package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kingpin/v2"
	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// documents has the documents about parts of the program.
const documents = "../../deploy/docs/"

// readDocument returns a document.
func readDocument(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// documentRows returns the cells of the tables of a document whose rows begin with a name.
func documentRows(t *testing.T, path, name string) [][]string {
	t.Helper()
	var rows [][]string
	for line := range strings.Lines(readDocument(t, path)) {
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

// TestReadmeMetrics compares the tables with the exported metrics: names, types, labels.
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
	for _, row := range documentRows(t, documents+"metrics.md", "ephemeral_port_") {
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
		t.Errorf("metrics (-exported +metrics.md):\n%s", diff)
	}
}

var update = flag.Bool("update", false, "write the tables that are generated from the program")

// TestFlagsTable compares the table of flags with that of the program. With -update, it writes the table.
func TestFlagsTable(t *testing.T) {
	app := kingpin.New(name, "").Version("")
	addFlags(app)
	want := "| flag | default | meaning |\n|---|---|---|\n"
	for _, f := range app.Model().Flags {
		if f.Hidden {
			continue
		}
		value := strings.Join(f.Default, " ")
		if f.IsBoolFlag() && value == "" {
			value = "false"
		}
		if value != "" {
			value = " `" + value + "`"
		}
		want += fmt.Sprintf("| `--%s` |%s | %s |\n", f.Name, value, f.Help)
	}
	const path, heading = documents + "reference.md", "\n## Flags\n\n"
	before, after, _ := strings.Cut(readDocument(t, path), heading)
	got, after, ok := strings.Cut(after, "\n\n")
	if !ok {
		t.Fatal("reference.md has no table of flags")
	}
	if *update {
		if err := os.WriteFile(path, []byte(before+heading+want+"\n"+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, got+"\n"); diff != "" {
		t.Errorf("flags, see -update (-program +reference.md):\n%s", diff)
	}
}

// TestReadmeLog checks that the table of log messages has those of the program. The end of a long one is
// left out.
func TestReadmeLog(t *testing.T) {
	var listed []string
	_, chapter, _ := strings.Cut(readDocument(t, documents+"reference.md"), "\n## Log messages\n")
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(chapter, -1) {
		listed = append(listed, strings.TrimSuffix(m[1], "…"))
	}
	files := []string{"main.go"}
	for _, dir := range []string{"logging", "scan", "web"} {
		more, err := filepath.Glob("../../collector/" + dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	messages := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range regexp.MustCompile(`(?i)(?:logger\.(?:Error|Warn|Info)\(|NewRecord\([^"\n]*)"([^"]+)"`).FindAllStringSubmatch(readDocument(t, file), -1) {
			messages++
			if !slices.ContainsFunc(listed, func(text string) bool {
				return strings.HasPrefix(m[1], text) || strings.HasSuffix(m[1], " ") && text == m[1]+name
			}) {
				t.Errorf("reference.md does not have the message %q", m[1])
			}
		}
	}
	if messages < 20 {
		t.Errorf("only %d messages in the program", messages)
	}
}

// TestReadmeSample checks that the status page that the README shows is what the program prints, where "…" stands for
// at least one line.
func TestReadmeSample(t *testing.T) {
	_, section, _ := strings.Cut(readDocument(t, "../../README.md"), "\nThe same in a terminal")
	_, section, _ = strings.Cut(section, "\n```\n")
	sample, _, found := strings.Cut(section, "```\n")
	if !found {
		t.Fatal("the README has no sample")
	}
	page := strings.Split(readDocument(t, "../../collector/status/testdata/trouble.text"), "\n")
	next, leftOut := 0, false // the lines before next are in the sample, or left out
	for line := range strings.Lines(sample) {
		line = strings.TrimSuffix(line, "\n")
		if line == "…" {
			next, leftOut = next+1, true
			continue
		}
		at := slices.Index(page[min(next, len(page)):], line)
		if at < 0 || at > 0 && !leftOut {
			t.Fatalf("the page does not go on with this line of the sample: %q", line)
		}
		next, leftOut = next+at+1, false
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
	_, section, _ := strings.Cut(readDocument(t, "../../README.md"), "\n### An incident in one minute\n")
	_, section, _ = strings.Cut(section, "\n```sh\n")
	script, section, _ := strings.Cut(section, "\n```\n")
	_, section, _ = strings.Cut(section, "\n```\n")
	want, _, ok := strings.Cut(section, "\n```\n")
	const build, binary = "go build -o /tmp/ephemeral_port_exporter ./cmd/ephemeral_port_exporter\n", "/tmp/ephemeral_port_exporter"
	if !ok || !strings.HasPrefix(script, build) {
		t.Fatalf("not the script and its output:\n%s\n%s", script, want)
	}
	script = strings.ReplaceAll(strings.TrimPrefix(script, build), binary, netnstest.ProgramPath(name))

	got, err := exec.Command("bash", "-c", script).CombinedOutput()
	if err != nil {
		t.Errorf("%v:\n%s", err, got)
	}
	// How fast the machine is, and how late a timer of its kernel can be.
	varies := regexp.MustCompile(`(closes_per_second) .*|(ceiling_requests_per_second) 3\.\d+`)
	normal := func(text string) string { return strings.TrimSpace(varies.ReplaceAllString(text, "$1$2")) }
	if diff := cmp.Diff(normal(want), normal(string(got))); diff != "" {
		t.Errorf("(-README +got):\n%s", diff)
	}
}

// TestReadmeChecks runs the plugin and the line of cron that reference.md shows, where a destination is out of ports.
func TestReadmeChecks(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.7:80")}.Hold(t, 100)
	t.Setenv("PATH", filepath.Dir(netnstest.ProgramPath(name))+":"+os.Getenv("PATH"))
	_, section, _ := strings.Cut(readDocument(t, documents+"reference.md"), "\n## Exit codes\n")
	_, plugin, _ := strings.Cut(section, "\n```sh\n")
	plugin, section, _ = strings.Cut(plugin, "```\n")
	_, cron, _ := strings.Cut(section, " * * * * root ")
	cron, _, _ = strings.Cut(cron, "\n```\n")
	for script, want := range map[string]int{plugin: 2, cron: 0} {
		out, err := exec.Command("sh", "-c", script).CombinedOutput()
		code := 0
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			code = exit.ExitCode()
		}
		if code != want || !strings.Contains(string(out), "198.51.100.7:80 is out of ports") || script == plugin && strings.Contains(string(out), "|") {
			t.Errorf("%s: exit status %d, want %d:\n%s", script, code, want, out)
		}
	}
}

// TestReadmePrograms compares the table with what TestPrograms finds.
func TestReadmePrograms(t *testing.T) {
	var want, got []string
	for _, p := range programs {
		want = append(want, p.row())
	}
	for line := range strings.Lines(readDocument(t, documents+"programs.md")) {
		if strings.HasPrefix(line, "| ") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	if diff := cmp.Diff(want, got[min(len(got), 1):]); diff != "" {
		t.Errorf("programs (-tested +programs.md):\n%s", diff)
	}
}

package deploy

import (
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// buildExporter returns the path of the real binary.
func buildExporter(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "ephemeral_port_exporter")
	run(t, "go", "build", "-o", binary, "ephemeral_port_exporter/cmd/ephemeral_port_exporter")
	return binary
}

// checkFlags reports flags in a text that the exporter does not have.
func checkFlags(t *testing.T, path, text string) {
	t.Helper()
	help := run(t, buildExporter(t), "--help")
	for _, flag := range regexp.MustCompile(`--[a-z][a-z.-]*[a-z]`).FindAllString(text, -1) {
		name := strings.TrimPrefix(flag, "--")
		if !regexp.MustCompile(`--(\[no-\])?` + regexp.QuoteMeta(name) + `[ =]`).MatchString(help) {
			t.Errorf("%s: the exporter has no flag %s", path, flag)
		}
	}
}

const systemdService = "systemd/ephemeral_port_exporter.service"

// TestSystemdUnits have nothing that systemd complains about.
func TestSystemdUnits(t *testing.T) {
	analyze := tool(t, "systemd-analyze", "systemd")
	dir := t.TempDir()
	service := strings.Replace(readFile(t, systemdService), "/usr/local/bin/ephemeral_port_exporter", buildExporter(t), 1)
	out := run(t, analyze, "verify", "--man=no",
		write(t, dir, "ephemeral_port_exporter.service", service),
		write(t, dir, "ephemeral_port_exporter.socket", readFile(t, "systemd/ephemeral_port_exporter.socket")))
	if out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	for _, path := range []string{systemdService, "systemd/ephemeral_port_exporter.socket", "systemd/ephemeral_port_exporter.default"} {
		checkFlags(t, path, readFile(t, path))
	}
}

// TestSystemdSecurity is at most 1.5 of 10, of which the network takes 0.5.
func TestSystemdSecurity(t *testing.T) {
	out := run(t, tool(t, "systemd-analyze", "systemd"), "security", "--offline=true", "--no-pager", systemdService)
	m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no exposure level in\n%s", out)
	}
	if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > 1.5 {
		t.Errorf("exposure level %s, want at most 1.5:\n%s", m[1], out)
	}
	if strings.Contains(readFile(t, systemdService), "\nProcSubset=") {
		t.Error("ProcSubset= hides the sysctls")
	}
}

// TestSystemdPort is the same in the socket unit as in the program.
func TestSystemdPort(t *testing.T) {
	if !strings.Contains(readFile(t, "systemd/ephemeral_port_exporter.socket"), "\nListenStream="+defaultPort(t)+"\n") {
		t.Error("the socket unit has another port than the exporter")
	}
}

// defaultPort is where the exporter listens if not told otherwise.
func defaultPort(t *testing.T) string {
	t.Helper()
	m := regexp.MustCompile(`--web\.listen-address=:(\d+)`).FindStringSubmatch(run(t, buildExporter(t), "--help"))
	if m == nil {
		t.Fatal("no default listen address in --help")
	}
	return m[1]
}

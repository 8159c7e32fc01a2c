//go:build linux

package deploy

import (
	"os"
	"os/exec"
	"testing"

	"go.yaml.in/yaml/v2"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// The names of the programs that TestMain builds.
const (
	exporterProgram = "ephemeral_port_exporter"
	promtoolProgram = "promtool"
	releaseProgram  = "release"
)

func TestMain(m *testing.M) {
	os.Exit(netnstest.Main(m,
		netnstest.Program{Name: exporterProgram, Args: []string{"build", "ephemeral_port_exporter/cmd/ephemeral_port_exporter"}},
		netnstest.Program{Name: promtoolProgram, Args: []string{"build", "-tags=remove_all_sd", "github.com/prometheus/prometheus/cmd/promtool"}, Dir: "promtool"},
		// .ci/release runs it from Go's build cache. It is built here because the tests have no network for the
		// download of its modules.
		netnstest.Program{Name: releaseProgram, Args: []string{"build", "."}, Dir: "release"}))
}

// tool returns the path of a program of a Debian package. If it is not installed, the test is
// skipped, except in CI.
func tool(t *testing.T, program, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("no %s: install the package %s", program, debianPackage)
		}
		t.Fatal(err)
	}
	return path
}

// run runs a program that must succeed, and returns its output.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// readFile returns the content of a file of this directory.
func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// unmarshal decodes a YAML file of this directory.
func unmarshal(t *testing.T, path string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(readFile(t, path)), into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

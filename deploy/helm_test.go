//go:build linux

package deploy

import (
	"os/exec"
	"path/filepath"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestHelm runs the tests of the nested module, which has Helm and the types of Kubernetes. It checks
// that the flags of the chart exist.
func TestHelm(t *testing.T) {
	cmd := exec.Command(netnstest.ProgramPath(helmTest))
	cmd.Dir = "helm"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("tests of %s: %v\n%s", cmd.Dir, err, out)
	}
	golden, err := filepath.Glob("helm/testdata/*.golden.yaml")
	if err != nil || len(golden) == 0 {
		t.Fatal("no golden files of the chart", err)
	}
	for _, path := range append(golden, "helm/values.yaml") {
		checkFlags(t, path, readFile(t, path))
	}
}

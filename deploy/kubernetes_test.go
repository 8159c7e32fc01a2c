//go:build linux

package deploy

import (
	"os/exec"
	"testing"
)

// TestKubernetes runs the tests of the nested module, which has the types of Kubernetes.
func TestKubernetes(t *testing.T) {
	// Its cache would not notice a change of files outside of that module.
	cmd := exec.Command("go", "test", "-count=1", "./...")
	cmd.Dir = "kubernetes"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("go test in %s: %v\n%s", cmd.Dir, err, out)
	}
	for _, path := range []string{"kubernetes/base/daemonset.yaml", "kubernetes/overlays/all-namespaces/daemonset.yaml", "kubernetes/overlays/connect-failures/daemonset.yaml"} {
		checkFlags(t, path, readFile(t, path))
	}
}

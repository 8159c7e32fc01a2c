//go:build linux

package deploy

import (
	"os/exec"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestKubernetes runs the tests of the nested module, which has the types of Kubernetes.
func TestKubernetes(t *testing.T) {
	cmd := exec.Command(netnstest.ProgramPath(kubernetesTest))
	cmd.Dir = "kubernetes"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("tests of %s: %v\n%s", cmd.Dir, err, out)
	}
	for _, path := range []string{"kubernetes/base/daemonset.yaml", "kubernetes/overlays/all-namespaces/daemonset.yaml", "kubernetes/overlays/connect-failures/daemonset.yaml", "kubernetes/overlays/exact/daemonset.yaml"} {
		checkFlags(t, path, readFile(t, path))
	}
}

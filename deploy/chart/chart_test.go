// Package chart runs the tests of the chart's module, which has Helm and the types of Kubernetes. It is a package of its
// own because a package's tests have ten minutes, and to compile these takes some of them where nothing is cached.
package chart

import (
	"os"
	"os/exec"
	"testing"
)

func TestChart(t *testing.T) {
	cmd := exec.Command("go", "test", "-count=1", "-buildvcs=false", ".") // Go's cache does not see files of other modules
	cmd.Dir = "../helm"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // less to compile
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v in %s: %v\n%s", cmd, cmd.Dir, err, out)
	}
}

//go:build linux

package deploy

import (
	"os"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// The names of the programs that TestMain builds.
const (
	exporterProgram = "ephemeral_port_exporter"
	releaseProgram  = "release"
)

func TestMain(m *testing.M) {
	os.Exit(netnstest.Main(m,
		netnstest.Program{Name: exporterProgram, Args: []string{"build", "ephemeral_port_exporter/cmd/ephemeral_port_exporter"}},
		// .ci/release runs it from Go's build cache. It is built here because the tests have no network for the
		// download of its modules.
		netnstest.Program{Name: releaseProgram, Args: []string{"build", "."}, Dir: "release"}))
}

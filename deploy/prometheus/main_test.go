//go:build linux

package prometheus

import (
	"os"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// promtoolProgram is the name of the program that TestMain builds.
const promtoolProgram = "promtool"

func TestMain(m *testing.M) {
	os.Exit(netnstest.Main(m, netnstest.Program{
		Name: promtoolProgram, Dir: "promtool",
		Args: []string{"build", "-tags=remove_all_sd", "github.com/prometheus/prometheus/cmd/promtool"},
	}))
}

//go:build linux

package sockiter

import (
	"os"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

//go:build linux

package nlconn

import (
	"os"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

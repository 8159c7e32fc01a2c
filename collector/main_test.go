package collector

import (
	"testing"

	"ephemeral_port_exporter/collector/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

//go:build linux

package scan

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestListenerPorts lists listeners in the range and outside, with both readers.
func TestListenerPorts(t *testing.T) {
	for name, newScanner := range map[string]func(*testing.T, Config) *Scanner{
		"netlink": func(t *testing.T, cfg Config) *Scanner { return newScanner(t, cfg) },
		"exact":   newExactScanner,
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40019")
			netnstest.Listen(t, "127.0.0.9:40003", false)
			netnstest.Listen(t, "[::1]:80", true)
			netnstest.Listen(t, "0.0.0.0:65535", false)
			r := selfReport(t, newScanner(t, testConfig()))
			if diff := cmp.Diff([]uint16{80, 40003, 65535}, r.ListenerPorts); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
			if r.CapacityPorts != 19 || r.BlockedPorts != 1 {
				t.Errorf("capacity %d, blocked %d, want 19 and 1", r.CapacityPorts, r.BlockedPorts)
			}
		})
	}
}

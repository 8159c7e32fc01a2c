//go:build linux

package main

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestCiliumUnread checks that the program is not calm on a node of Cilium whose source NAT it cannot see.
func TestCiliumUnread(t *testing.T) {
	netnstest.IP(t, "link add cilium_host type veth peer name cilium_net")
	t.Cleanup(func() { netnstest.IP(t, "link delete cilium_host") })
	trackFlows(t)
	for _, tt := range []struct {
		snat                bool
		page, metrics, logs string
	}{
		{false, "--snat judges the ports of source NAT. Cilium runs here", "", ""},
		{true, "The source NAT of Cilium could not be read", `ephemeral_port_snat_cilium_collect_success{netns="self"} 0`, "The source NAT of Cilium is not known"},
	} {
		args := []string{"--web.listen-address=127.0.0.1:10391"}
		if tt.snat {
			args = append(args, "--snat")
		}
		cmd := command(t, args...)
		unprivileged(t, cmd, unix.CAP_NET_ADMIN)
		e := start(t, cmd, "http://127.0.0.1:10391")
		for range 2 {
			_, metrics := e.get(t, "/metrics")
			_, page := e.get(t, "/?format=text")
			headline, _, _ := strings.Cut(page, "\n")
			if tt.snat != strings.Contains(headline, tt.page) || !strings.Contains(strings.Join(strings.Fields(page), " "), tt.page) {
				t.Errorf("--snat %v: page\n%s", tt.snat, page)
			}
			if !strings.Contains(metrics, tt.metrics) || strings.Contains(metrics, "\nephemeral_port_snat_max_utilization") {
				t.Errorf("--snat %v: metrics\n%s", tt.snat, metrics)
			}
		}
		if got := strings.Count(e.log.String(), "of Cilium is not known"); got > 1 || !strings.Contains(e.log.String(), tt.logs) {
			t.Errorf("--snat %v: %d lines of the log\n%s", tt.snat, got, e.log)
		}
		if err := e.stop(t); err != nil {
			t.Error(err)
		}
	}
}

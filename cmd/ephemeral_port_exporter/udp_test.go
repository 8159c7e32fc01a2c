//go:build linux

package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestUDP checks the metrics of UDP ports of the real program, without privileges, also of 40 scrapes
// at once.
func TestUDP(t *testing.T) {
	const address, held = "127.0.0.1:10197", 300 // more than 1% of the usual range
	netnstest.UDP{Remote: netip.MustParseAddrPort("198.51.100.7:53")}.Hold(t, held)
	cmd := command(t, "--web.listen-address="+address)
	unprivileged(t, cmd)
	e := start(t, cmd, "http://"+address)
	_, metrics := e.get(t, "/metrics")

	capacity := sample(t, metrics, `ephemeral_port_udp_capacity_ports{netns="self"} `)
	ports := sample(t, metrics, `ephemeral_port_udp_ports{family="ipv4",netns="self"} `)
	if ports < held || capacity < 28000 {
		t.Errorf("%v of %v ports, want %d at least", ports, capacity, held)
	}
	if u := sample(t, metrics, `ephemeral_port_udp_utilization_ratio{family="ipv4",netns="self"} `); u != ports/capacity {
		t.Errorf("utilization %v, want %v/%v", u, ports, capacity)
	}
	if n := sample(t, metrics, `ephemeral_port_udp_sockets{netns="self"} `); n < held {
		t.Errorf("%v sockets", n)
	}
	if ok := sample(t, metrics, `ephemeral_port_udp_collect_success{netns="self"} `); ok != 1 {
		t.Errorf("success %v", ok)
	}

	text := fmt.Sprintf("\nephemeral_port_udp_ports{family=\"ipv4\",netns=\"self\"} %v\n", ports)
	checkStatuses(t, scrapeAtOnce(t, e.url+"/metrics", 40, text), 40, http.StatusOK)
}

// TestUDPStatus checks what --status prints where no UDP port is left.
func TestUDPStatus(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	netnstest.UDP{Remote: netip.MustParseAddrPort("198.51.100.7:53")}.Hold(t, 100)
	cmd := command(t, "--status")
	unprivileged(t, cmd)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No UDP port of ipv4, dual_stack is free") || !strings.Contains(string(out), `net.ipv4.ip_local_port_range="1024 65535"`) {
		t.Errorf("%v:\n%s", err, out)
	}
}

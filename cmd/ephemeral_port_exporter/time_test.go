//go:build linux

package main

import (
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestTimeNamespaces runs exporters in time namespaces: their clocks are not those by which the kernel stamps sockets. As
// soon as an exporter outside sees that ports in TIME_WAIT are reusable, those inside say the same.
func TestTimeNamespaces(t *testing.T) {
	if _, err := os.Stat("/proc/self/timens_offsets"); errors.Is(err, os.ErrNotExist) {
		t.Skip("the kernel lacks time namespaces")
	}
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "1")
	t.Cleanup(func() { netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "2") })
	unshare := tool(t, "unshare", "util-linux")
	modes := []string{"--log.level=info"}
	if netnstest.IsHostRoot() {
		modes = append(modes, "--exact")
	}
	offsets := []string{"0", "-5", "86400"} // seconds
	var exporters []*exporter
	for _, mode := range modes {
		for _, offset := range offsets {
			address := "127.0.0.1:" + strconv.Itoa(10340+len(exporters))
			cmd := command(t, mode, "--destination.min-ports=10", "--web.listen-address="+address)
			if offset != "0" {
				cmd.Args = append([]string{"unshare", "--time", "--monotonic=" + offset, "--boottime=" + offset, "--fork", "--kill-child", cmd.Path}, cmd.Args[1:]...)
				cmd.Path = unshare
			}
			exporters = append(exporters, start(t, cmd, "http://"+address))
		}
	}

	const (
		connections = 40
		pool        = `{destination_ip="198.51.100.1",destination_port="7160",netns="self",source_ip="203.0.113.1"`
		reusable    = "ephemeral_port_destination_reusable_ports" + pool + "} "
		timeWait    = "ephemeral_port_destination_ports" + pool + `,state="time_wait"} `
	)
	client := netnstest.Client{Bind: netnstest.BindNoPort, Source: netip.MustParseAddrPort("203.0.113.1:0"), Destination: netip.MustParseAddrPort("198.51.100.1:7160")}
	netnstest.TimeWait(t, client, netnstest.Listen(t, "198.51.100.1:7160", false), connections)
	for i, e := range exporters {
		_, metrics := e.get(t, "/metrics")
		for deadline := time.Now().Add(time.Minute); i%len(offsets) == 0 && sample(t, metrics, reusable) < connections && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
			_, metrics = e.get(t, "/metrics")
		}
		for series, want := range map[string]float64{reusable: connections, timeWait: connections} {
			if got := sample(t, metrics, series); got != want {
				t.Errorf("%s, offset %s: %s%v, want %v", modes[i/len(offsets)], offsets[i%len(offsets)], series, got, want)
			}
		}
		if strings.Contains(e.log.String(), "level=WARN") {
			t.Errorf("log:\n%s", e.log)
		}
	}
}

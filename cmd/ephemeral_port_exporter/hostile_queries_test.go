//go:build linux

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestHostileQueries has 100 clients that never ask for the same twice: their scrapes share collections all the same, those that
// differ are made one after the other, and neither takes memory for each client.
func TestHostileQueries(t *testing.T) {
	const clients, requests = 100, 2
	for i := range 290 {
		netnstest.Client{Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 250)}), uint16(443+i/250))}.Hold(t, 10)
	}
	for i, tt := range []struct {
		name   string
		target func(n int) string
		text   string
	}{
		{"queries", func(n int) string { return fmt.Sprintf("/metrics?q=%d", n) }, selfSucceeded},
		{"names", func(n int) string {
			names := []string{"go_info", "go_threads", "go_goroutines", "process_start_time_seconds", "process_open_fds", "process_max_fds",
				"ephemeral_port_capacity_ports", "ephemeral_port_collect_duration_seconds", "ephemeral_port_max_utilization_ratio"}
			query := "?name[]=ephemeral_port_collect_success&name[]=ephemeral_port_destination_ports"
			for bit, name := range names {
				if n>>bit&1 == 1 {
					query += "&name[]=" + name
				}
			}
			return "/metrics" + query
		}, selfSucceeded},
		{"destinations", func(n int) string { return fmt.Sprintf("/?format=html&destination=192.0.2.%d:%d", n%250, 443+n/250) }, "<h1>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := "127.0.0.1:" + strconv.Itoa(10230+i)
			cmd := command(t, "--web.listen-address="+address)
			cmd.Env = append(os.Environ(), "GOMEMLIMIT=60MiB")
			e := start(t, cmd, "http://"+address)
			client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
			defer client.CloseIdleConnections()
			var wait sync.WaitGroup
			for c := range clients {
				wait.Go(func() {
					for r := range requests {
						resp, err := client.Get(e.url + tt.target(c*requests+r))
						if err != nil {
							t.Error(err)
							return
						}
						body, err := io.ReadAll(resp.Body)
						resp.Body.Close()
						if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), tt.text) {
							t.Errorf("%s, %v:\n%.200s", resp.Status, err, body)
						}
					}
				})
			}
			wait.Wait()
			checkAlive(t, e)
		})
	}
}

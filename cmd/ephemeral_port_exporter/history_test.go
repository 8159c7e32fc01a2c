//go:build linux

package main

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestHistory fills a pool and empties most of it between two scrapes. The page shows what the scrapes saw: how many ports were in use at the most, and
// while it is full, since when.
func TestHistory(t *testing.T) {
	// Ports that no server of another test has had, as in TestStatusPage.
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "20200 20299")
	t.Cleanup(func() { netnstest.Sysctl(t, "ipv4/ip_local_port_range", "32768 60999") })
	client := netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.7:80")}
	connect := func(n int) (fds []int) {
		for range n {
			fd, err := client.Connect()
			if err != nil {
				t.Fatal(err)
			}
			fds = append(fds, fd)
		}
		return fds
	}
	e := start(t, command(t, "--web.listen-address=127.0.0.1:10188"), "http://127.0.0.1:10188")
	scrape := func() {
		if status, body := e.get(t, "/metrics"); status != 200 || !strings.Contains(body, "ephemeral_port_collect_success") {
			t.Fatalf("status %d", status)
		}
	}
	type destination struct {
		IP    string `json:"destination_ip"`
		Ports map[string]int
		// Of what the page remembers.
		History []struct {
			Time  time.Time
			Ports int     `json:"used_ports"`
			Ratio float64 `json:"utilization_ratio"`
		}
		Since   *time.Time `json:"level_since"`
		AtLeast bool       `json:"level_since_at_least"`
	}
	page := func() destination {
		_, body := e.get(t, "/?format=json")
		var d struct{ Destinations []destination }
		err := json.Unmarshal([]byte(body), &d)
		i := slices.IndexFunc(d.Destinations, func(d destination) bool { return d.IP == "198.51.100.7" })
		if err != nil || i < 0 || len(d.Destinations[i].History) == 0 {
			t.Fatalf("%v: %s", err, body)
		}
		return d.Destinations[i]
	}
	for _, fd := range connect(20) {
		defer netnstest.CloseRepaired(fd)
	}
	scrape()
	before := time.Now().Truncate(time.Second)
	others := connect(80)
	scrape()
	if d := page(); d.Since == nil || d.Since.Before(before.Add(-time.Second)) || d.Since.After(time.Now()) || d.AtLeast || d.History[len(d.History)-1].Ports != 100 {
		t.Errorf("a pool that has become full at %v: %+v", before, d)
	}
	_, html := e.get(t, "/?format=html")
	_, text := e.get(t, "/")
	if !strings.Contains(html, `<svg class="spark"`) || !strings.Contains(html, "exhausted since ") || !strings.Contains(text, "█  ") || !strings.Contains(text, "exhausted since ") {
		t.Errorf("pages without a past:\n%s\n%s", html, text)
	}
	for _, fd := range others {
		netnstest.CloseRepaired(fd)
	}
	time.Sleep(time.Second) // the page has a scan of its own then
	d := page()
	most := 0
	for _, r := range d.History {
		most = max(most, r.Ports)
	}
	if d.Ports["established"] != 20 || most != 100 || d.Since != nil {
		t.Errorf("a pool that was full: %+v", d)
	}
}

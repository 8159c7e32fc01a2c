//go:build linux

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestPromtool checks a live scrape with promtool.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("no promtool: install the package prometheus")
		}
		t.Fatal(err)
	}
	const address = "127.0.0.1:10154"
	e := start(t, command(t, "--web.listen-address="+address, "--destination.min-ports=1"), "http://"+address)
	e.get(t, "/metrics")
	_, metrics := e.get(t, "/metrics") // the scrapes themselves are destinations now
	if !strings.Contains(metrics, "ephemeral_port_destination_utilization_ratio{") {
		t.Fatalf("no destination in\n%s", metrics)
	}

	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(metrics)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) != 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

package main

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDashboardJSON checks that the file is what the program writes.
func TestDashboardJSON(t *testing.T) {
	got, err := os.ReadFile("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if err := write(&want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("dashboard.json is not up to date: go run ./deploy/grafana > deploy/grafana/dashboard.json (-want +got):\n%s", diff)
	}
}

// TestStateColors checks that the dashboard colors states as the status page does, and that each TCP state has one color.
func TestStateColors(t *testing.T) {
	css, err := os.ReadFile("../../collector/status/style.css")
	if err != nil {
		t.Fatal(err)
	}
	light, _, _ := strings.Cut(string(css), "@media")
	var got []string
	for _, s := range states {
		if want := "--" + strings.ReplaceAll(s.name, "_", "-") + ": " + s.color + ";"; !strings.Contains(light, want) {
			t.Errorf("the stylesheet of the page has no %s", want)
		}
		if s.tcp != "" {
			got = append(got, strings.Split(s.tcp, "|")...)
		}
	}
	metrics, err := os.ReadFile("../../collector/testdata/metrics.prom")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile(`\nephemeral_port_destination_ports\{.*state="(\w+)"`).FindAllStringSubmatch(string(metrics), -1) {
		want = append(want, m[1])
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(slices.Compact(want), got); diff != "" {
		t.Errorf("states (-exported +dashboard):\n%s", diff)
	}
}

package main

import (
	"bytes"
	"os"
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

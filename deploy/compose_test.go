//go:build linux

package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ephemeral_port_exporter/deploy/deploytest"
)

// TestCompose checks that mounted files exist, and are mounted where the programs read them.
func TestCompose(t *testing.T) {
	const path = "compose/compose.yml"
	var compose struct {
		Services map[string]struct {
			Build, Image string
			NetworkMode  string `yaml:"network_mode"`
			Command      []string
			Volumes      []string
		}
		Volumes map[string]any
	}
	deploytest.Unmarshal(t, path, &compose)
	mounted := map[string]bool{}
	for name, service := range compose.Services {
		if service.Image == "" || service.NetworkMode != "host" {
			t.Errorf("%s: image %q, network %q", name, service.Image, service.NetworkMode)
		}
		for _, v := range service.Volumes {
			from, to, _ := strings.Cut(v, ":")
			to, _, _ = strings.Cut(to, ":")
			mounted[to] = true
			if _, ok := compose.Volumes[from]; ok {
				continue
			}
			if !filepath.IsAbs(from) {
				from = filepath.Join("compose", from)
			}
			if _, err := os.Stat(from); err != nil {
				t.Errorf("%s mounts what is not there: %v", name, err)
			}
		}
		for _, arg := range service.Command {
			if file, ok := strings.CutPrefix(arg, "--config.file="); ok && !mounted[file] {
				t.Errorf("%s: nothing is mounted at %s", name, file)
			}
		}
	}
	for _, name := range []string{"ephemeral_port_exporter", "prometheus", "alertmanager", "grafana"} {
		if compose.Services[name].Image == "" {
			t.Errorf("no service %s", name)
		}
	}
	if _, err := os.Stat(filepath.Join("compose", compose.Services["ephemeral_port_exporter"].Build, "Dockerfile")); err != nil {
		t.Errorf("build: %v", err)
	}

	// Prometheus reads its rules from the directory of its configuration. Grafana reads its
	// dashboard from the path in the provisioning.
	dashboards := deploytest.Read(t, "grafana/provisioning/dashboards/ephemeral_port.yml")
	_, dir, _ := strings.Cut(dashboards, "path: ")
	for _, to := range []string{"/etc/prometheus/rules.yml", "/etc/grafana/provisioning", strings.TrimSpace(dir) + "/ephemeral_port.json"} {
		if !mounted[to] {
			t.Errorf("nothing is mounted at %s", to)
		}
	}
	if !strings.Contains(deploytest.Read(t, path), "/d/"+readDashboard(t).UID+"\n") {
		t.Error("the address of the dashboard is wrong")
	}
}

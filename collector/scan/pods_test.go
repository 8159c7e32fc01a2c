//go:build linux

package scan

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/cgroup"
)

// TestNamePods names the pods in all parts of a snapshot.
func TestNamePods(t *testing.T) {
	const uid = "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b"
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "shop_cart-0_"+uid), 0o755); err != nil {
		t.Fatal(err)
	}
	s := &Scanner{cfg: Config{PodLogs: dir}}
	pod, other := cgroup.Group{Workload: cgroup.Workload{PodUID: uid}}, cgroup.Group{Workload: cgroup.Workload{PodUID: "77777777-5b6d-4e7f-8a9b-0c1d2e3f4a5b"}}
	snapshot := Snapshot{
		Namespaces: []Namespace{{Name: Self}, {Workload: Workload{Workload: pod.Workload}}},
		Cgroups:    map[uint64]cgroup.Group{1: {Path: "/"}, 2: pod, 3: other},
		Trace:      &Trace{Pools: []FailedPool{{Cgroup: pod}, {Cgroup: other}}, Binds: []FailedBind{{Cgroup: pod}}, Closes: []ClosedPool{{Cgroup: pod}}},
	}
	s.namePods(&snapshot)
	for name, got := range map[string]string{
		"namespace": snapshot.Namespaces[1].Workload.Pod, "owner": snapshot.Cgroups[2].Pod, "failed connect": snapshot.Trace.Pools[0].Cgroup.Pod, "failed bind": snapshot.Trace.Binds[0].Cgroup.Pod, "close": snapshot.Trace.Closes[0].Cgroup.Pod,
	} {
		if got != "shop/cart-0" {
			t.Errorf("%s: pod %q", name, got)
		}
	}
	for name, got := range map[string]string{
		"own namespace": snapshot.Namespaces[0].Workload.Pod, "root": snapshot.Cgroups[1].Pod, "unknown owner": snapshot.Cgroups[3].Pod, "unknown failed": snapshot.Trace.Pools[1].Cgroup.Pod,
	} {
		if got != "" {
			t.Errorf("%s: pod %q", name, got)
		}
	}
}

// TestCheckPods warns of a directory that cannot be read, unless the host has no pods.
func TestCheckPods(t *testing.T) {
	if _, err := os.Stat(DefaultPodLogs); err == nil {
		t.Skip("this host has pods")
	}
	for path, warns := range map[string]bool{DefaultPodLogs: false, "": false, t.TempDir(): false, "/nonexistent": true, "/proc/self/comm": true} {
		var log bytes.Buffer
		s := &Scanner{cfg: Config{PodLogs: path, Logger: slog.New(slog.NewTextHandler(&log, nil))}}
		s.checkPods()
		if got := strings.Contains(log.String(), "level=WARN"); got != warns {
			t.Errorf("%s: warns %v: %s", path, got, log.String())
		}
	}
}

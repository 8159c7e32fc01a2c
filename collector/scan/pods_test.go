//go:build linux

package scan

import (
	"bytes"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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

// TestCheckPodsError logs why the names of pods are absent, unless nobody asked for them and the host has no pods.
func TestCheckPodsError(t *testing.T) {
	absent, denied := &fs.PathError{Op: "stat", Path: "dir", Err: syscall.ENOENT}, &fs.PathError{Op: "open", Path: "dir", Err: syscall.EACCES}
	for _, test := range []struct {
		path  string
		err   error
		level string
	}{
		{DefaultPodLogs, nil, ""}, {DefaultPodLogs, absent, ""}, {DefaultPodLogs, denied, "INFO"},
		{"/host/var/log/pods", nil, ""}, {"/host/var/log/pods", absent, "WARN"}, {"/host/var/log/pods", denied, "WARN"},
	} {
		var log bytes.Buffer
		s := &Scanner{cfg: Config{PodLogs: test.path, Logger: slog.New(slog.NewTextHandler(&log, nil))}}
		s.logPodsError(test.err)
		_, got, _ := strings.Cut(log.String(), "level=")
		got, _, _ = strings.Cut(got, " ")
		if got != test.level {
			t.Errorf("%s, %v: level %q, want %q", test.path, test.err, got, test.level)
		}
	}
}

// TestCheckPods warns of a directory that cannot be read.
func TestCheckPods(t *testing.T) {
	for path, warns := range map[string]bool{"": false, t.TempDir(): false, "/nonexistent": true, "/proc/self/comm": true} {
		var log bytes.Buffer
		s := &Scanner{cfg: Config{PodLogs: path, Logger: slog.New(slog.NewTextHandler(&log, nil))}}
		s.checkPods()
		if got := strings.Contains(log.String(), "level=WARN"); got != warns {
			t.Errorf("%s: warns %v: %s", path, got, log.String())
		}
	}
}

//go:build linux

package main

import (
	"os"
	"runtime"
	"testing"
)

// TestRuntime checks what Go takes of the host, with and without settings in the environment.
func TestRuntime(t *testing.T) {
	const url = "http://127.0.0.1:10294"
	for _, tt := range []struct {
		env           []string
		cpus, percent int
	}{
		{[]string{"GOMAXPROCS=", "GOGC="}, min(2, runtime.NumCPU()), 75},
		{[]string{"GOMAXPROCS=3", "GOGC=200"}, 3, 200},
	} {
		cmd := command(t, "--web.listen-address=127.0.0.1:10294")
		cmd.Env = append(os.Environ(), tt.env...)
		e := start(t, cmd, url)
		_, metrics := e.get(t, "/metrics")
		if got := sample(t, metrics, "go_sched_gomaxprocs_threads "); got != float64(tt.cpus) {
			t.Errorf("%q: %v CPUs, want %d", tt.env, got, tt.cpus)
		}
		if got := sample(t, metrics, "go_gc_gogc_percent "); got != float64(tt.percent) {
			t.Errorf("%q: collection at %v%%, want %d", tt.env, got, tt.percent)
		}
		if err := e.stop(t); err != nil {
			t.Error(err)
		}
	}
}

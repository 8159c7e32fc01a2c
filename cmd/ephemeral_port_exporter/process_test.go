//go:build linux

package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/procfs"
)

// TestProcessCollector compares the metrics of this process with those of Prometheus' collector.
func TestProcessCollector(t *testing.T) {
	type metric struct {
		typ  dto.MetricType
		help string
	}
	gather := func(c prometheus.Collector) (metrics map[string]metric, values map[string]float64) {
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(c)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		metrics, values = map[string]metric{}, map[string]float64{}
		for _, f := range families {
			if !strings.HasPrefix(f.GetName(), "process_network_") {
				metrics[f.GetName()] = metric{f.GetType(), f.GetHelp()}
				values[f.GetName()] = f.Metric[0].GetGauge().GetValue() + f.Metric[0].GetCounter().GetValue()
			}
		}
		return metrics, values
	}
	wantMetrics, want := gather(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gotMetrics, got := gather(newProcessCollector())
	if d := cmp.Diff(wantMetrics, gotMetrics, cmp.AllowUnexported(metric{})); d != "" || len(got) != 7 {
		t.Errorf("%d metrics (-want +got):\n%s", len(got), d)
	}
	for name, value := range got {
		exact := name == "process_start_time_seconds" || strings.Contains(name, "_max_")
		if value <= 0 || value != want[name] && (exact || math.Abs(value-want[name]) > want[name]/2+1) {
			t.Errorf("%s: %v, want %v", name, value, want[name])
		}
	}
}

// TestProcessStart has a clock that is set: then, and not before, the start is read again.
func TestProcessStart(t *testing.T) {
	proc, err := procfs.Self()
	if err != nil {
		t.Fatal(err)
	}
	p := newProcessCollector()
	want := p.startOf(proc)
	if ago := time.Since(time.Unix(int64(want), 0)); ago < 0 || ago > time.Hour {
		t.Errorf("started %v ago", ago)
	}
	for _, step := range []time.Duration{0, time.Hour, -time.Second, 50 * time.Millisecond} {
		p.started, p.step = 1, step
		want := want
		if step.Abs() < 100*time.Millisecond {
			want = 1
		}
		if got := p.startOf(proc); got != want {
			t.Errorf("the clock was set by %v: started at %v, want %v", -step, got, want)
		}
	}
}

//go:build linux

package main

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
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
		if value != want[name] && (exact || math.Abs(value-want[name]) > want[name]/2+1) {
			t.Errorf("%s: %v, want %v", name, value, want[name])
		}
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"golang.org/x/sync/singleflight"

	"ephemeral_port_exporter/collector"
	"ephemeral_port_exporter/collector/scan"
)

const (
	healthyPath = "/-/healthy"
	readyPath   = "/-/ready"
)

// isFreePath reports whether metrics can be served under p: it is a path, has no
// meaning of its own to http.ServeMux, and is not in use.
func isFreePath(p string) bool {
	return strings.HasPrefix(p, "/") && path.Clean(p) == p && !strings.ContainsAny(p, "{}?# \t") &&
		p != "/" && p != healthyPath && p != readyPath
}

// newServer returns a server that is ready to serve. The metrics are those of the registry,
// and what a scan finds.
func newServer(flags *flags, registry *prometheus.Registry, scanHost func(context.Context) scan.Snapshot, logger *slog.Logger) (*http.Server, error) {
	landing, err := web.NewLandingPage(web.LandingConfig{
		Name:        "Ephemeral Port Exporter",
		Description: "Prometheus exporter for ephemeral-port exhaustion",
		Version:     version.Info(),
		Profiling:   "false",
		Links: []web.LandingLinks{
			{Address: *flags.telemetryPath, Text: "Metrics"},
			{Address: healthyPath, Text: "Healthy", Description: "the process runs"},
			{Address: readyPath, Text: "Ready", Description: "the process serves scrapes"},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make landing page: %w", err)
	}

	mux := http.NewServeMux()
	mux.Handle("/", landing)
	mux.Handle("GET "+*flags.telemetryPath, metricsHandler(flags, registry, scanHost, logger))
	mux.HandleFunc("GET "+healthyPath, answerProbe)
	mux.HandleFunc("GET "+readyPath, answerProbe)

	return &http.Server{
		Handler:           mux,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		// From the request on: a scrape may wait for the collection before its own.
		WriteTimeout: 2*(*flags.collectTimeout) + 30*time.Second,
		IdleTimeout:  5 * time.Minute,
	}, nil
}

// metricsHandler serves scrapes. Those that overlap share one scan.
func metricsHandler(flags *flags, registry *prometheus.Registry, scanHost func(context.Context) scan.Snapshot, logger *slog.Logger) http.Handler {
	shared := &sharedGatherer{gather: func() ([]*dto.MetricFamily, error) {
		host := prometheus.NewRegistry()
		host.MustRegister(collector.New(scanHost(context.Background())))
		return prometheus.Gatherers{host, registry}.Gather()
	}}
	opts := promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(logger.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: *flags.maxRequests,
	}
	if *flags.disableExporterMetrics {
		return promhttp.HandlerFor(shared, opts)
	}
	opts.Registry = registry
	return promhttp.InstrumentMetricHandler(registry, promhttp.HandlerFor(shared, opts))
}

// A sharedGatherer gives the result of one scan to all that ask while it runs.
//
// CoalesceGather of promhttp would hand it out for longer, until the slowest client has
// read its answer: one that stalls freezes the numbers for everybody.
type sharedGatherer struct {
	gather func() ([]*dto.MetricFamily, error)
	flight singleflight.Group
}

// Gather implements prometheus.Gatherer.
func (g *sharedGatherer) Gather() ([]*dto.MetricFamily, error) {
	families, err, _ := g.flight.Do("", func() (any, error) { return g.gather() })
	// The slice is for the caller to reorder, what it points to is not.
	return slices.Clone(families.([]*dto.MetricFamily)), err
}

// answerProbe says that the process serves. It asks nothing of the kernel.
func answerProbe(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "OK\n") }

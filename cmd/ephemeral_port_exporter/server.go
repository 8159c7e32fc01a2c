package main

import (
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
)

const (
	healthyPath = "/-/healthy"
	readyPath   = "/-/ready"
)

// isFreePath reports whether metrics can be served under p. p must be a path, without characters
// that are special to http.ServeMux, and must not be in use.
func isFreePath(p string) bool {
	return strings.HasPrefix(p, "/") && path.Clean(p) == p && !strings.ContainsAny(p, "{}?# \t") &&
		p != "/" && p != healthyPath && p != readyPath
}

// newServer returns a server for the metrics of the registry and of scans.
func newServer(flags *flags, registry *prometheus.Registry, scanHost scanFunc, logger *slog.Logger) (*http.Server, error) {
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

	scans, sender := newScans(flags, scanHost), &sender{}
	mux := http.NewServeMux()
	mux.Handle("/", landing)
	mux.Handle("GET "+*flags.telemetryPath, newMetricsHandler(flags, registry, scans, sender, logger))
	mux.HandleFunc("GET "+healthyPath, answerProbe)
	mux.HandleFunc("GET "+readyPath, answerProbe)

	server := &http.Server{
		Handler:           mux,
		ErrorLog:          log.New(connectionLog{logger}, "", 0),
		MaxHeaderBytes:    16 << 10,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		// This time starts at the request: a scrape may wait for two collections.
		WriteTimeout: 2*(*flags.collectTimeout) + 2*sendTimeout,
		IdleTimeout:  90 * time.Second, // longer than most scrape intervals
		HTTP2:        &http.HTTP2Config{MaxConcurrentStreams: 16},
	}
	new(connections).limit(server)
	return server, nil
}

// answerProbe answers that the process serves. It does no collection.
func answerProbe(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "OK\n") }

// A connectionLog logs the errors of a server about its connections. It ignores connections that
// are closed before the TLS handshake: every TCP probe does that.
type connectionLog struct {
	logger *slog.Logger
}

// Write implements io.Writer. It expects one line.
func (l connectionLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if !strings.HasPrefix(text, "http: TLS handshake error") || !strings.HasSuffix(text, ": EOF") {
		l.logger.Warn("HTTP connection failed", "err", text)
	}
	return len(line), nil
}

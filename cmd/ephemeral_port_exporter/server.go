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

// isFreePath reports whether metrics can be served under p: it is a path, has no
// meaning of its own to http.ServeMux, and is not in use.
func isFreePath(p string) bool {
	return strings.HasPrefix(p, "/") && path.Clean(p) == p && !strings.ContainsAny(p, "{}?# \t") &&
		p != "/" && p != healthyPath && p != readyPath
}

// newServer returns a server that is ready to serve. The metrics are those of the registry,
// and what a scan finds.
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

	mux := http.NewServeMux()
	mux.Handle("/", landing)
	mux.Handle("GET "+*flags.telemetryPath, newMetricsHandler(flags, registry, scanHost, logger))
	mux.HandleFunc("GET "+healthyPath, answerProbe)
	mux.HandleFunc("GET "+readyPath, answerProbe)

	return &http.Server{
		Handler:           mux,
		ErrorLog:          log.New(connectionLog{logger}, "", 0),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		// From the request on: a scrape may wait for the collection before its own.
		WriteTimeout: 2*(*flags.collectTimeout) + 30*time.Second,
		IdleTimeout:  5 * time.Minute,
	}, nil
}

// answerProbe says that the process serves. It asks nothing of the kernel.
func answerProbe(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "OK\n") }

// A connectionLog logs what a server has to say of its connections, but for one that is closed
// before its TLS handshake: so does every TCP probe.
type connectionLog struct {
	logger *slog.Logger
}

// Write implements io.Writer for one line.
func (l connectionLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if !strings.HasPrefix(text, "http: TLS handshake error") || !strings.HasSuffix(text, ": EOF") {
		l.logger.Warn("HTTP connection failed", "err", text)
	}
	return len(line), nil
}

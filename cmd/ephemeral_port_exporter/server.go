package main

import (
	"io"
	"log"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/deploy"
)

const (
	healthyPath = "/-/healthy"
	readyPath   = "/-/ready"
)

// isFreePath reports whether metrics can be served under p. p must be a path, without characters
// that are special to http.ServeMux, and must not be in use.
func isFreePath(p string) bool {
	return strings.HasPrefix(p, "/") && path.Clean(p) == p && !strings.ContainsAny(p, "{}?# \t") &&
		!slices.Contains([]string{statusPath, runbookPath, healthyPath, readyPath}, p)
}

// newServer returns a server for the metrics of the registry and of scans, and for the pages.
func newServer(flags *flags, registry *prometheus.Registry, scanHost scanFunc, logger *slog.Logger) (*http.Server, error) {
	runbook, err := newRunbookHandler(deploy.Runbook)
	if err != nil {
		return nil, err
	}
	scans, sender := newScans(flags, scanHost), &sender{}
	mux := http.NewServeMux()
	mux.Handle("GET "+statusPath+"{$}", &statusHandler{scans: scans, sender: sender, status: newStatus(flags), logger: logger})
	mux.Handle("GET "+runbookPath, runbook)
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

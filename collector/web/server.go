package web

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/status"
	"ephemeral_port_exporter/deploy"
)

// Paths of the server, besides that of the metrics.
const (
	StatusPath    = "/"
	RunbookPath   = "/runbook"
	DocumentsPath = "/docs/"
	HealthyPath   = "/-/healthy"
	ReadyPath     = "/-/ready"
)

// CheckMetricsPath returns an error if metrics cannot be served under p. p must be a path, without
// characters that are special to http.ServeMux, and must not be in use.
func CheckMetricsPath(p string) error {
	if !strings.HasPrefix(p, "/") || path.Clean(p) != p || strings.ContainsAny(p, "{}?# \t") ||
		slices.Contains([]string{StatusPath, RunbookPath, HealthyPath, ReadyPath}, p) || strings.HasPrefix(p+"/", DocumentsPath) {
		return fmt.Errorf("must be a plain path like /metrics, and not %s, %s, %s, %s or below %s", StatusPath, RunbookPath, HealthyPath, ReadyPath, DocumentsPath)
	}
	return nil
}

// Config tells a server what to serve.
type Config struct {
	Scan     func(context.Context) scan.Snapshot                         // Scan of a scan.Scanner
	Port     func(ctx context.Context, number uint16) (scan.Port, error) // Port of it
	Status   *status.Status                                              // draws the status page
	Registry *prometheus.Registry                                        // of the metrics that are not about a scan

	MetricsPath     string        // see CheckMetricsPath
	ExporterMetrics bool          // adds promhttp_* to Registry
	MaxRequests     int           // answers made at once; 0 for no limit
	CollectTimeout  time.Duration // greatest time for a scan

	Logger *slog.Logger
}

// New returns a server for metrics and pages. Its BaseContext must be called before it serves.
func New(c Config) *http.Server {
	connections := newConnections(connectionLimit())
	passwords := newPasswords(connections)
	scans, sender, documents := newScans(c), newSender(), status.Documents(deploy.Documents)
	mux := http.NewServeMux()
	mux.Handle("GET "+StatusPath+"{$}", &statusHandler{scans: scans, sender: sender, status: c.Status, logger: c.Logger})
	mux.Handle("GET "+RunbookPath, documents)
	mux.Handle("GET "+DocumentsPath, documents)
	mux.Handle("GET "+c.MetricsPath, newMetricsHandler(c, scans, sender))
	mux.HandleFunc("GET "+HealthyPath, answerProbe)
	mux.HandleFunc("GET "+ReadyPath, answerProbe)

	server := &http.Server{
		Handler:           passwords.end(connections.count(mux)),
		ErrorLog:          log.New(serverLog{c.Logger}, "", 0),
		MaxHeaderBytes:    16 << 10,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		// This time starts at the request: a scrape may wait for two collections.
		WriteTimeout: 2*c.CollectTimeout + 2*sendTimeout,
		IdleTimeout:  90 * time.Second, // longer than most scrape intervals
		HTTP2:        &http.HTTP2Config{MaxConcurrentStreams: 4},
	}
	connections.limit(server)
	server.BaseContext = func(net.Listener) context.Context {
		// Now exporter-toolkit has put its own handler before ours, if it asks for passwords.
		server.Handler = refuseBodies(passwords.begin(server.Handler))
		return context.Background()
	}
	return server
}

// answerProbe answers that the process serves. It does no collection.
func answerProbe(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "OK\n") }

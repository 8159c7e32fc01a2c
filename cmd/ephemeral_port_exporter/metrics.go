package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sync/singleflight"

	"ephemeral_port_exporter/collector"
	"ephemeral_port_exporter/collector/scan"
)

// A scanFunc is Scan of a scan.Scanner.
type scanFunc func(context.Context) scan.Snapshot

// A metricsHandler serves scrapes. Scrapes at the same time share one scan.
type metricsHandler struct {
	shared sharedGatherer
	slots  chan struct{} // one element for each scrape that is being served; nil for no limit
	opts   promhttp.HandlerOpts
}

// newMetricsHandler returns a handler for the metrics of the registry and of scans.
func newMetricsHandler(flags *flags, registry *prometheus.Registry, scanHost scanFunc, logger *slog.Logger) http.Handler {
	h := &metricsHandler{
		shared: sharedGatherer{scan: scanHost, registry: registry, timeout: *flags.collectTimeout},
		opts: promhttp.HandlerOpts{
			ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelError),
			ErrorHandling:     promhttp.ContinueOnError,
			EnableOpenMetrics: true,
		},
	}
	if *flags.maxRequests > 0 {
		h.slots = make(chan struct{}, *flags.maxRequests)
	}
	if *flags.disableExporterMetrics {
		return h
	}
	h.opts.Registry = registry
	return promhttp.InstrumentMetricHandler(registry, h)
}

// ServeHTTP implements http.Handler.
func (h *metricsHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.slots != nil {
		select {
		case h.slots <- struct{}{}:
			defer func() { <-h.slots }()
		default:
			http.Error(w, fmt.Sprintf("%d scrapes are being served, which is the limit of --web.max-requests: try again later", cap(h.slots)), http.StatusServiceUnavailable)
			return
		}
	}
	ctx := r.Context()
	budget := h.shared.timeout
	if timeout, ok := scrapeTimeout(r); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout-timeout/20)
		defer cancel()
		budget = min(budget, max(timeout/2, timeout-time.Second/2))
	}
	families, err := h.shared.gather(ctx, budget)
	if ctx.Err() != nil && err != nil {
		// If the client is gone, nobody reads this.
		http.Error(w, "this host could not be read within the scrape timeout: raise scrape_timeout in Prometheus, or lower --collect.timeout", http.StatusServiceUnavailable)
		return
	}
	promhttp.HandlerFor(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return families, err }), h.opts).ServeHTTP(w, r)
}

// scrapeTimeoutHeader is the header with the time that Prometheus waits, in seconds.
const scrapeTimeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"

// scrapeTimeout returns how long Prometheus waits for the answer, if it says so. A scan gets this
// time less half a second, and at least half of it: the rest is to encode and send what it found.
func scrapeTimeout(r *http.Request) (timeout time.Duration, ok bool) {
	seconds, err := strconv.ParseFloat(r.Header.Get(scrapeTimeoutHeader), 64)
	if err != nil || !(seconds > 0 && seconds < time.Hour.Seconds()) {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

// A sharedGatherer gives the result of one scan to all scrapes that arrive while it runs.
//
// CoalesceGather of promhttp would share the result until the slowest client has read its answer.
// Then a client that stops reading would give old values to all others.
type sharedGatherer struct {
	scan     scanFunc
	registry *prometheus.Registry
	timeout  time.Duration // greatest time for a scan
	flight   singleflight.Group
}

// A gathering is the result of one scan.
type gathering struct {
	families   []*dto.MetricFamily
	err        error
	budget     time.Duration // time for the scan
	incomplete bool          // the budget was too small
}

// gather returns the metrics, or the error of ctx. A scan that it starts takes at most budget. A
// scan that another scrape has started with much less time can be incomplete: then gather starts
// another one, once.
func (g *sharedGatherer) gather(ctx context.Context, budget time.Duration) ([]*dto.MetricFamily, error) {
	for last := false; ; last = true {
		result := g.flight.DoChan("", func() (any, error) { return g.run(budget), nil })
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case r := <-result:
			got := r.Val.(gathering)
			if !last && got.incomplete && got.budget < budget/2 {
				continue
			}
			return got.families, got.err
		}
	}
}

// run scans and returns the metrics.
func (g *sharedGatherer) run(budget time.Duration) gathering {
	// This is not the context of a scrape: others may wait for the scan when its client is gone.
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	snapshot := g.scan(ctx)
	host := prometheus.NewRegistry()
	host.MustRegister(collector.New(snapshot))
	families, err := prometheus.Gatherers{host, g.registry}.Gather()
	return gathering{
		families: families, err: err, budget: budget,
		incomplete: slices.ContainsFunc(snapshot.Namespaces, func(n scan.Namespace) bool { return n.Outcome == scan.Deadline }),
	}
}

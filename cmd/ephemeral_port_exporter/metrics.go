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

// A metricsHandler serves scrapes. Those that overlap share one scan.
type metricsHandler struct {
	shared sharedGatherer
	slots  chan struct{} // one for each scrape that is served; nil for no limit
	opts   promhttp.HandlerOpts
}

// newMetricsHandler returns a handler for the metrics of the registry, and for what a scan
// finds.
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
			http.Error(w, fmt.Sprintf("%d scrapes are being served, the limit of --web.max-requests: try again later", cap(h.slots)), http.StatusServiceUnavailable)
			return
		}
	}
	ctx, cancel := scrapeContext(r)
	defer cancel()
	families, err := h.shared.gather(ctx)
	if ctx.Err() != nil && err != nil {
		// Nobody reads this if the client is gone.
		http.Error(w, "this host was not read within the scrape timeout: raise scrape_timeout in Prometheus, or lower --collect.timeout", http.StatusServiceUnavailable)
		return
	}
	promhttp.HandlerFor(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return families, err }), h.opts).ServeHTTP(w, r)
}

// scrapeTimeoutHeader is what Prometheus says of how long it waits.
const scrapeTimeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"

// scrapeContext ends when the client goes, or a moment before Prometheus stops waiting: half
// a second, and at most half of the time, is for the answer.
func scrapeContext(r *http.Request) (context.Context, context.CancelFunc) {
	seconds, err := strconv.ParseFloat(r.Header.Get(scrapeTimeoutHeader), 64)
	if err != nil || !(seconds > 0 && seconds < time.Hour.Seconds()) {
		return context.WithCancel(r.Context())
	}
	timeout := time.Duration(seconds * float64(time.Second))
	return context.WithTimeout(r.Context(), max(timeout/2, timeout-time.Second/2))
}

// A sharedGatherer gives the result of one scan to all that ask while it runs.
//
// CoalesceGather of promhttp would hand it out for longer, until the slowest client has
// read its answer: one that stalls freezes the numbers for everybody.
type sharedGatherer struct {
	scan     scanFunc
	registry *prometheus.Registry
	timeout  time.Duration // of a scan that nobody wants sooner
	flight   singleflight.Group
}

// A gathering is the result of one scan.
type gathering struct {
	families []*dto.MetricFamily
	err      error
	budget   time.Duration // of the scan
	cut      bool          // the budget was too small
}

// gather returns the metrics, or the error of ctx. A scan takes no longer than whoever began
// it waits. One that was cut short because somebody else waits less than we do is not good
// enough: then another follows.
func (g *sharedGatherer) gather(ctx context.Context) ([]*dto.MetricFamily, error) {
	for {
		budget := g.timeout
		if d, ok := ctx.Deadline(); ok {
			budget = min(budget, time.Until(d))
		}
		result := g.flight.DoChan("", func() (any, error) { return g.run(budget), nil })
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case r := <-result:
			got := r.Val.(gathering)
			if got.cut && got.budget < budget/2 {
				continue
			}
			// The slice is for the caller to reorder, what it points to is not.
			return slices.Clone(got.families), got.err
		}
	}
}

// run makes a scan.
func (g *sharedGatherer) run(budget time.Duration) gathering {
	// Not that of a client: others may wait for it when that is gone.
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	snapshot := g.scan(ctx)
	host := prometheus.NewRegistry()
	host.MustRegister(collector.New(snapshot))
	families, err := prometheus.Gatherers{host, g.registry}.Gather()
	return gathering{
		families: families, err: err, budget: budget,
		cut: slices.ContainsFunc(snapshot.Namespaces, func(n scan.Namespace) bool { return n.Outcome == scan.Deadline }),
	}
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
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
	slots  chan struct{} // one element for each scrape that is being answered; nil for no limit
	sender sender
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
	h.sender.send(w, h.answer(r))
}

// answer returns the answer to a scrape. It takes a slot for that, but not until the client has
// read the answer.
func (h *metricsHandler) answer(r *http.Request) *answer {
	ctx := r.Context()
	budget := h.shared.timeout
	if timeout, ok := scrapeTimeout(r); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout-min(timeout/20, time.Second/10))
		defer cancel()
		budget = min(budget, max(timeout/2, timeout-time.Second))
	}
	if h.slots != nil {
		select {
		case h.slots <- struct{}{}:
			defer func() { <-h.slots }()
		case <-ctx.Done():
			return errorAnswer("the scrape timeout is over")
		case <-time.After(slotTimeout):
			return errorAnswer("%d scrapes are being served, which is the limit of --web.max-requests: try again later", cap(h.slots))
		}
	}
	g, err := h.shared.gather(ctx, budget)
	if err != nil {
		return errorAnswer("this host could not be read within the scrape timeout: raise scrape_timeout in Prometheus, or lower --collect.timeout")
	}
	return g.answer(r, h.opts)
}

// slotTimeout is how long a scrape waits for others to be answered.
const slotTimeout = time.Second

// errorAnswer returns an answer with status 503.
func errorAnswer(format string, args ...any) *answer {
	a := newAnswer()
	http.Error(a, fmt.Sprintf(format, args...), http.StatusServiceUnavailable)
	return a
}

// scrapeTimeoutHeader is the header with the time that Prometheus waits, in seconds.
const scrapeTimeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"

// scrapeTimeout returns how long Prometheus waits for the answer, if it says so. A scan gets this
// time less a second, and at least half of it: the rest is to encode and send what it found.
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

	mu      sync.Mutex
	answers map[string]func() *answer // by what the clients accept
}

// answer returns the answer to a scrape. It is encoded once for all scrapes that ask for the same.
func (g *gathering) answer(r *http.Request, opts promhttp.HandlerOpts) *answer {
	key := fmt.Sprintf("%q %q %q", r.Header["Accept"], r.Header["Accept-Encoding"], r.URL.RawQuery)
	g.mu.Lock()
	encode, ok := g.answers[key]
	if !ok {
		encode = sync.OnceValue(func() *answer {
			a := newAnswer()
			promhttp.HandlerFor(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return g.families, g.err }), opts).ServeHTTP(a, r)
			return a
		})
		g.answers[key] = encode
	}
	g.mu.Unlock()
	return encode()
}

// gather returns the result of a scan, or the error of ctx. A scan that it starts takes at most
// budget. A scan that another scrape has started with much less time can be incomplete: then gather
// starts another one, once.
func (g *sharedGatherer) gather(ctx context.Context, budget time.Duration) (*gathering, error) {
	for last := false; ; last = true {
		result := g.flight.DoChan("", func() (any, error) { return g.run(budget), nil })
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case r := <-result:
			got := r.Val.(*gathering)
			if !last && got.incomplete && got.budget < budget/2 {
				continue
			}
			return got, nil
		}
	}
}

// run makes a scan.
func (g *sharedGatherer) run(budget time.Duration) *gathering {
	// Not that of a client: others may wait for it when that is gone.
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	snapshot := g.scan(ctx)
	host := prometheus.NewRegistry()
	host.MustRegister(collector.New(snapshot))
	families, err := prometheus.Gatherers{host, g.registry}.Gather()
	return &gathering{
		families: families, err: err, budget: budget, answers: map[string]func() *answer{},
		incomplete: slices.ContainsFunc(snapshot.Namespaces, func(n scan.Namespace) bool { return n.Outcome == scan.Deadline }),
	}
}

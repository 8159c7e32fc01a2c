package web

import (
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ephemeral_port_exporter/collector"
)

// A metricsHandler serves scrapes.
type metricsHandler struct {
	scans    *scans
	sender   *sender
	registry *prometheus.Registry
	opts     promhttp.HandlerOpts
}

// newMetricsHandler returns a handler for the metrics of the registry and of scans.
func newMetricsHandler(c Config, scans *scans, sender *sender) http.Handler {
	h := &metricsHandler{
		scans: scans, sender: sender, registry: c.Registry,
		opts: promhttp.HandlerOpts{
			ErrorLog:          encodingLog{c.Logger},
			ErrorHandling:     promhttp.ContinueOnError,
			EnableOpenMetrics: true,
		},
	}
	if !c.ExporterMetrics {
		return h
	}
	h.opts.Registry = c.Registry
	return promhttp.InstrumentMetricHandler(c.Registry, h)
}

// ServeHTTP implements http.Handler. A scrape gets values of no earlier scan.
func (h *metricsHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.sender.send(w, h.scans.answer(r, 0, func(s *scanned) *answer {
		key := fmt.Sprintf("%q %q %q", r.Header["Accept"], r.Header["Accept-Encoding"], r.URL.RawQuery)
		return s.metrics.get(key, func() *answer { return h.encode(s, r) })
	}))
}

// encode returns the metrics as the request wants them.
func (h *metricsHandler) encode(s *scanned, r *http.Request) *answer {
	host := prometheus.NewRegistry()
	host.MustRegister(collector.New(s.Snapshot))
	a := newAnswer()
	promhttp.HandlerFor(prometheus.Gatherers{host, h.registry}, h.opts).ServeHTTP(a, r)
	return a
}

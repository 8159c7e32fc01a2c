package web

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"ephemeral_port_exporter/collector"
)

// A metricsHandler serves scrapes.
type metricsHandler struct {
	scans    *scans
	sender   *sender
	registry *prometheus.Registry
	opts     promhttp.HandlerOpts

	compressor compressor
}

// newMetricsHandler returns a handler for the metrics of the registry and of scans.
func newMetricsHandler(c Config, scans *scans, sender *sender) http.Handler {
	h := &metricsHandler{
		scans: scans, sender: sender, registry: c.Registry,
		opts: promhttp.HandlerOpts{
			ErrorLog:        encodingLog{c.Logger},
			ErrorHandling:   promhttp.ContinueOnError,
			AcceptedFormats: expfmt.DefaultOpenMetricsAcceptedFormats(),

			DisableCompression: true, // see compressor
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
	names := r.URL.Query()["name[]"]
	key := metricsKey{format: expfmt.NegotiateAccept(r.Header, h.opts.AcceptedFormats...), encoding: "identity"}
	if prefersGzip(r.Header) {
		key.encoding = "gzip"
	}
	varied := len(names) > 0 || !key.usual()
	h.sender.send(w, h.scans.answer(r, 0, varied, func(ctx context.Context, s *scanned) (*answer, error) {
		all, err := s.families.get(ctx, func() (families, error) { return h.gather(ctx, s) })
		if err != nil {
			return nil, err
		}
		wanted := all.named(names)
		key.names = wanted.names()
		return s.metrics.get(ctx, key, varied, func() *answer { return h.encode(wanted, key) })
	}))
}

// families are metrics of one scan.
type families struct {
	list []*dto.MetricFamily
	err  error // why some are missing
}

// gather returns all metrics.
func (h *metricsHandler) gather(ctx context.Context, s *scanned) (families, error) {
	leave, err := h.scans.slots.enter(ctx)
	if err != nil {
		return families{}, err
	}
	defer leave()
	host := prometheus.NewRegistry()
	host.MustRegister(collector.New(s.Snapshot))
	list, err := host.Gather()
	others, othersErr := h.registry.Gather()
	// prometheus.Gatherers would check each metric once more: no name is in both.
	list = append(list, others...)
	slices.SortFunc(list, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return families{list, errors.Join(err, othersErr)}, nil
}

// named returns the families with these names, or all if there are none, as promhttp does.
func (f families) named(names []string) families {
	if len(names) == 0 {
		return f
	}
	return families{slices.DeleteFunc(slices.Clone(f.list), func(m *dto.MetricFamily) bool { return !slices.Contains(names, m.GetName()) }), f.err}
}

// names returns the names of the families.
func (f families) names() string {
	var b strings.Builder
	for _, m := range f.list {
		b.WriteString(m.GetName() + " ")
	}
	return b.String()
}

// A metricsKey is all that decides the answer to a scrape, besides the scan.
type metricsKey struct {
	format   expfmt.Format // with its version and escaping
	encoding string        // gzip or identity
	names    string        // of the families
}

// usual reports whether monitoring systems ask for this format. There are 20 with their encodings, and 50 others.
func (k metricsKey) usual() bool {
	formats := []expfmt.FormatType{expfmt.TypeTextPlain, expfmt.TypeOpenMetrics, expfmt.TypeProtoDelim}
	escapings := []string{"underscores", "allow-utf-8"}
	return slices.Contains(formats, k.format.FormatType()) && slices.Contains(escapings, k.format.ToEscapingScheme().String())
}

// encode returns the metrics in the format and encoding of a key.
func (h *metricsHandler) encode(f families, key metricsKey) *answer {
	gather := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return f.list, f.err })
	a := newAnswer()
	write := func(w http.ResponseWriter) {
		promhttp.HandlerFor(gather, h.opts).ServeHTTP(w, &http.Request{URL: &url.URL{}, Header: http.Header{"Accept": {string(key.format)}}})
	}
	if key.encoding == "gzip" {
		h.compressor.compress(a, write)
	} else {
		write(a)
	}
	return a
}

// prefersGzip reports whether a client accepts gzip, and likes plain text no more.
func prefersGzip(h http.Header) bool {
	gzip, identity := 0., 0.
	for item := range strings.SplitSeq(strings.Join(h.Values("Accept-Encoding"), ","), ",") {
		coding, weight, weighted := strings.Cut(item, ";")
		q := 1.
		if weighted {
			q, _ = strconv.ParseFloat(strings.TrimPrefix(strings.TrimSpace(weight), "q="), 64) // 0 if it is not valid
		}
		switch strings.ToLower(strings.TrimSpace(coding)) {
		case "gzip":
			gzip = q
		case "identity":
			identity = q
		}
	}
	return gzip > 0 && gzip >= identity
}

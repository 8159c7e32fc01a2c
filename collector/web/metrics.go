package web

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"ephemeral_port_exporter/collector"
	"ephemeral_port_exporter/collector/scan"
)

// A metricsHandler serves scrapes.
type metricsHandler struct {
	scans   *scans
	sender  *sender
	formats []expfmt.Format

	gathering sync.Mutex           // guards the next two
	host      *hostCollector       // in all
	all       *prometheus.Registry // with the metrics about the exporter

	encoding   sync.Mutex // guards the rest
	encoder    http.Handler
	wanted     families // what encoder encodes
	compressor compressor
}

// A hostCollector is the Collector of the scan whose metrics are gathered. It is registered once: a registry for each scan, and merging its
// metrics with others, would be a third of the garbage of a scrape of an idle host.
type hostCollector struct{ *collector.Collector }

// newMetricsHandler returns a handler for the metrics of the registry and of scans.
func newMetricsHandler(c Config, scans *scans, sender *sender) http.Handler {
	h := &metricsHandler{
		scans: scans, sender: sender, formats: expfmt.DefaultOpenMetricsAcceptedFormats(),
		host: &hostCollector{collector.New(scan.Snapshot{})}, all: prometheus.NewRegistry(),
	}
	opts := promhttp.HandlerOpts{
		ErrorLog:        encodingLog{c.Logger},
		ErrorHandling:   promhttp.ContinueOnError,
		AcceptedFormats: h.formats,

		DisableCompression: true, // see compressor
	}
	handler := http.Handler(h)
	if c.ExporterMetrics {
		opts.Registry = c.Registry
		handler = promhttp.InstrumentMetricHandler(c.Registry, h)
	}
	h.encoder = promhttp.HandlerFor(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return h.wanted.list, h.wanted.err }), opts)
	h.all.MustRegister(h.host, c.Registry)
	return handler
}

// ServeHTTP implements http.Handler. A scrape gets values of no earlier scan.
func (h *metricsHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	names := r.URL.Query()["name[]"]
	key := metricsKey{format: expfmt.NegotiateAccept(r.Header, h.formats...), encoding: "identity"}
	if prefersGzip(r.Header) {
		key.encoding = "gzip"
	}
	varied := len(names) > 0 || !key.usual()
	h.sender.send(w, h.scans.answer(r, 0, varied, func(ctx context.Context, s *scanned) (*answer, error) {
		all, err := s.families.get(ctx, func() (families, error) { return h.gather(ctx, s) })
		if err != nil {
			return nil, err
		}
		wanted := all
		if len(names) > 0 {
			wanted = all.named(names)
			key.names = wanted.names()
		}
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
	h.gathering.Lock()
	defer h.gathering.Unlock()
	h.host.Collector = collector.New(s.Snapshot)
	list, err := h.all.Gather()
	h.host.Collector = nil // it would hold the snapshot until the next scrape
	return families{list, err}, nil
}

// named returns the families with these names.
func (f families) named(names []string) families {
	return families{slices.DeleteFunc(slices.Clone(f.list), func(m *dto.MetricFamily) bool { return !slices.Contains(names, m.GetName()) }), f.err}
}

// names returns the names of the families. It is not empty if there are none.
func (f families) names() string {
	var b strings.Builder
	b.WriteByte(' ')
	for _, m := range f.list {
		b.WriteString(m.GetName() + " ")
	}
	return b.String()
}

// A metricsKey is all that decides the answer to a scrape, besides the scan.
type metricsKey struct {
	format   expfmt.Format // with its version and escaping
	encoding string        // gzip or identity
	names    string        // of the families, if not all are asked for
}

// usual reports whether monitoring systems ask for this format. There are 20 with their encodings, and 50 others.
func (k metricsKey) usual() bool {
	formats := []expfmt.FormatType{expfmt.TypeTextPlain, expfmt.TypeOpenMetrics, expfmt.TypeProtoDelim}
	escapings := []string{"underscores", "allow-utf-8"}
	return slices.Contains(formats, k.format.FormatType()) && slices.Contains(escapings, k.format.ToEscapingScheme().String())
}

// encode returns the metrics in the format and encoding of a key.
func (h *metricsHandler) encode(f families, key metricsKey) *answer {
	h.encoding.Lock()
	defer h.encoding.Unlock()
	h.wanted = f
	defer func() { h.wanted = families{} }()
	a := newAnswer()
	write := func(w http.ResponseWriter) {
		h.encoder.ServeHTTP(w, &http.Request{URL: &url.URL{}, Header: http.Header{"Accept": {string(key.format)}}})
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

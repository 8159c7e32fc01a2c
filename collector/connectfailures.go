package collector

import (
	"cmp"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/connectfail"
)

// ConnectFailures is a prometheus.Collector for the connects that failed for want of a port.
//
// Each failure is in exactly one of its series, and none of them ever falls or ends: a pool that
// has a series keeps it, and one that came when there was no place for another stays without.
type ConnectFailures struct {
	counts func() ([]connectfail.Count, uint64, error)
	most   int
	logger *slog.Logger

	failures, unattributed *prometheus.Desc

	mu     sync.Mutex
	series map[failurePool]bool // those that have one
}

// A failurePool is what a connectfail.Count is of.
type failurePool struct {
	source      netip.Addr
	destination netip.AddrPort
}

func poolOf(c connectfail.Count) failurePool { return failurePool{c.Source, c.Destination} }

// NewConnectFailures returns a collector of what Counts of a connectfail.Probe tells, with at most
// as many series.
func NewConnectFailures(counts func() (counts []connectfail.Count, rest uint64, err error), most int, logger *slog.Logger) *ConnectFailures {
	return &ConnectFailures{
		counts: counts,
		most:   most,
		logger: logger,
		series: map[failurePool]bool{},

		failures: prometheus.NewDesc("ephemeral_port_connect_failures_total",
			"Calls of connect() since the exporter started that failed with EADDRNOTAVAIL because no port was free, in any network namespace of the host. Only with --connect-failures.",
			[]string{"source_ip", "destination_ip", "destination_port"}, nil),
		unattributed: prometheus.NewDesc("ephemeral_port_connect_failures_unattributed_total",
			"Further such calls, from and to addresses without series of their own, see --destination.limit. Only with --connect-failures.",
			nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *ConnectFailures) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.failures
	ch <- c.unattributed
}

// Collect implements prometheus.Collector. If the counts cannot be read it sends nothing.
func (c *ConnectFailures) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()

	counts, unattributed, err := c.counts()
	if err != nil {
		c.logger.Error("Connect failures cannot be read", "err", err)
		return
	}
	c.admit(counts)
	for _, n := range counts {
		if !c.series[poolOf(n)] {
			unattributed += n.Failures
			continue
		}
		ch <- prometheus.MustNewConstMetric(c.failures, prometheus.CounterValue, float64(n.Failures),
			n.Source.String(), n.Destination.Addr().String(), strconv.Itoa(int(n.Destination.Port())))
	}
	ch <- prometheus.MustNewConstMetric(c.unattributed, prometheus.CounterValue, float64(unattributed))
}

// admit gives series to pools that have none, those with most failures first, as long as there
// is place.
func (c *ConnectFailures) admit(counts []connectfail.Count) {
	if len(c.series) == c.most {
		return
	}
	var waiting []connectfail.Count
	for _, n := range counts {
		if !c.series[poolOf(n)] {
			waiting = append(waiting, n)
		}
	}
	slices.SortFunc(waiting, func(a, b connectfail.Count) int {
		return cmp.Or(cmp.Compare(b.Failures, a.Failures), a.Source.Compare(b.Source), a.Destination.Compare(b.Destination))
	})
	for _, n := range waiting[:min(len(waiting), c.most-len(c.series))] {
		c.series[poolOf(n)] = true
	}
}

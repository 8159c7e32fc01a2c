package collector

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/scan"
)

// A Collector is a prometheus.Collector for one Snapshot.
type Collector struct {
	descs    *descs
	snapshot scan.Snapshot
}

// sharedDescs are the same for all Collectors: there is one for each scrape.
var sharedDescs = sync.OnceValue(newDescs)

// New returns a Collector that sends the metrics of a Snapshot.
func New(snapshot scan.Snapshot) *Collector {
	return &Collector{descs: sharedDescs(), snapshot: snapshot}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) { c.descs.describe(ch) }

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) { c.descs.sendSnapshot(ch, c.snapshot) }

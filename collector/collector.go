package collector

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/procfs"
)

// selfNetNS is the label "netns" of the exporter's own namespace.
const selfNetNS = "self"

// Config tells a Collector what to collect.
type Config struct {
	FS             procfs.FS
	Limits         Limits
	TimeWaitLength time.Duration // TCP_TIMEWAIT_LEN of the kernel
	Timeout        time.Duration // for one collection
	Logger         *slog.Logger
}

// A Collector is a prometheus.Collector for the network namespace of the process.
type Collector struct {
	cfg   Config
	descs descs
	dial  func() (*sockdiag.Conn, error)

	mu sync.Mutex // held during a collection, so that no two walk the kernel's table
}

// New returns a Collector. Nothing is asked of the kernel yet.
func New(cfg Config) *Collector {
	return &Collector{cfg: cfg, descs: newDescs(), dial: sockdiag.Dial}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) { c.descs.describe(ch) }

// Collect implements prometheus.Collector. A collection that fails is logged and
// sends that it failed, and nothing else.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	r, err := c.Report()
	if err != nil {
		c.cfg.Logger.Error("Collection failed", "netns", selfNetNS, "err", err)
		c.descs.sendFailure(ch, selfNetNS)
		return
	}
	c.descs.send(ch, selfNetNS, r)
}

// Report collects once. It needs no privilege. The error is os.ErrDeadlineExceeded
// after Config.Timeout, those of sockdiag.Conn, or that of a file under /proc that
// cannot be read.
func (c *Collector) Report() (Report, error) {
	c.mu.Lock()
	defer c.mu.Unlock()

	start := time.Now()
	settings, err := readSettings(c.cfg.FS)
	if err != nil {
		return Report{}, err
	}
	settings.TimeWaitLength = c.cfg.TimeWaitLength

	t, err := c.tally(start.Add(c.cfg.Timeout), settings)
	if err != nil {
		return Report{}, err
	}

	r := t.report(settings, c.cfg.Limits)
	if r.TimeWaitSockets, err = c.cfg.FS.TimeWaitSockets(); err != nil {
		return Report{}, err
	}
	if r.TimeWaitOverflows, err = c.cfg.FS.TimeWaitOverflows(); err != nil {
		return Report{}, err
	}
	r.Duration = time.Since(start)
	return r, nil
}

// tally dumps listeners and sockets until deadline. The connection is made for one
// collection: it holds no state that a failed one could leave behind.
func (c *Collector) tally(deadline time.Time, s Settings) (*tally, error) {
	conn, err := c.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}

	low, high := s.PortRange.Low, s.PortRange.High
	var listeners []sockdiag.Socket
	err = conn.Listeners(low, high, func(l sockdiag.Socket) { listeners = append(listeners, l) })
	if err != nil {
		return nil, err
	}
	t := newTally(s, listeners)
	if err := conn.Sockets(low, high, t.add); err != nil {
		return nil, err
	}
	return t, nil
}

package collector

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/procfs"
)

// Config tells a Collector what to collect.
type Config struct {
	Proc           string // mount point of procfs
	Limits         Limits
	TimeWaitLength time.Duration // TCP_TIMEWAIT_LEN of the kernel
	Timeout        time.Duration // for one collection
	Logger         *slog.Logger

	Scope            Scope    // which namespaces; the zero value is ScopeSelf
	NamespaceFolders []string // where ScopeNamed and ScopeAll look for mounts
}

// A Collector is a prometheus.Collector for network namespaces: that of the process, and
// more as Config.Scope says.
type Collector struct {
	cfg   Config
	fs    procfs.FS
	descs descs
	dial  func() (*sockdiag.Conn, error)

	mu     sync.Mutex        // held during a collection, so that no two walk the kernel's table
	failed map[string]bool   // what failed in the last collection, and so is logged already
	labels map[uint64]string // of the namespaces in the last collection, by cookie
}

// New returns a Collector. Nothing is asked of the kernel yet.
func New(cfg Config) *Collector {
	return &Collector{cfg: cfg, fs: procfs.NewFS(cfg.Proc), descs: newDescs(), dial: sockdiag.Dial}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) { c.descs.describe(ch) }

// Collect implements prometheus.Collector. A namespace that fails is logged and sends that
// it failed, and nothing else.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	surveys := c.Survey()
	for _, s := range surveys {
		c.descs.send(ch, s)
	}
	if c.cfg.Scope != ScopeSelf {
		c.descs.sendOutcomes(ch, surveys)
	}
}

// Report collects once from the calling thread's namespace. It needs no privilege. The
// error is os.ErrDeadlineExceeded after Config.Timeout, those of sockdiag.Conn, or that of
// a file under /proc that cannot be read.
func (c *Collector) Report() (Report, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.report(time.Now().Add(c.cfg.Timeout))
}

// report collects from the calling thread's namespace.
func (c *Collector) report(deadline time.Time) (Report, error) {
	start := time.Now()
	ns, err := c.fs.Namespace()
	if err != nil {
		return Report{}, err
	}
	defer ns.Close()
	settings, err := c.settings(ns)
	if err != nil {
		return Report{}, err
	}
	t, err := c.tally(deadline, settings)
	if err != nil {
		return Report{}, err
	}
	r := t.report(settings, c.cfg.Limits)
	if err := r.count(ns); err != nil {
		return Report{}, err
	}
	r.Duration = time.Since(start)
	return r, nil
}

// settings reads what decides about the ports of a namespace.
func (c *Collector) settings(ns *procfs.Namespace) (Settings, error) {
	settings, err := readSettings(ns)
	settings.TimeWaitLength = c.cfg.TimeWaitLength
	return settings, err
}

// count reads what the kernel counts by itself.
func (r *Report) count(ns *procfs.Namespace) error {
	sockstat, err := ns.Sockstat()
	if err != nil {
		return err
	}
	r.TimeWaitSockets = sockstat.TimeWait
	r.TimeWaitOverflows, err = ns.TimeWaitOverflows()
	return err
}

// tally dumps listeners and sockets until deadline.
func (c *Collector) tally(deadline time.Time, s Settings) (*tally, error) {
	var t *tally
	err := c.ask(deadline, func(conn *sockdiag.Conn) error {
		var err error
		if t, err = listeners(conn, s); err != nil {
			return err
		}
		return conn.Sockets(s.PortRange.Low, s.PortRange.High, t.add)
	})
	return t, err
}

// ask opens a connection to the kernel for one collection: it holds no state that a failed
// one could leave behind.
func (c *Collector) ask(deadline time.Time, question func(*sockdiag.Conn) error) error {
	conn, err := c.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	return question(conn)
}

// listeners makes a tally that knows the listeners and no sockets yet.
func listeners(conn *sockdiag.Conn, s Settings) (*tally, error) {
	var listeners []sockdiag.Socket
	err := conn.Listeners(s.PortRange.Low, s.PortRange.High, func(l sockdiag.Socket) { listeners = append(listeners, l) })
	if err != nil {
		return nil, err
	}
	return newTally(s, listeners), nil
}

// logFailures logs what went wrong in a collection. In namespaces that are not ours, what
// was so in the last collection already is not said again: there can be thousands.
func (c *Collector) logFailures(surveys []Survey) {
	failed := map[string]bool{}
	for _, s := range surveys {
		if s.Err == nil || errors.Is(s.Err, os.ErrDeadlineExceeded) && s.NetNS != selfNetNS {
			continue
		}
		key := fmt.Sprint(s.NetNS, s.Inode)
		failed[key] = true
		if s.NetNS == selfNetNS || !c.failed[key] {
			c.cfg.Logger.Error("Collection failed", "netns", s.NetNS, "err", s.Err)
		}
	}
	c.failed = failed
}

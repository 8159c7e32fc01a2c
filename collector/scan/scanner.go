//go:build linux

package scan

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/conntrack"
	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/collector/sockiter"
	"ephemeral_port_exporter/collector/trace"
	"ephemeral_port_exporter/procfs"
)

// A Scanner makes Snapshots of a host.
type Scanner struct {
	cfg          Config
	proc         *procfs.FS
	tick         time.Duration // of the kernel's timers
	kernel       version
	clockOffset  time.Duration // see procfs.FS.MonotonicOffset
	reuseLate    bool          // see pool.Settings
	dial         func(buffer []byte) (*sockdiag.Conn, error)
	dialNAT      func(buffer []byte) (*conntrack.Conn, error)
	natTakesOver bool               // see snat.Settings
	iterator     *sockiter.Iterator // nil unless cfg.Exact
	tracer       *tracer            // nil unless counted
	cgroups      *cgroup.Groups     // nil if the host has no cgroup2 file system

	// fill adds the sockets of the calling thread's namespace to a table: dump or iterate.
	fill func(table *pool.Table, ports pool.PortRange, deadline time.Time) error

	mu       sync.Mutex                 // guards the fields below; no two scans walk the kernel's table at once
	buffer   []byte                     // for the answers of the kernel
	table    *pool.Table                // of the namespace that is read, which keeps its memory
	natTable *snat.Table                // the same
	logged   map[string]bool            // failures of the last scan, see logFailures
	known    map[uint64]*knownNamespace // other namespaces, by cookie
	learned  pool.Knowledge             // about our own namespace
	finWait2 pool.Fact                  // see pool.Settings.ReuseFinWait2
	trial    *finWait2Trial             // about that, until it is asked; nil if there is none
	scans    uint64

	timeWait  timeWaitCheck
	counters  conntrackCounters // of our own namespace
	natDrops  dropCounter       // of our own namespace
	overflows overflowCounter   // of our own namespace

	ciliumRead  bool        // the start or the last scan could open maps of Cilium
	ciliumDrops dropCounter // by Cilium.Unassigned

	noUDP bool // it was logged that the kernel cannot list UDP sockets
}

// New returns a Scanner. The error names the capabilities that cfg needs and the process does not
// have. It is a PermanentError if it is known to be one. If cfg.Trace is set, events are counted from now on until the process
// ends.
func New(cfg Config) (*Scanner, error) {
	s, err := open(cfg)
	if staysAsIs(err) {
		return nil, &PermanentError{err}
	}
	return s, err
}

// open is New without the type of the error.
func open(cfg Config) (*Scanner, error) {
	if err := checkCapabilities(cfg.Scope); err != nil {
		return nil, err
	}
	tick, err := timerTick()
	if err != nil {
		return nil, err
	}
	s := &Scanner{cfg: cfg, proc: procfs.NewFS(cfg.Proc), tick: tick, dial: sockdiag.Dial, dialNAT: conntrack.Dial, buffer: make([]byte, sockdiag.BufferSize), table: new(pool.Table), natTable: new(snat.Table)}
	s.cfg.Limits.Seed = maphash.MakeSeed()
	s.fill = s.dump
	if err := s.readKernel(); err != nil {
		return nil, err
	}
	if cfg.Exact {
		if s.iterator, err = sockiter.Attach(tick); err != nil {
			return nil, fmt.Errorf("--exact cannot list the sockets: %w", err)
		}
		s.fill = s.iterate
	}
	s.openCgroups()
	s.checkPods()
	if cfg.SNAT {
		if err := s.openNAT(); err != nil {
			return nil, err
		}
	}
	if cfg.Trace {
		probe, err := trace.Attach()
		if err != nil {
			return nil, fmt.Errorf("--trace cannot count: %w", err)
		}
		if probe.NoNamespaces != nil {
			cfg.Logger.Warn("Failed connects and closes are counted without their network namespace", "err", probe.NoNamespaces)
		}
		if probe.NoAncestors != nil {
			cfg.Logger.Warn("Each control group has a share of its own of what is counted, also one inside of another", "err", probe.NoAncestors)
		}
		if probe.NoBinds != nil {
			cfg.Logger.Info("Failed binds are not counted", "err", probe.NoBinds)
		}
		if probe.NoCloses != nil {
			cfg.Logger.Info("Closes are not counted", "err", probe.NoCloses)
		}
		self, err := netns.Cookie()
		if err != nil {
			return nil, fmt.Errorf("--trace cannot count: %w", err)
		}
		s.tracer = newTracer(probe, cfg.Limits.Most, recentTime(cfg.TimeWaitLength), func(cookie uint64) string { return s.labelOf(cookie, self) }, s.cgroups)
	}
	return s, nil
}

// readKernel reads what is the same in all namespaces.
func (s *Scanner) readKernel() (err error) {
	if s.kernel, err = kernelVersion(); err != nil {
		return err
	}
	s.reuseLate = s.kernel.before(4, 19)
	if !s.kernel.before(6, 12) {
		s.finWait2 = pool.No
	} else if s.cfg.Trials {
		s.trial = startFinWait2Trial(s.cfg.Proc)
	}
	s.clockOffset, err = s.proc.MonotonicOffset()
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // if it is not a proc file system, the first scan explains that
		s.reuseLate = true // when a second of the kernel's begins is not known, but after 2 s one has
		s.cfg.Logger.Warn("The offset of the time namespace is not known, so ports in TIME_WAIT count as held for 2 s before Linux 6.14", "err", err)
	}
	return nil
}

// timerTick returns the period of the kernel's timer interrupt, 1 s / CONFIG_HZ: it is the resolution
// of the coarse clocks.
func timerTick() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0, fmt.Errorf("read the tick of the kernel with clock_getres(CLOCK_MONOTONIC_COARSE): %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// Check scans once. An error is a PermanentError; it says what to change. A failure that may not happen at the next scan is no error: it is
// in Namespace.TCP.
func (s *Scanner) Check() (Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snapshot, failures := s.scan(time.Now().Add(s.cfg.Timeout))
	if err := explain(snapshot.Namespaces[0].TCP.Err, s.cfg.Proc); err != nil {
		return snapshot, &PermanentError{err}
	}
	if err := checkReach(snapshot.Namespaces[1:], failures); err != nil {
		return snapshot, &PermanentError{fmt.Errorf("--namespaces=%s reaches no other network namespace, as in a user namespace (a rootless or remapped container): run in the user namespace of the host, or with --namespaces=%s: %w",
			s.cfg.Scope, ScopeSelf, err)}
	}
	s.logFailures(Snapshot{}, failures)
	return snapshot, nil
}

// checkReach returns an error if there are other namespaces and none may be entered. It also
// returns one if there are other processes and none may be examined. The cause is a user
// namespace: capabilities in it do not apply to namespaces and processes of the host.
func checkReach(others []Namespace, failures []discoveryFailure) error {
	if len(others) == 0 {
		for _, f := range failures {
			var forbidden *netns.ForbiddenError
			if errors.As(f.err, &forbidden) && forbidden.Examined <= 1 { // the exporter itself
				return forbidden
			}
		}
		return nil
	}
	for _, n := range others {
		if !errors.Is(n.TCP.Err, fs.ErrPermission) {
			return nil
		}
	}
	return others[0].TCP.Err
}

// explain explains an error that every scan will have. It returns nil for any other error.
func explain(err error, proc string) error {
	switch {
	// This case is first: these errors wrap ENOENT too, like those of absent files.
	case errors.Is(err, sockdiag.ErrUnsupported), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("this host cannot be watched: %w", err)
	case errors.Is(err, fs.ErrNotExist) && isProcfs(proc):
		return fmt.Errorf("this host cannot be watched, the proc file system at --path.procfs=%s does not show the sysctls of networks: "+
			"mount it without subset=pid (in systemd ProcSubset=all), and do not cover its directory sys/net: %w", proc, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("this host cannot be watched, --path.procfs=%s must be a mounted proc file system: %w", proc, err)
	default:
		return nil
	}
}

// staysAsIs reports whether an error of open is known to be permanent. Others, such as a lack of memory, may pass.
func staysAsIs(err error) bool {
	return slices.ContainsFunc([]error{fs.ErrPermission, fs.ErrNotExist, sockiter.ErrUnsupported, trace.ErrUnsupported}, func(target error) bool { return errors.Is(err, target) })
}

// isProcfs reports whether path is in a proc file system.
func isProcfs(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// Scan reads all namespaces in scope. It ends after Config.Timeout, or at the deadline of ctx if
// that is earlier. The Snapshot does not contain namespaces that disappear meanwhile. Failures are
// in the Snapshot and are logged.
func (s *Scanner) Scan(ctx context.Context) Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	deadline := time.Now().Add(s.cfg.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	snapshot, failures := s.scan(deadline)
	s.logFailures(snapshot, failures)
	self := snapshot.Namespaces[0].TCP.Report.TimeWait
	if warning := s.timeWait.observe(s.cfg.TimeWaitLength, self); warning != "" {
		s.cfg.Logger.Warn(warning, "time-wait.length", s.cfg.TimeWaitLength, "longest", s.timeWait.longest)
	}
	return snapshot
}

// scan is Scan without logging.
func (s *Scanner) scan(deadline time.Time) (Snapshot, []discoveryFailure) {
	s.scans++
	defer func() {
		s.table.Release()
		s.natTable.Release()
	}()
	b := newBudget(deadline)
	self := Namespace{Name: Self}
	s.addConntrack(&self, &s.counters)
	b.due[natPart] = s.cfg.SNAT && (self.Conntrack.Entries > 0 || s.ciliumRead)
	others := s.cfg.othersInScope()
	b.due[surveyPart], b.due[socketsPart], b.due[flowsPart] = others, others, s.manyFlows()
	sockstat := s.collect(&self, &s.learned, &s.overflows, b)
	if s.cfg.SNAT {
		s.addNAT(&self, &s.natDrops, b.until(natPart))
	}
	var (
		namespaces []Namespace
		failures   []discoveryFailure
	)
	elsewhere := 0
	if others {
		namespaces, failures = s.scanOthers(&self, b)
	} else {
		elsewhere = countElsewhere(sockstat)
	}
	snapshot := Snapshot{
		Namespaces:        append([]Namespace{self}, namespaces...),
		OthersRead:        others,
		Elsewhere:         elsewhere,
		DiscoveryFailures: len(failures),
	}
	if len(failures) > 0 {
		snapshot.DiscoveryErr = failures[0].err
	}
	shareLimit(snapshot.Namespaces, s.cfg.Limits.Most)
	s.keepLearned(snapshot.Namespaces)
	s.findCgroups(&snapshot, deadline)
	if s.tracer != nil {
		counted := s.tracer.collect(snapshot.Namespaces, time.Now(), deadline)
		snapshot.Trace = &counted
	}
	s.namePods(&snapshot)
	snapshot.Time = time.Now()
	return snapshot, failures
}

// countElsewhere returns how many TCP sockets of the host are not in the namespace of a Sockstat, or have no port. It is 0 if that is not known.
func countElsewhere(s procfs.Sockstat) int {
	return max(s.Allocated-s.InUse, 0) // the kernel does not read both at once
}

// keepLearned bounds what is remembered of clients and peers by what is reported.
func (s *Scanner) keepLearned(namespaces []Namespace) {
	known := s.knownByInode()
	for i := range namespaces {
		n := &namespaces[i]
		if n.TCP.Outcome != Collected {
			continue // what was known stays
		}
		if n.Name == Self {
			s.learned.Keep(&n.TCP.Report)
		} else if k := known[n.Inode]; k != nil { // of one without a cookie, nothing is remembered
			k.learned.Keep(&n.TCP.Report)
		}
	}
}

// shareLimit limits the destinations, the sources and the pools of source NAT of all namespaces together.
func shareLimit(namespaces []Namespace, most int) {
	reports := make([]*pool.Report, len(namespaces))
	for i := range namespaces {
		reports[i] = &namespaces[i].TCP.Report
	}
	pool.ShareLimit(reports, most)

	var nat []*snat.Report
	for i := range namespaces {
		if n := &namespaces[i]; n.NAT.Outcome == Collected {
			nat = append(nat, &n.NAT.Report)
		}
	}
	snat.ShareLimit(nat, most)
}

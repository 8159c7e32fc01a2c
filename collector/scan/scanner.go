//go:build linux

package scan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/connectfail"
	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/procfs"
)

// A Scanner makes Snapshots of a host.
type Scanner struct {
	cfg             Config
	proc            *procfs.FS
	dial            func(buffer []byte) (*sockdiag.Conn, error)
	connectFailures *connectFailures // nil unless counted

	mu     sync.Mutex            // held during a scan, so that no two walk the kernel's table
	buffer []byte                // for what the kernel answers
	logged map[string]bool       // what failed in the last scan
	labels map[uint64]string     // of the namespaces in the last scan, by cookie
	owners map[uint64]knownOwner // likewise

	timeWait timeWaitCheck
}

// New returns a Scanner. The error names the rights that the process does not have and
// cfg asks for. If cfg.ConnectFailures is set, counting starts now and lasts until the
// process ends.
func New(cfg Config) (*Scanner, error) {
	if err := checkCapabilities(cfg.Scope); err != nil {
		return nil, err
	}
	s := &Scanner{cfg: cfg, proc: procfs.NewFS(cfg.Proc), dial: sockdiag.Dial, buffer: make([]byte, sockdiag.BufferSize)}
	if cfg.ConnectFailures {
		probe, err := connectfail.Attach()
		if err != nil {
			return nil, fmt.Errorf("--connect-failures cannot count: %w", err)
		}
		s.connectFailures = newConnectFailures(probe.Counts, cfg.Limits.Most)
	}
	return s, nil
}

// Check scans once and returns the process's own namespace. An error means that every scan
// will fail until somebody changes the host or the flags, and says what. A failure that may
// be over at the next scan is no error: it is in Namespace.Err.
func (s *Scanner) Check() (Namespace, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snapshot, failures := s.scan(time.Now().Add(s.cfg.Timeout))
	self := snapshot.Namespaces[0]
	if err := permanent(self.Err, s.cfg.Proc); err != nil {
		return self, err
	}
	if err := checkReach(snapshot.Namespaces[1:], failures); err != nil {
		return self, fmt.Errorf("--namespaces=%s reaches no other network namespace, as in a user namespace (a rootless or remapped container): run in the user namespace of the host, or with --namespaces=%s: %w",
			s.cfg.Scope, ScopeSelf, err)
	}
	s.logFailures(Snapshot{}, failures)
	return self, nil
}

// checkReach returns an error if there are other namespaces and none may be entered, or
// other processes and none may be examined: a user namespace gives capabilities that do not
// reach what belongs to the host.
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
		if !errors.Is(n.Err, fs.ErrPermission) {
			return nil
		}
	}
	return others[0].Err
}

// permanent explains an error that will be there at every scan. It returns nil for any
// other.
func permanent(err error, proc string) error {
	switch {
	// First, for these wrap ENOENT as absent files do.
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

// isProcfs reports whether a proc file system is mounted there.
func isProcfs(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// Scan reads all namespaces in scope. It takes no longer than Config.Timeout, nor than
// ctx allows. Namespaces that vanish meanwhile are not in the Snapshot. Failures are in
// it, and logged.
func (s *Scanner) Scan(ctx context.Context) Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	deadline := time.Now().Add(s.cfg.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	snapshot, failures := s.scan(deadline)
	s.logFailures(snapshot, failures)
	self := snapshot.Namespaces[0].Report.TimeWait
	if warning := s.timeWait.observe(s.cfg.TimeWaitLength, self); warning != "" {
		s.cfg.Logger.Warn(warning, "time-wait.length", s.cfg.TimeWaitLength, "longest", s.timeWait.longest)
	}
	return snapshot
}

// scan is Scan without the log.
func (s *Scanner) scan(deadline time.Time) (Snapshot, []discoveryFailure) {
	selfDeadline := deadline
	if s.cfg.othersInScope() {
		now := time.Now()
		selfDeadline = now.Add(deadline.Sub(now) / 2) // as for all others
	}
	self := s.collectSelf(selfDeadline)
	var (
		others   []Namespace
		failures []discoveryFailure
	)
	if s.cfg.othersInScope() {
		others, failures = s.scanOthers(&self, deadline)
	}
	snapshot := Snapshot{
		Namespaces:        append([]Namespace{self}, others...),
		OthersRead:        s.cfg.othersInScope(),
		DiscoveryFailures: len(failures),
	}
	shareLimit(snapshot.Namespaces, s.cfg.Limits.Most)
	if s.connectFailures != nil {
		counted := s.connectFailures.collect()
		snapshot.ConnectFailures = &counted
	}
	return snapshot, failures
}

// shareLimit bounds the destinations and sources of all namespaces together.
func shareLimit(namespaces []Namespace, most int) {
	reports := make([]*pool.Report, len(namespaces))
	for i := range namespaces {
		reports[i] = &namespaces[i].Report
	}
	pool.ShareLimit(reports, most)
}

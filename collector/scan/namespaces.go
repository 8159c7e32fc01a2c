//go:build linux

package scan

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/pool"
)

// idleFactor bounds the sockets of an idle namespace: all of them, times this, are fewer
// than the ports of one pool.
const idleFactor = 100

// A candidate is a namespace that was found, and what is known of it so far.
type candidate struct {
	Namespace
	found   netns.Namespace
	cookie  uint64
	sockets int // in any state, on any port
}

// scanOthers surveys all namespaces but our own, and collects from the busy ones.
func (s *Scanner) scanOthers(self *Namespace, deadline time.Time) []Namespace {
	var namespaces []Namespace
	found, err := s.discover()
	if err != nil {
		namespaces = append(namespaces, Namespace{}.fail(err, Failed))
	}
	if self.Inode, err = netns.Self(s.cfg.Proc); err != nil {
		return append(namespaces, Namespace{}.fail(err, Failed))
	}
	self.Owner = cgroup.OwnerOf(s.cfg.Proc, netns.OwnPID(s.cfg.Proc))

	candidates := s.surveyAll(found, self.Inode, deadline)
	s.assignLabels(candidates)
	var busy []candidate
	for _, c := range candidates {
		c.Owner = cgroup.OwnerOf(s.cfg.Proc, c.found.PID)
		if c.Err == nil && c.Name == "" {
			c.Namespace = c.fail(errNoCookie, Failed)
		}
		if c.Outcome == "" {
			busy = append(busy, c)
			continue
		}
		namespaces = append(namespaces, c.Namespace)
	}

	slices.SortFunc(busy, func(a, b candidate) int { return cmp.Compare(b.sockets, a.sockets) })
	for _, c := range busy {
		// Whatever one of them has in it, half of the time is left for the others.
		now := time.Now()
		err := s.collectFrom(&c, now.Add(deadline.Sub(now)/2))
		if errors.Is(err, netns.ErrGone) {
			continue
		}
		if err != nil {
			c.Namespace = c.fail(err, outcomeOf(err))
		}
		namespaces = append(namespaces, c.Namespace)
	}
	return namespaces
}

// discover lists the namespaces in scope.
func (s *Scanner) discover() ([]netns.Namespace, error) {
	mounted, err := netns.Mounted(s.cfg.NamespaceDirs)
	if s.cfg.Scope != ScopeAll {
		return mounted, err
	}
	if errors.Is(err, fs.ErrPermission) {
		err = nil // Docker's directory is for root only; its namespaces have processes
	}
	ofProcesses, processErr := netns.OfProcesses(s.cfg.Proc)
	return netns.Merge(mounted, ofProcesses), errors.Join(err, processErr)
}

// surveyAll surveys all namespaces but our own. A flood of them leaves half of the time to
// collect from those that matter.
func (s *Scanner) surveyAll(found []netns.Namespace, self uint64, deadline time.Time) []candidate {
	now := time.Now()
	deadline = now.Add(deadline.Sub(now) / 2)
	var candidates []candidate
	for _, ns := range found {
		if ns.Inode == self {
			continue
		}
		c := candidate{Namespace: Namespace{Inode: ns.Inode}, found: ns}
		err := s.survey(&c, deadline)
		if errors.Is(err, netns.ErrGone) {
			continue
		}
		if err != nil {
			c.Namespace = c.fail(err, outcomeOf(err))
		}
		candidates = append(candidates, c)
	}
	return candidates
}

// survey enters a namespace for as long as it takes to see how busy it is. If it is idle,
// that completes it; otherwise it has no outcome yet.
func (s *Scanner) survey(c *candidate, deadline time.Time) error {
	if !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	return netns.Enter(s.cfg.Proc, c.found, func(cookie uint64) error {
		c.cookie = cookie
		start := time.Now()
		ns, err := s.proc.Namespace()
		if err != nil {
			return err
		}
		defer ns.Close()
		settings, err := s.readSettings(ns)
		if err != nil {
			return err
		}
		sockstat, err := ns.Sockstat()
		if err != nil {
			return err
		}
		c.sockets = sockstat.InUse + sockstat.TimeWait
		table := pool.NewTable(settings, nil)
		if c.sockets*idleFactor >= table.Capacity() {
			return nil
		}
		if c.sockets > 0 {
			conn, err := s.dialUntil(deadline)
			if err != nil {
				return err
			}
			defer conn.Close()
			if table, err = newTable(conn, settings); err != nil {
				return err
			}
		}
		if c.TimeWaitOverflows, err = ns.TimeWaitOverflows(); err != nil {
			return err
		}
		c.Outcome = Idle
		c.Report = table.Report(s.cfg.Limits)
		c.Partial = c.sockets > 0
		c.TimeWaitSockets = sockstat.TimeWait
		c.Duration = time.Since(start)
		return nil
	})
}

// collectFrom enters a busy namespace and reads it.
func (s *Scanner) collectFrom(c *candidate, deadline time.Time) error {
	if !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	return netns.Enter(s.cfg.Proc, c.found, func(cookie uint64) error {
		if cookie != c.cookie {
			return netns.ErrGone // and its inode went to another
		}
		c.Outcome = Collected
		return s.collect(&c.Namespace, deadline)
	})
}

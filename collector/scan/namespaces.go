//go:build linux

package scan

import (
	"cmp"
	"errors"
	"os"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/pool"
)

// idleFactor times its sockets are fewer than the ports of one pool: then a namespace is
// idle.
const idleFactor = 100

// A candidate is a namespace that was found, and what is known of it so far.
type candidate struct {
	Namespace
	found   netns.Namespace
	cookie  uint64
	sockets int // in any state, on any port
}

// scanOthers surveys all namespaces but our own, and collects from the busy ones. The error
// means that none could be visited at all.
func (s *Scanner) scanOthers(self *Namespace, deadline time.Time) (namespaces []Namespace, failures []discoveryFailure) {
	found, failures := s.discover()
	var err error
	if self.Inode, err = netns.Self(s.cfg.Proc); err != nil {
		return nil, append(failures, discoveryFailure{"own namespace", err})
	}

	err = netns.Visit(s.cfg.Proc, func(v *netns.Visitor) error {
		candidates := s.surveyAll(v, found, self.Inode, deadline)
		s.assignLabels(candidates)
		s.assignOwners(candidates)
		namespaces = s.collectBusy(v, candidates, deadline)
		return nil
	})
	if err != nil {
		failures = append(failures, discoveryFailure{"visit", err})
	}
	return namespaces, failures
}

// surveyAll surveys all namespaces but our own. A flood of them leaves half of the time to
// collect from those that matter.
func (s *Scanner) surveyAll(v *netns.Visitor, found []netns.Namespace, self uint64, deadline time.Time) []candidate {
	now := time.Now()
	deadline = now.Add(deadline.Sub(now) / 2)
	candidates := make([]candidate, 0, len(found))
	for _, ns := range found {
		if ns.Inode == self {
			continue
		}
		c := candidate{Namespace: Namespace{Inode: ns.Inode}, found: ns}
		err := s.survey(v, &c, deadline)
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

// survey enters a namespace to see how busy it is. If it is idle, that completes it;
// otherwise it has no outcome yet.
func (s *Scanner) survey(v *netns.Visitor, c *candidate, deadline time.Time) (err error) {
	if !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	if c.cookie, err = v.Enter(c.found); err != nil {
		return err
	}
	sockstat, err := s.proc.Sockstat()
	if err != nil {
		return err
	}
	c.sockets = sockstat.InUse + sockstat.TimeWait
	idle, err := s.isIdle(c.sockets)
	if idle {
		c.Outcome, c.TimeWaitSockets = Idle, sockstat.TimeWait
	}
	return err
}

// isIdle reports whether the calling thread's namespace has too few sockets for any pool to
// matter: fewer than a destination with series of its own must have, or fewer than 1% of
// the ports of one pool. The sysctls are read only if they decide: with thousands of
// namespaces, the kernel takes long to find them.
func (s *Scanner) isIdle(sockets int) (bool, error) {
	if sockets < s.cfg.Limits.MinPorts {
		return true, nil
	}
	ns, err := s.proc.Namespace()
	if err != nil {
		return false, err
	}
	defer ns.Close()
	settings, err := readPorts(ns)
	if err != nil {
		return false, err
	}
	return sockets*idleFactor < pool.Capacity(settings), nil
}

// collectBusy collects from the candidates that are not idle, the busiest first, and
// returns all of them. Those that are gone meanwhile are left out.
func (s *Scanner) collectBusy(v *netns.Visitor, candidates []candidate, deadline time.Time) []Namespace {
	namespaces := make([]Namespace, 0, len(candidates))
	var busy []candidate
	for _, c := range candidates {
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
		err := s.collectFrom(v, &c, now.Add(deadline.Sub(now)/2))
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

// collectFrom enters a busy namespace and reads it.
func (s *Scanner) collectFrom(v *netns.Visitor, c *candidate, deadline time.Time) error {
	if !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	cookie, err := v.Enter(c.found)
	if err != nil {
		return err
	}
	if cookie != c.cookie {
		return netns.ErrGone // and its inode went to another
	}
	c.Outcome = Collected
	return s.collect(&c.Namespace, deadline)
}

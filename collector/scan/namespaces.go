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

const (
	// idleFactor is 1 / 1%: a namespace is idle if its sockets are fewer than 1% of the ports
	// of one pool.
	idleFactor = 100

	// capacityScans is how many scans use the same capacity to tell whether a namespace is
	// idle. With thousands of namespaces, the kernel takes long to find the sysctls of one.
	capacityScans = 32

	// A namespace with fewer sockets than smallSockets is small, and a scan collects from maxSmall
	// such at most: the kernel walks the sockets of the whole host for each, and to fill the few
	// ports of one costs a tenant nothing.
	smallSockets = 32
	maxSmall     = 4
)

// errLater means that a busy namespace is left for a later scan, and that its sockets are not known.
var errLater = errors.New("network namespace is left for a later scan")

// A candidate is a namespace in scope, with what the scan knows of it so far.
type candidate struct {
	Namespace
	found   netns.Namespace
	known   *knownNamespace // of earlier scans, or new; nil before the survey
	cookie  uint64
	sockets int // TCP in any state, or UDP if that has more, on any port
	flows   int // that are tracked; 0 if nobody asked
}

// scanOthers surveys all namespaces except our own, and collects from the busy ones. It sets
// self.Inode. It returns no namespaces if none could be visited; failures say why.
func (s *Scanner) scanOthers(self *Namespace, b *budget) (namespaces []Namespace, failures []discoveryFailure) {
	found, failures := s.discover()
	var err error
	if self.Inode, err = netns.Self(s.cfg.Proc); err != nil {
		return nil, append(failures, discoveryFailure{"own namespace", err})
	}

	err = netns.Visit(s.cfg.Proc, func(v *netns.Visitor) error {
		candidates := s.surveyAll(v, found, self.Inode, half(b.until(socketsPart)))
		s.retain(candidates)
		assignLabels(candidates)
		s.assignWorkloads(candidates)
		b.due[flowsPart] = slices.ContainsFunc(candidates, func(c candidate) bool { return c.known.natBusy })
		candidates = s.collectBusy(v, candidates, b.until(socketsPart))
		s.collectNAT(v, candidates, b.until(flowsPart))
		s.assignCommands(candidates, b.end)
		for _, c := range candidates {
			namespaces = append(namespaces, c.Namespace)
		}
		return nil
	})
	if err != nil {
		failures = append(failures, discoveryFailure{"visit", err})
	}
	return namespaces, failures
}

// surveyAll surveys all namespaces except our own.
func (s *Scanner) surveyAll(v *netns.Visitor, found []netns.Namespace, self uint64, deadline time.Time) []candidate {
	known := s.knownByInode()
	sortByNeed(found, known)
	candidates := make([]candidate, 0, len(found))
	for _, ns := range found {
		if ns.Inode == self {
			continue
		}
		c := candidate{Namespace: Namespace{Inode: ns.Inode, Path: ns.Path()}, found: ns}
		if len(candidates) >= s.cfg.NamespaceLimit {
			c.TCP.Outcome = Skipped
		} else if err := s.survey(v, &c, deadline); errors.Is(err, netns.ErrGone) {
			continue
		} else if err != nil {
			c.fail(err)
		}
		if c.known == nil { // it was not entered
			c.known = cmp.Or(known[c.Inode], &knownNamespace{inode: c.Inode, capacity: -1})
			c.cookie = c.known.cookie
			if c.TCP.Outcome == Skipped && c.known.busy {
				c.fail(errLater)
			}
			if c.known.natBusy {
				c.NAT.Result = failure(cmp.Or(c.TCP.Err, errLater))
			}
		}
		candidates = append(candidates, c)
	}
	return candidates
}

// survey enters a namespace and counts its sockets. It sets the outcome of an idle namespace; a
// busy one has no outcome yet.
func (s *Scanner) survey(v *netns.Visitor, c *candidate, deadline time.Time) (err error) {
	if !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	if c.cookie, err = v.Enter(c.found); err != nil {
		return err
	}
	c.known = s.recall(c.cookie, c.Inode)
	sockstat, err := s.proc.Sockstat()
	if err != nil {
		return err
	}
	c.sockets = max(sockstat.InUse+sockstat.TimeWait, sockstat.UDP)
	if due := (s.scans+c.cookie)%capacityScans == 0; due || c.known.capacity < 0 {
		if c.known.capacity, err = s.readCapacity(); err != nil {
			return err
		}
	}
	c.known.surveyed, c.known.busy = s.scans, true
	if s.cfg.SNAT {
		s.surveyNAT(c)
	}
	if c.sockets*idleFactor < c.known.capacity {
		c.known.busy = false
		c.TCP.Outcome = Idle
		c.TimeWait = TimeWait{Result: Result{Outcome: Idle}, Sockets: sockstat.TimeWait}
	}
	return nil
}

// readCapacity returns how many ports a pool of the calling thread's namespace has if there are no
// listeners, or -1 and an error.
func (s *Scanner) readCapacity() (int, error) {
	ns, err := s.proc.Namespace()
	if err != nil {
		return -1, err
	}
	defer ns.Close()
	settings, err := readPorts(ns)
	if err != nil {
		return -1, err
	}
	return pool.Capacity(settings), nil
}

// collectBusy collects from the candidates that have no outcome yet, as far as the time goes. It
// returns all candidates, except those that are gone meanwhile.
func (s *Scanner) collectBusy(v *netns.Visitor, candidates []candidate, deadline time.Time) []candidate {
	finished := make([]candidate, 0, len(candidates))
	var busy []candidate
	for _, c := range candidates {
		if c.TCP.Err == nil && c.Name == "" && c.TCP.Outcome != Skipped {
			c.fail(errNoCookie)
		}
		if c.TCP.Outcome == "" {
			busy = append(busy, c)
		} else {
			finished = append(finished, c)
		}
	}

	small := 0
	sockets := func(c candidate) int { return c.sockets }
	for _, c := range takeTurns(busy, sockets, func(c candidate) uint64 { return c.known.collected }) {
		if c.sockets < smallSockets {
			if small++; small > maxSmall {
				c.fail(errLater)
				finished = append(finished, c)
				continue
			}
		}
		err := s.collectFrom(v, &c, half(deadline))
		if errors.Is(err, netns.ErrGone) {
			continue
		}
		if err != nil {
			c.fail(err)
		}
		finished = append(finished, c)
	}
	return finished
}

// takeTurns orders busy namespaces: by turns the one that is largest, and the one whose last scan was
// the earliest. So a scan that does not get through all of them has the largest, and each of the others
// after a number of scans.
func takeTurns[C any](busy []C, size func(C) int, last func(C) uint64) []C {
	order := make([]int, len(busy))
	for i := range order {
		order[i] = i
	}
	bySize := slices.Clone(order)
	slices.SortStableFunc(bySize, func(a, b int) int { return cmp.Compare(size(busy[b]), size(busy[a])) })
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(last(busy[a]), last(busy[b])) })
	ordered := make([]C, 0, len(busy))
	taken := make([]bool, len(busy))
	for turn := range busy {
		for _, i := range []int{bySize[turn], order[turn]} {
			if !taken[i] {
				taken[i] = true
				ordered = append(ordered, busy[i])
			}
		}
	}
	return ordered
}

// collectFrom enters a busy namespace and reads it. The error says why it could not be entered.
func (s *Scanner) collectFrom(v *netns.Visitor, c *candidate, deadline time.Time) error {
	if !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	cookie, err := v.Enter(c.found)
	if err != nil {
		return err
	}
	if cookie != c.cookie {
		return netns.ErrGone // another namespace has its inode now
	}
	c.known.collected = s.scans
	s.addConntrack(&c.Namespace, &c.known.counters)
	s.collect(&c.Namespace, &c.known.learned, &c.known.overflows, newBudget(deadline))
	return nil
}

//go:build linux

package scan

import (
	"errors"
	"os"
	"time"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/procfs"
)

// collectSelf reads the process's own namespace. It needs no privilege.
func (s *Scanner) collectSelf(deadline time.Time) Namespace {
	self := Namespace{Name: Self}
	s.collect(&self, &s.learned, deadline)
	return self
}

// failure returns the Result of a source that could not be read because of err.
func failure(err error) Result {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Result{Deadline, err}
	case errors.Is(err, errLater):
		return Result{Skipped, err}
	default:
		return Result{Failed, err}
	}
}

// fail sets that the sockets of a namespace could not be read because of err.
func (n *Namespace) fail(err error) {
	n.TCP, n.UDP = TCP{Result: failure(err)}, UDP{Result: failure(err)}
}

// collect reads the sockets of the calling thread's namespace into n, with what is known of it.
func (s *Scanner) collect(n *Namespace, known *pool.Knowledge, deadline time.Time) {
	start := time.Now()
	ns, err := s.proc.Namespace()
	if err != nil {
		n.fail(err)
		return
	}
	defer ns.Close()
	settings, err := readPorts(ns)
	if err != nil {
		n.fail(err)
		return
	}
	n.UDP = s.collectUDP(settings, deadline)
	if n.TCP, err = s.collectTCP(ns, settings, known, deadline); err != nil {
		n.TCP = TCP{Result: failure(err)}
		return
	}
	n.TCP.Duration = time.Since(start)
}

// collectTCP reads the TCP sockets of the calling thread's namespace. The error is
// os.ErrDeadlineExceeded, an error of package sockdiag or sockiter, or the error of a file under /proc.
func (s *Scanner) collectTCP(ns *procfs.Namespace, settings pool.Settings, known *pool.Knowledge, deadline time.Time) (TCP, error) {
	settings, err := s.readTCPSettings(ns, settings)
	if err != nil {
		return TCP{}, err
	}
	table, err := s.fillTable(settings, known, deadline)
	if err != nil {
		return TCP{}, err
	}
	sockstat, err := s.proc.Sockstat()
	if err != nil {
		return TCP{}, err
	}
	overflows, err := s.proc.TimeWaitOverflows()
	if err != nil {
		return TCP{}, err
	}
	table.Infer(known, s.cfg.Limits)
	return TCP{
		Result: Result{Outcome: Collected}, Report: table.Report(s.cfg.Limits),
		TimeWaitSockets: sockstat.TimeWait, TimeWaitOverflows: overflows,
	}, nil
}

// readPorts returns Settings with the sysctls that say which ports connect() may choose, for TCP and
// UDP.
func readPorts(ns *procfs.Namespace) (pool.Settings, error) {
	portRange, err := ns.IPLocalPortRange()
	if err != nil {
		return pool.Settings{}, err
	}
	settings := pool.Settings{PortRange: pool.PortRange(portRange)}
	reserved, err := ns.IPLocalReservedPorts()
	if err != nil {
		return pool.Settings{}, err
	}
	for _, r := range reserved {
		settings.ReservedPorts = append(settings.ReservedPorts, pool.PortRange(r))
	}
	return settings, nil
}

// readTCPSettings returns all Settings of a namespace, given those of readPorts.
func (s *Scanner) readTCPSettings(ns *procfs.Namespace, settings pool.Settings) (_ pool.Settings, err error) {
	settings.TimeWaitLength, settings.Tick = s.cfg.TimeWaitLength, s.tick
	settings.TWReuseLate, settings.ReuseFinWait2 = s.kernel.before(4, 19), s.finWait2
	if settings.TWReuse, err = ns.TCPTWReuse(); err != nil {
		return pool.Settings{}, err
	}
	var hasDelay bool
	if settings.TWReuseDelay, hasDelay, err = ns.TCPTWReuseDelay(); err != nil {
		return pool.Settings{}, err
	}
	if hasDelay {
		settings.ReuseFinWait2 = pool.No // that change is older
	}
	if settings.Timestamps, err = ns.TCPTimestamps(); err != nil {
		return pool.Settings{}, err
	}
	if settings.FinTimeout, err = ns.TCPFinTimeout(); err != nil {
		return pool.Settings{}, err
	}
	if settings.TimeWaitLimit, err = ns.TCPMaxTWBuckets(); err != nil {
		return pool.Settings{}, err
	}
	return settings, nil
}

// fillTable returns a Table of the calling thread's namespace. It adds to known which peers use
// timestamps. If that contradicts what the Table assumed, it reads all sockets once more; likewise if the Table
// needs to know what connect() does with FIN_WAIT2, and a trial has told.
func (s *Scanner) fillTable(settings pool.Settings, known *pool.Knowledge, deadline time.Time) (*pool.Table, error) {
	for again := false; ; again = true {
		table := pool.NewTable(settings)
		table.Recall(*known)
		if err := s.fill(table, settings.PortRange, deadline); err != nil {
			return nil, err
		}
		if again {
			return table, nil
		}
		changed, err := s.askTimestamps(table.Questions(s.cfg.Limits), known, deadline)
		if err != nil {
			return nil, err
		}
		if table.AsksFinWait2() && s.askFinWait2(deadline) {
			settings.ReuseFinWait2 = s.finWait2
			changed = true
		}
		if !changed {
			return table, nil
		}
	}
}

// askFinWait2 asks the trial once. It reports whether the answer is known now.
func (s *Scanner) askFinWait2(deadline time.Time) (known bool) {
	if s.trial == nil {
		return false
	}
	// The other half is for reading the sockets once more, and for what comes after them.
	fact, err := s.trial.result(time.Now().Add(time.Until(deadline) / 2))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	if err != nil {
		s.cfg.Logger.Info("It is not known whether connect() takes over ports in FIN_WAIT2, so they count as used: a trial in a network namespace of its own failed", "err", err)
	}
	s.trial, s.finWait2 = nil, fact
	return fact != pool.Unknown
}

// askTimestamps adds the answers to known. It reports whether one was not as assumed.
func (s *Scanner) askTimestamps(questions []pool.Question, known *pool.Knowledge, deadline time.Time) (changed bool, err error) {
	if len(questions) == 0 {
		return false, nil
	}
	conn, err := s.dialUntil(deadline)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	for _, q := range questions {
		timestamps, ok, err := conn.Timestamps(q.Local, q.Remote, q.Interface)
		if err != nil {
			return false, err
		}
		if ok && known.Answer(q, timestamps) {
			changed = true
		}
	}
	return changed, nil
}

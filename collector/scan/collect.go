//go:build linux

package scan

import (
	"cmp"
	"errors"
	"os"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/procfs"
)

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

// collect reads the sockets of the calling thread's namespace into n, with what is known of it. It takes
// the time of tcpPart and udpPart. It returns what the kernel counts of the sockets, as far as that is known.
func (s *Scanner) collect(n *Namespace, known *pool.Knowledge, overflows *overflowCounter, b *budget) procfs.Sockstat {
	start := time.Now()
	ns, err := s.proc.Namespace()
	if err != nil {
		n.fail(err)
		return procfs.Sockstat{}
	}
	defer ns.Close()
	settings, err := readPorts(ns)
	if err != nil {
		n.fail(err)
		return procfs.Sockstat{}
	}
	settings.NodePorts = s.cfg.NodePorts
	cilium := ns.HasCilium()
	settings.MayRedirect = n.Conntrack.Entries > 0 || cilium || ns.HasIPVS()
	n.Cilium.Found = n.Name == Self && cilium
	sockstat, noSockstat := s.proc.Sockstat()
	n.UDP = countUDP(sockstat, noSockstat, settings)
	b.due[udpPart] = n.UDP.Outcome == Collected
	if n.TCP, err = s.collectTCP(ns, settings, known, b.until(tcpPart)); err != nil {
		n.TCP = TCP{Result: failure(err)}
	} else {
		n.TCP.Duration = time.Since(start)
		if n.TimeWait, err = s.countTimeWait(ns, sockstat.TimeWait); cmp.Or(noSockstat, err) != nil {
			n.TimeWait = TimeWait{Result: failure(cmp.Or(noSockstat, err))}
		} else {
			n.TimeWait.Recent, n.TimeWait.Window = overflows.observe(overflowSample{time.Now(), n.TimeWait.Overflows})
		}
	}
	if b.due[udpPart] {
		s.collectUDP(&n.UDP, settings, b.until(udpPart))
	}
	s.shareServers(n, settings, b.until(udpPart))
	return sockstat
}

// shareServers tells the report of each protocol on which ports the other one has servers: both have the same range. UDP
// sockets that are few are read only if a pool of TCP may need advice.
func (s *Scanner) shareServers(n *Namespace, settings pool.Settings, deadline time.Time) {
	tcp, udp := &n.TCP.Report, &n.UDP.Report
	if n.TCP.Outcome != Collected {
		return
	}
	switch n.UDP.Outcome {
	case Collected:
		udp.ListenerPorts, udp.ListenersKnown = tcp.ListenerPorts, true
		tcp.UDPServerPorts, tcp.UDPServersKnown = udp.ServerPorts, true
	case Idle:
		if n.UDP.Sockets == 0 {
			tcp.UDPServersKnown = true
		} else if table := pool.NewUDPTable(settings); tcp.Pressed() {
			err := s.dumpUDP(table, deadline)
			if err == nil {
				tcp.UDPServerPorts, tcp.UDPServersKnown = table.Report().ServerPorts, true
			}
			n.TCP.CutShort = n.TCP.CutShort || errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

// collectTCP reads the TCP sockets of the calling thread's namespace. The error is
// os.ErrDeadlineExceeded, an error of package sockdiag or sockiter, or the error of a file under /proc.
func (s *Scanner) collectTCP(ns *procfs.Namespace, settings pool.Settings, known *pool.Knowledge, deadline time.Time) (TCP, error) {
	settings, err := s.readTCPSettings(ns, settings)
	if err != nil {
		return TCP{}, err
	}
	tcp := TCP{Result: Result{Outcome: Collected}}
	table, err := s.fillTable(&tcp, settings, known, deadline)
	if err != nil {
		return TCP{}, err
	}
	table.Infer(known, s.cfg.Limits)
	tcp.Report = table.Report(s.cfg.Limits)
	return tcp, nil
}

// countTimeWait returns what the kernel counts of TIME_WAIT in the calling thread's namespace, given the sockets in it.
func (s *Scanner) countTimeWait(ns *procfs.Namespace, sockets int) (TimeWait, error) {
	limit, err := ns.TCPMaxTWBuckets()
	if err != nil {
		return TimeWait{}, err
	}
	overflows, err := s.proc.TimeWaitOverflows()
	if err != nil {
		return TimeWait{}, err
	}
	return TimeWait{Result: Result{Outcome: Collected}, Sockets: sockets, Limit: limit, Overflows: overflows}, nil
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
	if settings.UnprivilegedPort, err = ns.IPUnprivilegedPortStart(); err != nil {
		return pool.Settings{}, err
	}
	return settings, nil
}

// readTCPSettings returns all Settings of a namespace, given those of readPorts.
func (s *Scanner) readTCPSettings(ns *procfs.Namespace, settings pool.Settings) (_ pool.Settings, err error) {
	settings.TimeWaitLength, settings.Tick = s.cfg.TimeWaitLength, s.tick
	settings.TWReuseLate, settings.ReuseFinWait2 = s.reuseLate, s.finWait2
	if settings.AutobindReuse, err = ns.IPAutobindReuse(); err != nil {
		return pool.Settings{}, err
	}
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
	return settings, nil
}

// fillTable returns a Table of the calling thread's namespace, valid until the next call. It adds to known which peers use
// timestamps. It reads all sockets once more if an answer contradicts what the Table assumed, or if a trial has told
// what connect() does with FIN_WAIT2 and the Table needs that. Each question leaves half of the time for this.
//
// It sets in tcp what stays unknown. Then the Table has the worst case of that. Reading the sockets once more only makes
// it better: it stays as it is if there is no time.
func (s *Scanner) fillTable(tcp *TCP, settings pool.Settings, known *pool.Knowledge, deadline time.Time) (*pool.Table, error) {
	table := s.table
	if err := s.readTable(table, settings, known, deadline); err != nil {
		return nil, err
	}
	questions := table.Questions(s.cfg.Limits)
	answered, changed, unanswered := s.askTimestamps(questions, known, half(deadline))
	told := false
	if table.AsksFinWait2() {
		told, tcp.CutShort = s.askFinWait2(half(deadline))
	}
	if told {
		settings.ReuseFinWait2 = s.finWait2
	}
	if changed || told {
		again := new(pool.Table)
		if err := s.readTable(again, settings, known, deadline); err == nil {
			table, s.table = again, again
		} else {
			tcp.CutShort = tcp.CutShort || errors.Is(err, os.ErrDeadlineExceeded)
			if changed {
				answered, unanswered = 0, cmp.Or(unanswered, err)
			}
		}
	}
	for _, q := range questions[answered:] {
		table.Doubt(q)
	}
	if slices.ContainsFunc(questions[answered:], pool.Question.Matters) {
		tcp.TimestampsErr = unanswered
	}
	return table, nil
}

// readTable reads the sockets of the calling thread's namespace into a table, which can be a used one.
func (s *Scanner) readTable(table *pool.Table, settings pool.Settings, known *pool.Knowledge, deadline time.Time) error {
	now, err := sockdiag.Now()
	if err != nil {
		return err
	}
	table.Reset(settings)
	table.Recall(*known, now-s.clockOffset)
	return s.fill(table, settings.PortRange, deadline)
}

// askFinWait2 asks the trial once. It reports whether the answer is known now, and whether it takes more time.
func (s *Scanner) askFinWait2(deadline time.Time) (known, late bool) {
	if s.trial == nil {
		return false, false
	}
	fact, err := s.trial.result(deadline)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, true
	}
	if err != nil {
		s.cfg.Logger.Info("It is not known whether connect() takes over ports in FIN_WAIT2, so they count as used: a trial in a network namespace of its own failed", "err", err)
	}
	s.trial, s.finWait2 = nil, fact
	return fact != pool.Unknown, false
}

// askTimestamps adds the answers to known. It returns how many of the questions it has asked before an
// error, and reports whether an answer was not as assumed.
func (s *Scanner) askTimestamps(questions []pool.Question, known *pool.Knowledge, deadline time.Time) (asked int, changed bool, err error) {
	if len(questions) == 0 {
		return 0, false, nil
	}
	conn, err := s.dialUntil(deadline)
	if err != nil {
		return 0, false, err
	}
	defer conn.Close()
	now, err := sockdiag.Now()
	if err != nil {
		return 0, false, err
	}
	for i, q := range questions {
		timestamps, ok, err := conn.Timestamps(q.Local, q.Remote, q.Interface)
		if err != nil {
			return i, contradicts(questions[:i], known), err
		}
		if ok {
			known.Answer(q, timestamps, now-s.clockOffset, 2*s.cfg.TimeWaitLength)
		}
	}
	return len(questions), contradicts(questions, known), nil
}

// contradicts reports whether an answer is not as assumed.
func contradicts(questions []pool.Question, known *pool.Knowledge) bool {
	return slices.ContainsFunc(questions, known.Contradicts)
}

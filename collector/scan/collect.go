//go:build linux

package scan

import (
	"errors"
	"os"
	"time"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/procfs"
)

// collectSelf reads the process's own namespace. It needs no privilege.
func (s *Scanner) collectSelf(deadline time.Time) Namespace {
	self := Namespace{Name: Self, Outcome: Collected}
	if err := s.collect(&self, deadline); err != nil {
		return self.failed(err, outcomeOf(err))
	}
	return self
}

// outcomeOf returns the outcome of a namespace that could not be read because of err.
func outcomeOf(err error) Outcome {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return Deadline
	}
	return Failed
}

// collect reads the calling thread's namespace into n. The error is os.ErrDeadlineExceeded, an
// error of package sockdiag, or the error of a file under /proc.
func (s *Scanner) collect(n *Namespace, deadline time.Time) error {
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
	table, err := s.fillTable(settings, deadline)
	if err != nil {
		return err
	}
	sockstat, err := s.proc.Sockstat()
	if err != nil {
		return err
	}
	if n.TimeWaitOverflows, err = s.proc.TimeWaitOverflows(); err != nil {
		return err
	}
	n.TimeWaitSockets = sockstat.TimeWait
	n.Report = table.Report(s.cfg.Limits)
	n.Duration = time.Since(start)
	return nil
}

// readPorts returns Settings with the sysctls that say which ports connect() may choose.
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

// readSettings returns all Settings of a namespace.
func (s *Scanner) readSettings(ns *procfs.Namespace) (pool.Settings, error) {
	settings, err := readPorts(ns)
	if err != nil {
		return pool.Settings{}, err
	}
	settings.TimeWaitLength, settings.Tick = s.cfg.TimeWaitLength, s.tick
	if settings.TWReuse, err = ns.TCPTWReuse(); err != nil {
		return pool.Settings{}, err
	}
	if settings.TWReuseDelay, _, err = ns.TCPTWReuseDelay(); err != nil {
		return pool.Settings{}, err
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

// fillTable returns a Table with the listeners and sockets of the calling thread's namespace.
func (s *Scanner) fillTable(settings pool.Settings, deadline time.Time) (*pool.Table, error) {
	conn, err := s.dialUntil(deadline)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	table := pool.NewTable(settings)
	low, high := settings.PortRange.Low, settings.PortRange.High
	err = conn.Listeners(low, high, func(l *sockdiag.Socket) {
		table.Block(pool.Listener{Local: l.Local, V6Only: l.V6Only})
	})
	if err != nil {
		return nil, err
	}
	states := make([]sockdiag.State, len(pool.States))
	for i, state := range pool.States {
		states[i] = sockdiag.State(state)
	}
	var row pool.Socket
	err = conn.Sockets(states, low, high, func(socket *sockdiag.Socket) {
		row.State = pool.State(socket.State)
		row.Local, row.Remote = socket.Local, socket.Remote
		row.Interface, row.Mini, row.Expires = socket.Interface, socket.Mini, socket.Expires
		table.Add(&row)
	})
	return table, err
}

// dialUntil opens a connection to the kernel that fails at the deadline. Each scan of a namespace
// uses a new connection, so that a failed scan does not affect the next one.
func (s *Scanner) dialUntil(deadline time.Time) (*sockdiag.Conn, error) {
	conn, err := s.dial(s.buffer)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(deadline)
	return conn, nil
}

//go:build linux

package scan

import (
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/collector/sockiter"
)

// dump fills a table with the listeners of the calling thread's namespace, and with the sockets whose
// port is in the range, over netlink socket diagnostics.
func (s *Scanner) dump(table *pool.Table, ports pool.PortRange, deadline time.Time) error {
	conn, err := s.dialUntil(deadline)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = conn.Listeners(1, 65535, func(l *sockdiag.Socket) {
		table.Block(pool.Listener{Local: l.Local, V6Only: l.V6Only})
	})
	if err != nil {
		return err
	}
	var row pool.Socket
	return conn.Sockets(pool.States[:], ports.Low, ports.High, func(socket *sockdiag.Socket) {
		s.setRow(&row, socket)
		table.Add(&row)
	})
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

// iterate is dump with a BPF iterator, which knows more of each socket. It would walk all sockets for
// the listeners outside the range, so netlink lists these.
func (s *Scanner) iterate(table *pool.Table, ports pool.PortRange, deadline time.Time) error {
	table.KnowBound()
	var row pool.Socket
	err := s.iterator.Sockets(ports.Low, ports.High, deadline, func(socket *sockiter.Socket) {
		if socket.State == tcpstate.Listen {
			table.Block(pool.Listener{Local: socket.Local, V6Only: socket.V6Only})
			return
		}
		s.setRow(&row, &socket.Socket)
		row.Bound = factOf(socket.Bound)
		row.Timestamps, row.LastTimestamp = pool.Unknown, 0
		if socket.Mini {
			row.Timestamps, row.LastTimestamp = factOf(socket.Stamp != 0), socket.Stamp
		}
		table.Add(&row)
	})
	if err != nil {
		return err
	}
	conn, err := s.dialUntil(deadline)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Listeners(1, 65535, func(l *sockdiag.Socket) {
		if !ports.Contains(l.Local.Port()) {
			table.Block(pool.Listener{Local: l.Local, V6Only: l.V6Only})
		}
	})
}

// setRow sets what both readers know of a socket.
func (s *Scanner) setRow(row *pool.Socket, socket *sockdiag.Socket) {
	row.State = socket.State
	row.Local, row.Remote = socket.Local, socket.Remote
	row.Interface, row.Mini, row.Expires = socket.Interface, socket.Mini, socket.Expires
	row.Seen = socket.Seen - s.clockOffset
	row.Cgroup = socket.Cgroup
}

// factOf returns the Fact that is known.
func factOf(b bool) pool.Fact {
	if b {
		return pool.Yes
	}
	return pool.No
}

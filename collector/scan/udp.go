//go:build linux

package scan

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/procfs"
)

// countUDP counts the UDP sockets of a namespace by its Sockstat, if err is nil. They are Idle if they are few: the
// kernel walks those of the whole host. Otherwise they are to be collected.
func countUDP(sockstat procfs.Sockstat, err error, settings pool.Settings) UDP {
	if err != nil {
		return UDP{Result: failure(err)}
	}
	if sockstat.UDP*idleFactor < pool.Capacity(settings) {
		return UDP{Result: Result{Outcome: Idle}, Sockets: sockstat.UDP}
	}
	return UDP{Result: Result{Outcome: Collected}, Sockets: sockstat.UDP}
}

// collectUDP reads the UDP sockets of the calling thread's namespace.
func (s *Scanner) collectUDP(u *UDP, settings pool.Settings, deadline time.Time) {
	table := pool.NewUDPTable(settings)
	if err := s.dumpUDP(table, deadline); err != nil {
		u.Result = failure(err)
		if errors.Is(err, sockdiag.ErrUnsupported) {
			u.Outcome = Unsupported
		}
		return
	}
	u.Report = table.Report()
}

// dumpUDP fills a table over netlink socket diagnostics.
func (s *Scanner) dumpUDP(table *pool.UDPTable, deadline time.Time) error {
	conn, err := s.dialUntil(deadline)
	if err != nil {
		return err
	}
	defer conn.Close()
	var row pool.UDPSocket
	return conn.UDP(func(socket *sockdiag.Socket) {
		row = pool.UDPSocket{
			Local: socket.Local, V6Only: socket.V6Only, Connected: socket.State == tcpstate.Established, Cgroup: socket.Cgroup,
		}
		table.Add(&row)
	})
}

// logUDP logs why the UDP sockets of a namespace could not be read, if the last scan could read them. It
// logs only once that this kernel cannot list any.
func (s *Scanner) logUDP(n Namespace, logged map[string]bool) {
	err := n.UDP.Err
	switch {
	case err == nil, n.UDP.Outcome == Skipped, errors.Is(err, n.TCP.Err): // which is logged
	case n.UDP.Outcome == Unsupported:
		if !s.noUDP {
			s.cfg.Logger.Warn("UDP ports are not reported", "err", err)
		}
		s.noUDP = true
	case errors.Is(err, os.ErrDeadlineExceeded) && n.Name != Self:
	default:
		key := fmt.Sprintf("udp %d", n.Inode)
		logged[key] = true
		if !s.logged[key] {
			s.cfg.Logger.Error("UDP sockets cannot be read", "netns", cmp.Or(n.Name, fmt.Sprintf("inode %d", n.Inode)), "err", err)
		}
	}
}

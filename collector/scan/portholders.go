//go:build linux

package scan

import (
	"context"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
)

// Port returns who has a port of our own network namespace. The kernel walks all sockets for that. It ends after
// Config.Timeout, or at the deadline of ctx if that is earlier. The errors are those of a scan.
func (s *Scanner) Port(ctx context.Context, number uint16) (Port, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	deadline := time.Now().Add(s.cfg.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	ns, err := s.proc.Namespace()
	if err != nil {
		return Port{}, err
	}
	defer ns.Close()
	settings, err := readPorts(ns)
	if err != nil {
		return Port{}, err
	}
	p := Port{
		Number: number, InRange: settings.PortRange.Contains(number),
		Reserved: slices.ContainsFunc(settings.ReservedPorts, func(r pool.PortRange) bool { return r.Contains(number) }),
	}
	owners, err := s.portHolders(&p, deadline)
	if err != nil {
		return Port{}, err
	}
	p.Time = time.Now()
	if s.cgroups == nil {
		return p, nil
	}
	groups, _ := s.cgroups.Find(owners, deadline) // those that it does not find have their numbers
	for i := range p.Holders {
		if owners[i] != 0 {
			p.Holders[i].Cgroup = groups[owners[i]]
		}
	}
	name := s.podNames()
	for i := range p.Holders {
		name(&p.Holders[i].Cgroup.Workload)
	}
	return p, nil
}

// portHolders adds the holders of a port, and returns the control group of each.
func (s *Scanner) portHolders(p *Port, deadline time.Time) (owners []uint64, err error) {
	conn, err := s.dialUntil(deadline)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	add := func(socket *sockdiag.Socket) {
		listens := socket.State == tcpstate.Listen
		if !listens && p.Listener() {
			p.Connections++
			return
		}
		if len(p.Holders) >= MaxHolders {
			p.More++
			return
		}
		p.Holders = append(p.Holders, PortHolder{
			Listens: listens, State: socket.State, Local: socket.Local, Remote: socket.Remote,
		})
		owners = append(owners, socket.Cgroup)
	}
	if err := conn.Listeners(p.Number, p.Number, add); err != nil {
		return nil, err
	}
	return owners, conn.Sockets(pool.States[:], p.Number, p.Number, add)
}

//go:build linux

package scan

import (
	"time"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/pool"
)

// openCgroups looks for the cgroup2 file system. It logs if there is none or only a part of it:
// that does not change while the process runs.
func (s *Scanner) openCgroups() {
	cgroups, err := cgroup.Open(s.cfg.Cgroup)
	if err != nil {
		s.cfg.Logger.Warn("Owners of destinations are not reported: the control groups of the host are not there, see --path.cgroup", "err", err)
		return
	}
	s.cgroups = cgroups
	switch complete, err := cgroups.Complete(); {
	case err != nil:
		s.cfg.Logger.Warn("Owners of destinations may have numbers instead of paths", "err", err)
	case !complete:
		s.cfg.Logger.Warn("Owners of destinations have paths only within the exporter's own control group: mount /sys/fs/cgroup of the host into the container, read-only, and name it in --path.cgroup",
			"path.cgroup", s.cfg.Cgroup)
	}
}

// findCgroups sets the control groups of a snapshot.
func (s *Scanner) findCgroups(snapshot *Snapshot, deadline time.Time) {
	if s.cgroups == nil {
		return
	}
	var ids []uint64
	add := func(owners []pool.Owner) {
		for _, o := range owners {
			ids = append(ids, o.Cgroup)
		}
	}
	for i := range snapshot.Namespaces {
		n := &snapshot.Namespaces[i]
		add(n.TCP.Report.BoundOwners)
		for _, d := range n.TCP.Report.Destinations {
			add(d.Owners)
		}
		for _, p := range n.UDP.Report.Pools {
			add(p.Owners)
		}
	}
	snapshot.Cgroups, snapshot.CgroupsErr = s.cgroups.Find(ids, deadline)
}

package status

import (
	"fmt"

	"ephemeral_port_exporter/collector/scan"
)

// addNotes adds what the numbers do not contain.
func (p *page) addNotes(s *scan.Snapshot, c cleaner) {
	unsure := 0
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		r := &n.TCP.Report
		of := 0
		for i := range r.Destinations {
			of += r.Destinations[i].ReusableUnknown
		}
		if n.TCP.TimestampsErr == nil {
			unsure += of
		} else if of > 0 {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %s of closed connections may be free, but count as used: it could not be read whether their destinations use TCP timestamps. %s",
				c.name(n.Name), plural(of, "port", "ports"), c.sentence(n.TCP.TimestampsErr.Error())))
		}
		if 100*r.BoundUnknown > r.CapacityPorts {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: up to %d ports may be bound besides those counted, because their clients have not been seen choosing. Utilization can be higher by these.",
				c.name(n.Name), r.BoundUnknown))
		}
	}
	if unsure > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("%s in FIN_WAIT2 may be free, but count as used: whether connect() takes these over is not known of this kernel, which is older than 6.12.",
			plural(unsure, "port", "ports")))
	}
	if note := natNote(&s.Namespaces[0]); note != "" {
		p.Notes = append(p.Notes, note)
	}
	if err := s.MissingPaths(); err != nil {
		p.Notes = append(p.Notes, "Some control groups have no path: "+c.sentence(err.Error()))
	}
}

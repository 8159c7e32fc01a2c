package status

import (
	"fmt"
	"slices"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/scan"
)

// judge sets the level and the sentence that says how things stand. What could not be read is never
// calm.
func (p *page) judge(s *scan.Snapshot, c cleaner) {
	self := &s.Namespaces[0]
	if p.View.Destination.IsValid() {
		p.judgeDestination(self, c)
	} else {
		p.judgeHost(s, c)
		p.judgeUDPFailures(s, c)
	}
	p.judgeNATFailures(s, c)
	if f := s.ConnectFailures; f != nil && f.Err != nil {
		p.raise(warning, "Failed connects could not be counted: "+c.sentence(f.Err.Error()))
	}
	if n := unread(s); n > 0 {
		p.raise(warning, fmt.Sprintf("%s could not be read: nothing is known of the ports in there.", plural(n, "network namespace", "network namespaces")))
	}
	if s.DiscoveryFailures > 0 {
		p.raise(calm, fmt.Sprintf("%s could not be searched for network namespaces: some may be missing. The log has the causes.", plural(s.DiscoveryFailures, "place", "places")))
	}
	if self.TCP.Err != nil {
		if p.Level > calm {
			p.Problems = slices.Insert(p.Problems, 0, p.Headline)
		}
		p.Level = unknown
		p.Headline = "The ports of this host could not be read: nothing is known about them. " + c.sentence(self.TCP.Err.Error())
	}
}

// raise adds a problem besides the headline's, of a level.
func (p *page) raise(l level, sentence string) {
	p.Level = max(p.Level, l)
	p.Problems = append(p.Problems, sentence)
}

// unread returns how many other namespaces could not be read.
func unread(s *scan.Snapshot) (n int) {
	for i := range s.Namespaces[1:] {
		if o := s.Namespaces[1+i].TCP.Outcome; o == scan.Failed || o == scan.Deadline {
			n++
		}
	}
	return n
}

// judgeDestination judges the destination of the view.
func (p *page) judgeDestination(self *scan.Namespace, c cleaner) {
	address := c.name(p.View.Destination.String())
	switch {
	case len(p.Destinations) > 0:
		d := p.Destinations[0]
		p.Level = d.Level
		if p.Level > calm {
			p.Headline = d.Address + " " + d.problem() + "."
		} else {
			p.Headline = fmt.Sprintf("%s is not in danger: %s of its ports are in use.", address, d.Used)
		}
		if len(p.NAT) > 0 && p.NAT[0].Level > calm {
			p.raise(p.NAT[0].Level, "Source NAT: "+p.NAT[0].problem()+".")
		}
	case len(p.NAT) > 0:
		p.Level = p.NAT[0].Level
		p.Headline = "Source NAT: " + p.NAT[0].problem() + "."
	case len(p.Failed) > 0:
		p.Level = warning
		p.Headline = fmt.Sprintf("%s holds few ports now or none, but had %s that failed, the last within 15 minutes.", address, connects(p.Failed[0].pool.Failures))
	case self.TCP.Err == nil:
		p.Headline = address + " is not among the destinations here: it holds few ports now, or none."
	}
}

// judgeHost judges all that was read.
func (p *page) judgeHost(s *scan.Snapshot, c cleaner) {
	var sentences []string // that begin with a name
	inDanger := 0
	for _, d := range p.Destinations {
		if d.Level > calm {
			inDanger++
			p.Level = max(p.Level, d.Level)
		}
	}
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		r := &n.TCP.Report
		if n.TCP.Outcome != scan.Collected {
			continue
		}
		where := ""
		if p.Others {
			where = " in " + c.name(n.Name)
		}
		switch {
		case r.CapacityPorts == 0:
			p.Level = max(p.Level, exhausted)
			sentences = append(sentences, "No port is left for outgoing connections"+where+": connect() fails unless its client has bound a port.")
		case advice.ReachedUnreported(r).Level() > calm:
			p.Level = max(p.Level, advice.ReachedUnreported(r).Level())
			sentences = append(sentences, fmt.Sprintf("A destination%s that limits leave out has %s of its ports in use: lower --destination.min-ports to see it.", where, percent(r.MaxUtilization)))
		}
	}
	for _, src := range p.Sources {
		if l := advice.ReachedSource(src.pool).Level(); src.Certain && l > calm {
			p.Level = max(p.Level, l)
			sentences = append(sentences, fmt.Sprintf("Clients that bind to %s before they connect use %s of its ports: at 100%% their bind() fails.", src.Address, src.Used))
		}
	}
	sentences = append(sentences, p.judgeUDP()...)
	sentences = append(sentences, p.judgeNAT()...)
	if n := len(p.Failed); n > 0 {
		p.Level = max(p.Level, warning)
		sentences = append(sentences, fmt.Sprintf("%s that %s few ports now had failed connects within 15 minutes.", plural(n, "pool", "pools"), map[bool]string{true: "holds", false: "hold"}[n == 1]))
	}

	if inDanger > 0 {
		worst := p.Destinations[0]
		p.Headline = fmt.Sprintf("%s in danger: %s %s.", plural(inDanger, "destination", "destinations"), worst.Address, worst.problem())
	} else if len(sentences) > 0 {
		p.Headline, sentences = sentences[0], sentences[1:]
	} else if len(p.Destinations) > 0 {
		worst := p.Destinations[0]
		p.Headline = fmt.Sprintf("No destination is in danger: the worst, %s, has %s of its ports in use.", worst.Address, worst.Used)
	} else {
		p.Headline = "No destination is in danger: none holds enough ports to be listed."
	}
	p.Problems = append(p.Problems, sentences...)
}

package status

import (
	"cmp"
	"fmt"
	"slices"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/scan"
)

// A finding is a sentence about how things stand. Its alerts have chapters in the runbook.
type finding struct {
	Level    level
	Sentence string
	Alerts   []string

	Command, Undo string // what changes it, and what undoes that; may be empty
}

// aside returns a finding that is no problem.
func aside(sentence string, alerts ...string) finding {
	return finding{Sentence: sentence, Alerts: alerts}
}

// find adds a finding.
func (p *page) find(l level, alerts []string, format string, args ...any) {
	p.Findings = append(p.Findings, finding{Level: l, Sentence: fmt.Sprintf(format, args...), Alerts: alerts})
}

// Headline returns the worst finding.
func (p *page) Headline() finding { return p.Findings[0] }

// Problems returns the findings besides the headline.
func (p *page) Problems() []finding { return p.Findings[1:] }

// Level returns that of the worst finding.
func (p *page) Level() level { return p.Findings[0].Level }

// judge adds the findings, worst first. There is one at least. What could not be read is never calm.
func (p *page) judge(s *scan.Snapshot, c cleaner) {
	self := &s.Namespaces[0]
	p.judgeBound()
	if p.View.Destination.IsValid() {
		p.judgeView(self, c)
		p.judgeCapacity(s, c)
	} else {
		p.judgeDestinations()
		p.judgeCapacity(s, c)
		p.judgePossiblyBound(s, c)
		p.judgeSources()
		p.judgeUDP()
		p.judgeNAT(s, c)
		p.judgeConntrack()
		if self.Cilium.Lately {
			p.find(warning, []string{"EphemeralPortsConntrackInsertFailed"}, "Cilium gave no port to connections in the last 5 minutes: it dropped their packets.")
		}
		p.judgeTimeWait()
		p.judgeFailed(s.Trace)
		p.judgeFailedBinds(s.Trace)
		if len(p.Findings) == 0 && self.TCP.Err == nil {
			p.find(calm, nil, "%s", p.calmSentence())
		}
		p.judgeUDPFailures(s, c)
		p.judgeListeners(self)
		p.judgeUnread(s, c, unknown, "The counters of connection tracking", nil, func(n *scan.Namespace) error {
			if n.NAT.Err != nil {
				return nil
			}
			return n.Conntrack.Err
		})
		p.judgeUnread(s, c, warning, "The counters of TIME_WAIT", nil, func(n *scan.Namespace) error { return n.TimeWait.Err })
	}
	p.judgeUnread(s, c, unknown, "The flows of connection tracking", []string{"EphemeralPortsSNATCollectFailing"}, func(n *scan.Namespace) error { return n.NAT.Err })
	p.judgeUnread(s, c, unknown, "The source NAT of Cilium", []string{"EphemeralPortsSNATCollectFailing"}, func(n *scan.Namespace) error { return n.Cilium.Err })
	if f := s.Trace; f != nil && f.Err != nil {
		p.find(warning, nil, "Failed connects and closes could not be counted: %s", c.sentence(f.Err.Error()))
	}
	if n := count(s, scan.Failed, scan.Deadline); n > 0 {
		p.find(unknown, []string{"EphemeralPortsNamespacesUnread"}, "%s could not be read: nothing is known of the ports in there.", plural(n, "network namespace", "network namespaces"))
	}
	if n := count(s, scan.Skipped); n > 0 {
		p.find(unknown, nil, "The turn of %s comes in a later collection, see --namespaces.limit: nothing is known of the ports in there now.", plural(n, "network namespace", "network namespaces"))
	}
	if s.DiscoveryFailures > 0 {
		p.find(unknown, nil, "%s could not be searched for network namespaces: some may be missing. %s", plural(s.DiscoveryFailures, "place", "places"), c.sentence(s.DiscoveryErr.Error()))
	}
	slices.SortStableFunc(p.Findings, func(a, b finding) int { return cmp.Compare(b.Level, a.Level) })
	if self.TCP.Err != nil { // before all that is known of others
		p.Findings = slices.Insert(p.Findings, 0, finding{
			Level: unknown, Alerts: []string{"EphemeralPortsCollectFailing"},
			Sentence: "The ports of this host could not be read: nothing is known about them. " + c.sentence(self.TCP.Err.Error()),
		})
	}
}

// judgePossiblyBound finds the namespaces where a destination is in danger whose ports may be lost to all others too.
func (p *page) judgePossiblyBound(s *scan.Snapshot, c cleaner) {
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		r := &n.TCP.Report
		if n.TCP.Err == nil && r.BoundUnknown > 0 && advice.ReachedPossiblyBound(r).Level() >= unknown && r.MaxUtilization >= r.MaxPossibleUtilization {
			p.find(warning, nil, "Every other destination%s may lack %d of %d ports too: %s.", p.in(c.name(n.Name)), r.BoundPorts+r.BoundUnknown, r.CapacityPorts, advice.Doubt(r.BoundUnknown, 0, false))
		}
	}
}

// count returns how many other namespaces have one of these outcomes.
func count(s *scan.Snapshot, of ...scan.Outcome) (n int) {
	for i := range s.Namespaces[1:] {
		if slices.Contains(of, s.Namespaces[1+i].TCP.Outcome) {
			n++
		}
	}
	return n
}

// calmSentence says that no pool is in danger.
func (p *page) calmSentence() string {
	if len(p.Destinations) == 0 {
		return "No destination is in danger: none that was read holds a port."
	}
	worst := p.Destinations[0]
	return fmt.Sprintf("No destination is in danger: the worst, %s, has %s of its ports in use.", worst.Address, percent(worst.pool.Utilization))
}

// judgeView judges the destination of the view.
func (p *page) judgeView(self *scan.Namespace, c cleaner) {
	address := c.name(p.View.destination())
	if len(p.Destinations) > 0 {
		hint := slices.IndexFunc(p.Destinations, func(d *destination) bool { return d.reached.Has(advice.MayRise) })
		switch d := p.Destinations[0]; {
		case d.Level > calm:
			p.find(d.Level, d.reached.Alerts(), "%s %s%s.%s", d.Address, d.problem(), d.blame(), d.past.sentence())
		case hint >= 0:
			d = p.Destinations[hint]
			from := ""
			if len(p.Destinations) > 1 {
				from = "from " + d.Source + " "
			}
			p.find(calm, d.reached.Alerts(), "%s of the ports %sto %s are in use, many by open connections. One collection does not show whether these rise.", percent(d.pool.Utilization), from, d.Address)
		case len(p.Destinations) > 1:
			p.find(calm, nil, "No pool of %s is in danger: the worst, from %s to %s, has %s of its ports in use.", address, d.Source, d.Address, percent(d.pool.Utilization))
		default:
			p.find(calm, nil, "%s is not in danger: %s of its ports are in use.", address, percent(d.pool.Utilization))
		}
	}
	if len(p.NAT) > 0 && (p.NAT[0].Level > calm || len(p.Destinations) == 0) {
		p.find(p.NAT[0].Level, advice.ReachedSNAT(p.NAT[0].pool).Alerts(), "Source NAT: %s.", p.NAT[0].problem())
	}
	switch {
	case len(p.Destinations)+len(p.NAT) > 0:
	case len(p.Failed) > 0:
		p.find(warning, failing().Alerts(), "%s holds few ports now or none, but had %s that failed, the last within 15 minutes.", address, connects(p.Failed[0].pool.Failures))
	case self.TCP.Err == nil && advice.ReachedPossiblyBound(&self.TCP.Report).Level() > calm:
		r, bound := &self.TCP.Report, advice.ReachedPossiblyBound(&self.TCP.Report)
		p.find(bound.Level(), bound.Alerts(), "%s holds few ports now or none, but all destinations lack the ports that clients bind: %d of %d, and up to %d more; --exact tells how many.",
			address, r.BoundPorts, r.CapacityPorts, r.BoundUnknown)
	case self.TCP.Err == nil:
		p.find(calm, nil, "%s is not among the destinations here: it holds few ports now, or none.", address)
	}
}

// judgeCapacity finds the namespaces where no port is left, or where limits leave out a destination in danger. In a view, they
// may leave out its destination.
func (p *page) judgeCapacity(s *scan.Snapshot, c cleaner) {
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		r := &n.TCP.Report
		if n.TCP.Outcome != scan.Collected || p.elsewhere(s, n) {
			continue
		}
		where := p.in(c.name(n.Name))
		unreported := advice.ReachedUnreported(r)
		switch {
		case r.CapacityPorts == 0:
			p.find(exhausted, unreported.Alerts(), "No port is left for outgoing connections%s: connect() fails unless its client has bound a port. Each port of the range is reserved or has a listener.", where)
		case p.View.Destination.IsValid() && unreported.Has(advice.Utilization):
			p.find(unknown, unreported.Alerts(), "A destination%s that limits leave out has %s of its ports in use, and may be this one: lower --destination.min-ports to see it.", where, percent(r.MaxUtilization))
		case p.View.Destination.IsValid(): // of those that are listed, it is known what they possibly have
		case unreported.Has(advice.Possible):
			p.find(unreported.Level(), unreported.Alerts(), "The worst destination%s has %s or %s of its ports in use: %s.", where, percent(r.MaxUtilization), percent(r.MaxPossibleUtilization), advice.Doubt(r.BoundUnknown, 0, false))
		case unreported.Level() > calm:
			p.find(unreported.Level(), unreported.Alerts(), "A destination%s without series has %s of its ports in use: lower --destination.min-ports to have alerts name it.", where, percent(r.MaxUtilization))
		}
	}
}

// judgeUnread says of which namespaces something could not be read: those where errorOf returns an error. What is not known may
// be as bad as the level.
func (p *page) judgeUnread(s *scan.Snapshot, c cleaner, l level, what string, alerts []string, errorOf func(*scan.Namespace) error) {
	others := 0
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		switch err := errorOf(n); {
		case err == nil:
		case n.Name == scan.Self:
			p.find(l, alerts, "%s could not be read: %s", what, c.sentence(err.Error()))
		default:
			others++
		}
	}
	if others > 0 {
		p.find(l, alerts, "%s could not be read in %s.", what, plural(others, "network namespace", "network namespaces"))
	}
}

// in writes where a namespace is named, if others than our own are watched.
func (p *page) in(netns string) string {
	if !p.Others {
		return ""
	}
	return " in " + netns
}

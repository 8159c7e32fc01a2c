package status

import (
	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/scan"
)

// judgeListeners says which services of this host may not start again, because a connection can have their port, and which
// connections may hang, because they can have the port of a service of Kubernetes.
func (p *page) judgeListeners(self *scan.Namespace) {
	if self.TCP.Err != nil {
		return
	}
	if c, ok := advice.ReserveListeners(&self.TCP.Report); ok {
		p.findReserve(calm, c, "While such a service is down, a connection can take its port, and it cannot start. Reserve them, see the runbook.")
	}
	if c, ok := advice.ReserveNodePorts(&self.TCP.Report); ok {
		p.findReserve(warning, c, "A connection that gets the port of a service can hang, because a rule leads the answers to it elsewhere. Reserve them, see the runbook.")
	}
}

// findReserve adds a finding with the command of a cure.
func (p *page) findReserve(l level, c advice.Cure, why string) {
	p.find(l, nil, "%s %s If: %s", c.Sentence, why, c.Condition)
	f := &p.Findings[len(p.Findings)-1]
	f.Command, f.Undo = c.Command, c.Undo
}

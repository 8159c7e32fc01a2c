package status

import (
	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/scan"
)

// judgeListeners says which services of this host may not start again, because a connection can have their port.
func (p *page) judgeListeners(self *scan.Namespace) {
	if self.TCP.Err != nil {
		return
	}
	c, ok := advice.ReserveListeners(&self.TCP.Report)
	if !ok {
		return
	}
	p.find(calm, nil, "%s While such a service is down, a connection can take its port, and it cannot start. Reserve them, see the runbook. If: %s", c.Sentence, c.Condition)
	f := &p.Findings[len(p.Findings)-1]
	f.Command, f.Undo = c.Command, c.Undo
}

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
	how := " Reserve them, see the runbook."
	if c.Command != "" {
		how = " Reserve them: " + c.Command
	}
	p.find(calm, nil, "%s While such a service is down, a connection can take its port, and it cannot start.%s", c.Sentence, how)
}

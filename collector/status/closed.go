package status

import "ephemeral_port_exporter/collector/scan"

type documentClosed struct {
	documentParty
	documentPool
	Closes uint64 `json:"closes"`
	Recent uint64 `json:"recent_closes"`
}

func newDocumentClosed(c *scan.ClosedPool) documentClosed {
	return documentClosed{newDocumentParty(c.Netns, &c.Cgroup, c.Last), newDocumentPool(c.Source, c.Destination), c.Closes, c.Recent}
}

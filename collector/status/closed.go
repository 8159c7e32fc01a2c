package status

import (
	"net/netip"

	"ephemeral_port_exporter/collector/scan"
)

// showsClosed reports whether the view has a pool with closes, whose addresses have no zone.
func (v View) showsClosed(of *scan.ClosedPool) bool {
	v.Destination = netip.AddrPortFrom(v.Destination.Addr().WithZone(""), v.Destination.Port())
	return v.has(of.Destination)
}

type documentClosed struct {
	Netns       string `json:"netns,omitempty"`
	Cgroup      string `json:"cgroup"`
	PodUID      string `json:"pod_uid,omitempty"`
	Pod         string `json:"pod,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
	Source      string `json:"source_ip"`
	Destination string `json:"destination_ip"`
	Port        uint16 `json:"destination_port"`
	Closes      uint64 `json:"closes"`
	Recent      uint64 `json:"recent_closes"`
	Command     string `json:"command,omitempty"`
	PID         int    `json:"pid,omitempty"`
}

func newDocumentClosed(c *scan.ClosedPool) documentClosed {
	return documentClosed{
		c.Netns, c.Cgroup.Path, c.Cgroup.PodUID, c.Cgroup.Pod, c.Cgroup.ContainerID, c.Source.String(), c.Destination.Addr().String(), c.Destination.Port(),
		c.Closes, c.Recent, c.Last.Command, c.Last.PID,
	}
}

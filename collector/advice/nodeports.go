package advice

import (
	"fmt"
	"slices"
	"strings"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/pool"
)

// kubeletPort is where kubelet listens, unless its configuration names another port.
const kubeletPort = 10250

// defaultNodePorts are those of --service-node-port-range of the API server.
var defaultNodePorts = []pool.PortRange{{Low: 30000, High: 32767}}

// nodePorts returns the node ports of Kubernetes. No program needs to listen on them, and connections that have one of them
// can hang: rules lead their packets elsewhere.
func nodePorts(s pool.Settings) []pool.PortRange {
	if len(s.NodePorts) > 0 {
		return s.NodePorts
	}
	return defaultNodePorts
}

// ReserveNodePorts returns how to keep the node ports of Kubernetes that lie in the range and are not reserved, where a
// kubelet listens: a connection that gets the port of a service can hang. It returns false if there are none. The Command is
// empty if the kernel would not read all ports.
func ReserveNodePorts(r *pool.Report) (c Cure, ok bool) {
	if !slices.Contains(r.ListenerPorts, kubeletPort) {
		return Cure{}, false
	}
	var reserved, further portset.Map
	reserved.AddRanges(r.Settings.ReservedPorts)
	var names []string
	for _, of := range nodePorts(r.Settings) {
		names = append(names, fmt.Sprintf("%d-%d", of.Low, of.High))
		for port := int(of.Low); port <= int(of.High); port++ {
			if p := uint16(port); r.Settings.PortRange.Contains(p) && !reserved.Has(p) {
				further.Add(p)
			}
		}
	}
	if further.Size() == 0 {
		return Cure{}, false
	}
	c = Cure{
		Title:     "Reserve the node ports",
		Sentence:  fmt.Sprintf("A kubelet listens here, and %d of the node ports %s of Kubernetes are in the range and not reserved.", further.Size(), strings.Join(names, ", ")),
		N:         further.Size(),
		Condition: "The node ports of the cluster are those of --node-ports.",
	}
	if more, ok := reserve(r.Settings, &further); ok {
		c.Command, c.Undo = commands(more)
	}
	return c, true
}

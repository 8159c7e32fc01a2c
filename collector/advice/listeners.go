package advice

import (
	"strconv"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/pool"
)

// ReserveListeners returns how to keep the ports of listeners that lie in the range and are not reserved: while such a
// service is down, an outgoing connection can take its port, and it cannot start again. It returns false if there are
// none. The Command is empty if the kernel would not read all ports, or if they are so many that most are of programs that
// let the kernel choose: reserved, they are lost for good.
func ReserveListeners(r *pool.Report) (c Cure, ok bool) {
	var reserved, further portset.Map
	reserved.AddRanges(r.Settings.ReservedPorts)
	var ports []string
	for _, port := range r.ListenerPorts {
		if r.Settings.PortRange.Contains(port) && !reserved.Has(port) {
			ports = append(ports, strconv.Itoa(int(port)))
			further.Add(port)
		}
	}
	if len(ports) == 0 {
		return Cure{}, false
	}
	c = Cure{
		Title:    "Reserve the ports of listeners",
		Sentence: "In the range, these ports have listeners and are not reserved: " + someOf(ports) + ".", N: len(ports),
		Condition: "The services listen on the same ports each time.",
	}
	if more, ok := reserve(r.Settings, &further); ok && len(ports) <= maxServers {
		c.Command, c.Undo = commands(more)
	}
	return c, true
}

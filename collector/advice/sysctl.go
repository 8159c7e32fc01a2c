package advice

import (
	"fmt"
	"strconv"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/pool"
)

// A widening makes the range as wide as it can be.
type widening struct {
	ports   pool.PortRange
	usable  portset.Map // those of ports that are not reserved, or will not be
	first   []string    // ports that must be reserved first, because something listens on them
	command string
}

// newWidening returns how to widen the range where something listens on these ports. It returns false if there is
// no command.
func newWidening(s pool.Settings, listening []uint16) (w widening, ok bool) {
	w.ports = pool.PortRange{Low: min(s.PortRange.Low, 1024), High: 65535}
	w.usable.AddUnreserved(w.ports, s.ReservedPorts)
	var reserved portset.Map
	reserved.AddRanges(s.ReservedPorts)
	for _, port := range listening {
		if w.usable.Has(port) && !s.PortRange.Contains(port) {
			w.first = append(w.first, strconv.Itoa(int(port)))
			reserved.Add(port)
			w.usable.Remove(port)
		}
	}
	w.command, ok = "sysctl -w", true
	if len(w.first) > 0 {
		w.command, ok = reserveCommand(&reserved)
	}
	w.command += fmt.Sprintf(` net.ipv4.ip_local_port_range="%d %d"`, w.ports.Low, w.ports.High)
	return w, ok
}

// giveBack returns how many ports of the range are reserved and not in use, and the command that gives them back. If
// there is no command, these are none.
func giveBack(s pool.Settings, inUse func(port uint16) bool) (ports int, command string) {
	var kept portset.Map
	kept.AddRanges(s.ReservedPorts)
	for port := int(s.PortRange.Low); port <= int(s.PortRange.High); port++ {
		if p := uint16(port); kept.Has(p) && !inUse(p) {
			kept.Remove(p)
			ports++
		}
	}
	command, ok := reserveCommand(&kept)
	if !ok {
		return 0, ""
	}
	return ports, command
}

// reserveCommand returns a command that reserves these ports only. It returns false if the kernel
// would not read all: proc_do_large_bitmap of kernel/sysctl.c reads less than a page.
func reserveCommand(ports *portset.Map) (command string, ok bool) {
	list := ports.String()
	return "sysctl -w net.ipv4.ip_local_reserved_ports=" + list, len(list) < 4096
}

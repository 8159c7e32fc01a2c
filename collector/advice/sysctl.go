package advice

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/pool"
)

// A change is that of a sysctl. The line of commands has the value of the moment in $r if it is to add to that.
type change struct {
	name, before, then string // for a shell
	adds               bool
}

// commands returns a line for a shell that makes all changes or none, and one that undoes them. One sysctl -w with several
// names would go on after an error. Only the first change may add.
func commands(changes ...change) (command, undo string) {
	undo, back := "sysctl -w", "sysctl -w"
	for i, c := range slices.Backward(changes) {
		undo += " " + c.name + "=" + c.before
		switch {
		case i == len(changes)-1:
		case c.adds:
			back += " " + c.name + `="$r"`
		default:
			back += " " + c.name + "=" + c.before
		}
	}
	for i, c := range changes {
		if i > 0 {
			command += " && "
		}
		command += "sysctl -w " + c.name + "=" + c.then
	}
	if len(changes) > 1 {
		command += " || { " + back + "; false; }"
	}
	if changes[0].adds {
		if len(changes) > 1 {
			command = "{ " + command + "; }"
		}
		command = "r=$(sysctl -n " + changes[0].name + ") && " + command // an empty $r would be a loss
	}
	return command, undo
}

const reservedPorts = "net.ipv4.ip_local_reserved_ports"

// longestList is the length from which on the kernel does not read all of a list of ports: proc_do_large_bitmap of
// kernel/sysctl.c reads less than a page.
const longestList = 4096

// reserve returns the change that reserves further ports. It keeps those that are reserved when it is made: another cure
// may have been applied meanwhile. It returns false if the kernel would not read all.
func reserve(s pool.Settings, further *portset.Map) (c change, ok bool) {
	var before portset.Map
	before.AddRanges(s.ReservedPorts)
	c = change{name: reservedPorts, before: before.String(), then: fmt.Sprintf(`"%v,$r"`, further), adds: true}
	return c, len(c.then)+len(c.before) < longestList
}

// servers are the ports that programs wait on.
type servers struct {
	tcp, udp []uint16
	known    bool // of both protocols
}

// maxServers is how many listeners, or UDP sockets without a peer, on ports of the range are taken for servers with a port
// of their own. If there are more, the kernel has chosen the ports of most.
const maxServers = 32

// among returns those that are to be reserved if the range becomes all of these ports. s has the range of now, of which
// nobody can tell UDP servers and clients without a peer apart.
func (v servers) among(ports pool.PortRange, s pool.Settings) (reserve portset.Map) {
	var clients portset.Map
	for _, port := range v.udp {
		if s.PortRange.Contains(port) {
			clients.Add(port)
		} else if ports.Contains(port) {
			reserve.Add(port)
		}
	}
	if clients.Size() <= maxServers {
		for port := range clients.All() {
			reserve.Add(port)
		}
	}
	for _, port := range v.tcp {
		if ports.Contains(port) {
			reserve.Add(port)
		}
	}
	return reserve
}

// A widening makes the range as wide as it can be.
type widening struct {
	ports         pool.PortRange
	usable        portset.Map // those of ports that are not reserved, or will not be
	first         []string    // ports that must be reserved first, because programs wait on them
	nodePorts     bool        // node ports stay out
	command, undo string      // no command if not all of them are known
}

// newWidening returns how to widen the range. It returns false if the list of ports to reserve is too long.
func newWidening(s pool.Settings, v servers) (w widening, ok bool) {
	w.ports = pool.PortRange{Low: min(s.PortRange.Low, max(s.UnprivilegedPort, 1024)), High: 65535}
	w.usable.AddUnreserved(w.ports, s.ReservedPorts)
	var further portset.Map
	waiting := v.among(w.ports, s)
	for port := range waiting.All() {
		if w.usable.Has(port) {
			w.first = append(w.first, strconv.Itoa(int(port)))
			further.Add(port)
		}
	}
	for _, of := range nodePorts(s) {
		for port := int(of.Low); port <= int(of.High); port++ {
			if p := uint16(port); w.ports.Contains(p) && !s.PortRange.Contains(p) {
				w.nodePorts = true
				if w.usable.Has(p) {
					further.Add(p)
				}
			}
		}
	}
	for port := range further.All() {
		w.usable.Remove(port)
	}
	changes := []change{{name: "net.ipv4.ip_local_port_range", before: quoted(s.PortRange), then: quoted(w.ports)}}
	if further.Size() > 0 {
		c, ok := reserve(s, &further)
		if !ok {
			return w, false
		}
		changes = []change{c, changes[0]}
	}
	if v.known {
		w.command, w.undo = commands(changes...)
	}
	return w, true
}

// quoted writes a range for a shell.
func quoted(r pool.PortRange) string { return fmt.Sprintf(`"%d %d"`, r.Low, r.High) }

// sentence says which ports come in addition to what it says, and which stay out.
func (w *widening) sentence(of string) string {
	of = fmt.Sprintf("%s %d-%d.", of, w.ports.Low, w.ports.High)
	if len(w.first) > 0 {
		of += " Programs wait on these, so reserve them first: " + someOf(w.first) + "."
	}
	if w.nodePorts {
		of += " The node ports of Kubernetes stay out."
	}
	return of
}

// condition says what must hold.
func (w *widening) condition() string {
	if w.command == "" {
		return "Reserve the ports of all servers in there first, over TCP and UDP: not all could be read. ss -Htuln lists those that run."
	}
	return "Reserve all ports in there that programs may listen on later, and those that rules of NAT or IPVS lead elsewhere."
}

// giveBack returns the cure for ports of the range that are reserved and that no socket has. It has no ports where
// there is a sign of rules that lead the packets for them elsewhere. The command changes nothing: rules can be there
// without a sign.
func giveBack(s pool.Settings, inUse func(port uint16) bool) (c Cure) {
	if s.MayRedirect {
		return Cure{}
	}
	var reserved portset.Map
	reserved.AddRanges(s.ReservedPorts)
	for port := int(s.PortRange.Low); port <= int(s.PortRange.High); port++ {
		if p := uint16(port); reserved.Has(p) && !inUse(p) {
			c.N++
		}
	}
	c.Title = "Give back reserved ports"
	c.Sentence = fmt.Sprintf("%d ports of the range are reserved, and no program waits on them. Find out who reserved them, and why.", c.N)
	c.Condition = "No program needs them, also none that is down, and no rule leads their packets elsewhere, like those of node ports: else connections hang."
	c.Command = "grep -rs " + strings.TrimPrefix(reservedPorts, "net.ipv4.") + " /etc/sysctl.conf /etc/sysctl.d /run/sysctl.d /usr/lib/sysctl.d"
	if before := reserved.String(); len(before) < longestList {
		_, c.Undo = commands(change{name: reservedPorts, before: before})
	}
	return c
}

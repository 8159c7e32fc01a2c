package snat

import "ephemeral_port_exporter/collector/internal/portset"

// Cilium is how Cilium's datapath chooses a port: that of the client if it is in Ports and free, else a search. A search begins
// at a random port. The port of each further try follows from the one before (snat_v4_new_mapping and
// __snat_clamp_port_range of bpf/lib/nat.h). If all that it tries are taken, the packet is dropped, with "No mapping for NAT
// masquerade", although other ports may be free.
type Cilium struct {
	Ports portset.Range // from one above those of the node's services to 65535
	Tries int           // for one connection, that at the client's own port included: SNAT_COLLISION_RETRIES

	// Old says that this is a version before 1.18. These do not tell which one they are: up to 1.16, a try follows the one before at
	// a fixed distance.
	Old bool
}

// searchFailure returns the share of searches that find no port, of old versions the greater one of the two that it can be.
func (c Cilium) searchFailure(taken *portset.Map) float64 {
	failure := c.failureOf(taken, c.scaled, c.scaledStarts)
	if c.Old {
		failure = max(failure, c.failureOf(taken, c.stepped, c.steppedStarts))
	}
	return failure
}

// failureOf is searchFailure with one rule: next returns the port that stands for a number, and starts how many of the 65536 numbers stand
// for a port.
func (c Cilium) failureOf(taken *portset.Map, next func(uint16) uint16, starts func(uint16) int) float64 {
	failures := 0
	for port := range taken.In(c.Ports) {
		last := port
		for tries := c.Tries - 1; tries > 1 && taken.Has(last); tries-- { // the first try was at the client's port
			last = next(last + 1)
		}
		if taken.Has(last) {
			failures += starts(port)
		}
	}
	return float64(failures) / portset.MaxPorts
}

// scaled is __snat_clamp_port_range since Cilium 1.17: all numbers are spread over the range.
func (c Cilium) scaled(n uint16) uint16 {
	return c.Ports.Low + uint16(uint32(n)*uint32(c.Ports.Size())>>16)
}

func (c Cilium) scaledStarts(port uint16) int {
	size := c.Ports.Size()
	first := func(place int) int { return (place*portset.MaxPorts + size - 1) / size }
	place := int(port - c.Ports.Low)
	return first(place+1) - first(place)
}

// stepped is __snat_clamp_port_range up to Cilium 1.16. It never returns the last port, unless that is the only one: Cilium would divide by
// zero, and has no range like that.
func (c Cilium) stepped(n uint16) uint16 {
	return n%uint16(c.steps()) + c.Ports.Low
}

func (c Cilium) steppedStarts(port uint16) int {
	size, place := c.steps(), int(port-c.Ports.Low)
	if place == size {
		return 0
	}
	return (portset.MaxPorts - place + size - 1) / size
}

// steps returns how many ports stepped can return.
func (c Cilium) steps() int { return max(c.Ports.Size()-1, 1) }

// ciliumPorts are what the flows of Cilium tell of its range.
type ciliumPorts struct {
	lowest uint16 // port of a flow; 0 if there are none
	random int    // flows whose port is not that of the client: the datapath began to search for it at random
}

func (p *ciliumPorts) add(port, client uint16) {
	if p.lowest == 0 || port < p.lowest {
		p.lowest = port
	}
	if port != client {
		p.random++
	}
}

// contradicts reports whether the range of the datapath must begin higher: none of many random ports lies in the lowest eighth. By chance,
// that happens once in 10^11 times.
func (p *ciliumPorts) contradicts(c Cilium) bool {
	const many = 200
	return p.random >= many && int(p.lowest) >= int(c.Ports.Low)+c.Ports.Size()/8
}

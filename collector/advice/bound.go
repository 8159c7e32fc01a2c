package advice

import (
	"fmt"
	"math"
	"slices"

	"ephemeral_port_exporter/collector/pool"
)

// Bound returns advice about the ports of a namespace that are bound, so that no plain connect() gets them. It returns
// nil if these are few, see ReachedBound. Outlook.Ports is how many ports a plain connect() can choose from, and there
// is no ceiling.
func Bound(r *pool.Report) *Advice {
	reached := ReachedBound(r)
	if reached.Level() == Calm {
		return nil
	}
	// With this Hold, all ceilings are 0.
	p := &tcpPool{report: r, destination: &pool.Destination{Hold: math.Inf(1)}, now: Outlook{Ports: r.CapacityPorts - r.BoundPorts}}
	cures := []Cure{p.letKernelChoose(r.BoundPorts)}
	if reached.Level() == Exhausted {
		cures = append(cures, p.bindElsewhere())
	}
	cures = append(cures, p.widen(), p.moveListeners())
	return &Advice{
		Diagnosis: fmt.Sprintf("Sockets got %d of the %d ports by bind(). No plain connect() of this network namespace can choose these, whatever its address and its destination.", r.BoundPorts, r.CapacityPorts),
		Cures:     helpful(p.giveBackReserved(), cures...),
	}
}

// bindElsewhere has the clients that find no port bind too. bind() asks only whether the port is free on its address.
// As the port is lost to others then, this is for a namespace in which no plain connect() finds one anyway.
func (p *tcpPool) bindElsewhere() Cure {
	return Cure{
		Title:    "Bind on another address",
		Sentence: fmt.Sprintf("A client that fails now can call bind(address, 0) before it connects. On an address that others have not bound to, it gets one of %d ports at once.", p.report.CapacityPorts), N: p.report.CapacityPorts,
		Now: p.now, Then: Outlook{Ports: p.report.CapacityPorts},
		Condition: "The client can use an address that others have not bound to." + p.takenAddresses(),
	}
}

// takenAddresses says how many ports bind() finds on the addresses of those that bind.
func (p *tcpPool) takenAddresses() string {
	var taken []string
	for _, s := range BoundSources(p.report) {
		taken = append(taken, fmt.Sprintf("%d on %s", max(s.Capacity-s.Ports, 0), s.Address))
	}
	if len(taken) == 0 {
		return ""
	}
	return " On the addresses of these, bind() finds fewer: " + someOf(taken) + "."
}

// BoundSources returns the sources with bound ports, those with most first.
func BoundSources(r *pool.Report) []pool.Source {
	sources := slices.DeleteFunc(slices.Clone(r.Sources), func(s pool.Source) bool { return s.Bound == 0 })
	slices.SortStableFunc(sources, func(a, b pool.Source) int { return b.Bound - a.Bound })
	return sources
}

package advice

import (
	"fmt"
	"math"

	"ephemeral_port_exporter/collector/pool"
)

// BindFirst returns advice about a source whose clients bind before they connect, for all destinations together.
// It returns nil if the source is calm, see ReachedSource. Outlook.Ports is how many more of these clients get a
// port, and there is no ceiling.
func BindFirst(r *pool.Report, s *pool.Source) *Advice {
	if ReachedSource(r, s).Level() == Calm {
		return nil
	}
	// With this Hold, all ceilings are 0.
	p := &tcpPool{report: r, destination: &pool.Destination{Hold: math.Inf(1)}, now: Outlook{Ports: s.Capacity - s.Ports}}
	a := &Advice{
		Diagnosis: fmt.Sprintf("Clients bind before they connect, so they share one pool for all destinations. Of its %d ports, %d are in use, %d of these by bind().", s.Capacity, s.Ports, s.Bound),
		Cures:     helpful(p.giveBackReserved(), p.letKernelChoose(s.Bound), p.widen(), p.moreBound(s)),
	}
	if r.Settings.AutobindReuse {
		a.Diagnosis += " With ip_autobind_reuse=1, bind() goes on when all are in use, if it has SO_REUSEADDR and all sockets of a port have it. Else it fails."
	}
	return a
}

// letKernelChoose gives clients that bound so many ports a pool for each destination.
func (p *tcpPool) letKernelChoose(bound int) Cure {
	return Cure{
		Title:    "Connect without binding a port",
		Sentence: fmt.Sprintf("Clients bound %d ports before they connected. Let them set IP_BIND_ADDRESS_NO_PORT, or not bind: then each destination has all ports.", bound), N: bound,
		Now: p.now, Then: Outlook{Ports: p.report.CapacityPorts},
	}
}

// moreBound adds sources, so many that less than half of all ports are in use.
func (p *tcpPool) moreBound(s *pool.Source) Cure {
	if s.Capacity == 0 {
		return Cure{}
	}
	n := max(2*s.Ports/s.Capacity, 1)
	return Cure{
		Title:    "More source addresses",
		Sentence: fmt.Sprintf("With at least %d more, less than half of the ports are in use.", n), N: n,
		Now: p.now, Then: Outlook{Ports: p.now.Ports + n*s.Capacity},
		Condition: bindAlike,
	}
}

const bindAlike = "Clients bind to all addresses alike."

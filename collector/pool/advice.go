package pool

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// From these on, a destination is in danger. Up to half of the ports, connect() finds a free one at
// once.
const (
	dangerUtilization = 0.5
	dangerLoad        = 0.8 // CloseRate / Ceiling
	dangerExhaustion  = 600 // seconds, below which
)

// InDanger reports whether the ports of a destination run out, or may soon.
func (d *Destination) InDanger() bool {
	return d.Utilization >= dangerUtilization || d.CloseRate > 0 && d.CloseRate >= dangerLoad*d.Ceiling || d.Exhaustion < dangerExhaustion
}

// Advice says what is wrong with a destination and what to change.
type Advice struct {
	Diagnosis string
	Holders   []Holder // most ports first
	Cures     []Cure   // best first; only those that help
}

// A Holder makes ports unavailable to a destination.
type Holder struct {
	Name  string // of a State, or BoundByOthers
	Ports int    // without those that connect() may take over
}

// BoundByOthers is the name of the Holder of Destination.BoundByOthers.
const BoundByOthers = "bound_by_others"

// Advise returns advice about a destination of the report. failing says that connects to it fail
// because no port is free. It returns nil if the destination is not failing and not in danger.
func (r *Report) Advise(d *Destination, failing bool) *Advice {
	if !failing && !d.InDanger() {
		return nil
	}
	c := newPatient(r, d)
	return &Advice{Diagnosis: c.diagnosis(), Holders: c.holders(), Cures: c.cures()}
}

// A patient is a destination that needs advice.
type patient struct {
	report      *Report
	destination *Destination
	now         Outlook

	used   int // ports that are unavailable
	closed int // ports that closed connections hold, now or soon at this rate
}

// newPatient returns a patient.
func newPatient(r *Report, d *Destination) *patient {
	p := &patient{report: r, destination: d}
	p.now = outlook(r.CapacityPorts-d.BoundByOthers, d.Open, d.Hold)
	p.used = d.Held - d.Reusable + d.BoundByOthers
	p.closed = max(d.Held-d.Reusable-d.Open, int(d.CloseRate*d.Hold))
	return p
}

// demand returns how many ports are unavailable, or will be at this rate.
func (p *patient) demand() int {
	return max(p.used, p.destination.Open+p.closed+p.destination.BoundByOthers)
}

// bindFirst reports whether most connections are of clients that bind before they connect.
func (p *patient) bindFirst() bool {
	return 2*(p.report.BoundPorts-p.destination.BoundByOthers) > p.destination.Held
}

// in returns how many ports the sockets in a state make unavailable.
func (p *patient) in(state State) int {
	n := p.destination.Ports[slices.Index(States[:], state)]
	if state == TimeWait {
		n -= p.destination.Reusable
	}
	return n
}

// holders returns what makes ports unavailable.
func (p *patient) holders() []Holder {
	var all []Holder
	for _, state := range States {
		all = append(all, Holder{state.String(), p.in(state)})
	}
	all = append(all, Holder{BoundByOthers, p.destination.BoundByOthers})
	all = slices.DeleteFunc(all, func(h Holder) bool { return h.Ports <= 0 })
	slices.SortStableFunc(all, func(a, b Holder) int { return cmp.Compare(b.Ports, a.Ports) })
	return all
}

// diagnosis says what holds most ports, or will.
func (p *patient) diagnosis() string {
	d := p.destination
	if p.report.CapacityPorts == 0 {
		return "No port of the range is left: each one is reserved or has a listener."
	}
	var text string
	switch holders := p.holders(); {
	case d.CloseRate >= dangerLoad*d.Ceiling && 2*p.closed > p.demand():
		text = fmt.Sprintf("This host closes %s connections per second first. The ports suffice for %s.", perSecond(d.CloseRate), perSecond(d.Ceiling))
	case len(holders) == 0:
		text = "No port is in use now."
	default:
		text = fmt.Sprintf("%s. These are %d of the %d ports in use, of %d.", meaning(holders[0].Name), holders[0].Ports, p.used, p.report.CapacityPorts)
	}
	if !d.InDanger() {
		text += " Connects failed although ports are free: there were none before, or the clients have a smaller range of their own (IP_LOCAL_PORT_RANGE), or others bind ports."
	}
	return text
}

// meaning says what it means that a Holder has most ports.
func meaning(holder string) string {
	switch state := strings.ToUpper(holder); holder {
	case Established.String():
		return "Open connections hold most ports: look for a connection pool without a limit, and for requests that hang"
	case TimeWait.String():
		return "Connections that this host closed first hold most ports, in TIME_WAIT"
	case FinWait1.String(), FinWait2.String(), Closing.String():
		return "Connections that this host closed first hold most ports, in " + state + ": the destination has not closed them"
	case CloseWait.String():
		return "Connections that the destination closed hold most ports, in CLOSE_WAIT: an application on this host has not closed them"
	case SynSent.String():
		return "Attempts to connect hold most ports, in SYN_SENT: the destination does not answer"
	case BoundByOthers:
		return "Other sockets hold most ports: their clients bind before they connect"
	default:
		return "Connections in " + state + " hold most ports"
	}
}

// perSecond writes a rate.
func perSecond(rate float64) string {
	if rate < 10 {
		return fmt.Sprintf("%.1f", rate)
	}
	return fmt.Sprintf("%.0f", rate)
}

package advice

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
)

// TCP returns advice about a destination of the report. failing says that connects to it fail
// because no port is free. It returns nil if the destination has reached nothing, see ReachedTCP.
func TCP(r *pool.Report, d *pool.Destination, failing bool) *Advice {
	reached := ReachedTCP(r, d, failing)
	if len(reached) == 0 {
		return nil
	}
	p := newTCPPool(r, d, reached)
	return &Advice{Diagnosis: p.diagnosis(), Cures: p.cures()}
}

// A tcpPool is a destination that needs advice.
type tcpPool struct {
	report      *pool.Report
	destination *pool.Destination
	reached     Reached
	now         Outlook

	used   int // ports that are unavailable
	closed int // ports that closed connections hold, now or soon at this rate
}

// newTCPPool returns a tcpPool.
func newTCPPool(r *pool.Report, d *pool.Destination, reached Reached) *tcpPool {
	p := &tcpPool{report: r, destination: d, reached: reached}
	p.now = outlook(r.CapacityPorts-d.BoundByOthers, d.Open, d.Hold)
	p.used = d.Held - d.Reusable + d.BoundByOthers
	p.closed = max(d.Held-d.Reusable-d.Open, int(d.CloseRate*d.Hold))
	return p
}

// demand returns how many ports are unavailable, or will be at this rate.
func (p *tcpPool) demand() int {
	return max(p.used, p.destination.Open+p.closed+p.destination.BoundByOthers)
}

// bindFirst reports whether most connections are of clients that bind before they connect.
func (p *tcpPool) bindFirst() bool {
	return 2*(p.report.BoundPorts-p.destination.BoundByOthers) > p.destination.Held
}

// in returns how many ports the sockets in a state make unavailable.
func (p *tcpPool) in(state tcpstate.State) int {
	n := portsIn(p.destination, state)
	if state == tcpstate.TimeWait {
		n -= p.destination.Reusable
	}
	return n
}

// A holder makes ports unavailable.
type holder struct {
	name  string // of a pool.State, or boundByOthers
	ports int    // without those that connect() may take over
}

// boundByOthers is the name of the holder of Destination.BoundByOthers.
const boundByOthers = "bound_by_others"

// holders returns what makes ports unavailable, most ports first.
func (p *tcpPool) holders() []holder {
	var all []holder
	for _, state := range pool.States {
		all = append(all, holder{state.String(), p.in(state)})
	}
	all = append(all, holder{boundByOthers, p.destination.BoundByOthers})
	all = slices.DeleteFunc(all, func(h holder) bool { return h.ports <= 0 })
	slices.SortStableFunc(all, func(a, b holder) int { return cmp.Compare(b.ports, a.ports) })
	return all
}

// diagnosis says what holds most ports, or will.
func (p *tcpPool) diagnosis() string {
	d := p.destination
	if p.report.CapacityPorts == 0 {
		return "No port of the range is left: each one is reserved or has a listener."
	}
	var text string
	holders := p.holders()
	switch {
	case len(p.reached) == 1 && p.reached.Has(Possible): // what holds the few ports in use is no problem
		text = fmt.Sprintf("%d of the %d ports are in use for certain.", p.used, p.report.CapacityPorts)
	case p.reached.Has(Load) && 2*p.closed > p.demand():
		text = fmt.Sprintf("This host is the first to close %s connections per second; its ports suffice for %s.", perSecond(d.CloseRate), perSecond(d.Ceiling))
	case len(holders) == 0:
		text = "No port is in use now."
	default:
		text = fmt.Sprintf("%s. They hold %d of the %d ports in use; the pool has %d.", meaning(holders[0].name), holders[0].ports, p.used, p.report.CapacityPorts)
	}
	if d := p.destination; mainShare*d.HalfClosed >= p.demand() && d.HalfClosed > 0 {
		text += fmt.Sprintf(" %d are half-closed, and a process on this host still holds them: it has shut down its direction, and waits for the destination to close the other.", d.HalfClosed)
	}
	for _, leak := range leaks {
		if p.reached.Has(leak.of...) && holders[0].name != leak.state.String() {
			text += fmt.Sprintf(" %d are in %s: %s.", p.in(leak.state), strings.ToUpper(leak.state.String()), leak.meaning)
		}
	}
	if p.reached.Has(Possible) {
		text += fmt.Sprintf(" %d more may be unavailable: %s.", d.MayBeBound+d.MayBeHeld, Doubt(d.MayBeBound, d.MayBeHeld, d.TimestampsShare > 0))
	}
	if p.reached.Has(Failures) && !p.reached.Has(Utilization, Load, Exhaustion, MayExhaust) {
		text += " Connects failed although ports are free: there were none before, or the clients have a slice of the range (IP_LOCAL_PORT_RANGE) or a list of ports of their own, or others bind ports."
	}
	if p.reached.Has(InSynSent, MostSynSent) && !p.reached.Has(Utilization, Possible, Load, Exhaustion, MayExhaust, Failures) {
		text += fmt.Sprintf(" Ports here are not the limit: %d are free. A firewall or a NAT gateway on the way that is full looks like this, too.", p.report.CapacityPorts-p.used)
	}
	return text
}

// Doubt says why so many ports may be unavailable, see pool.Destination. differ says whether only some of its connections use TCP timestamps.
func Doubt(mayBeBound, mayBeHeld int, differ bool) string {
	if mayBeBound < mayBeHeld && differ {
		return "some connections use TCP timestamps and some do not, as to unlike servers behind one address, and which of the closed ones did is not known; --exact tells"
	}
	if mayBeBound < mayBeHeld {
		return "whether closed connections used TCP timestamps is not known, as some may have begun while tcp_timestamps was off; a minute after the last of these is closed, it is known; --exact tells now"
	}
	return "which clients bind before they connect is not known yet; --exact tells now"
}

// leaks are states that connections stay in if something is wrong, however many ports others hold.
var leaks = [...]struct {
	of      []Quantity
	state   tcpstate.State
	meaning string
}{
	{[]Quantity{InCloseWait}, tcpstate.CloseWait, "an application on this host has not closed them"},
	{[]Quantity{InSynSent, MostSynSent}, tcpstate.SynSent, "the destination does not answer"},
}

// meaning says what it means that a holder has most ports.
func meaning(holder string) string {
	switch state := strings.ToUpper(holder); holder {
	case tcpstate.Established.String():
		return "Open connections hold most ports: look for a connection pool without a limit, and for requests that hang"
	case tcpstate.TimeWait.String():
		return "Connections that this host closed first hold most ports, in TIME_WAIT"
	case tcpstate.FinWait1.String(), tcpstate.FinWait2.String(), tcpstate.Closing.String():
		return "Connections that this host closed first hold most ports, in " + state + ": the destination has not closed them"
	case tcpstate.CloseWait.String():
		return "Connections that the destination closed hold most ports, in CLOSE_WAIT: an application on this host has not closed them"
	case tcpstate.SynSent.String():
		return "Attempts to connect hold most ports, in SYN_SENT: the destination does not answer"
	case boundByOthers:
		return "Other sockets hold most ports: their clients bind before they connect"
	default:
		return "Connections in " + state + " hold most ports"
	}
}

package advice

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
)

// considerable reports whether something has so many ports that a cure is about it.
func (p *tcpPool) considerable(ports int) bool { return ports > 0 && mainShare*ports >= p.demand() }

// cures returns the cures that help.
func (p *tcpPool) cures() []Cure {
	all := []Cure{p.closeLeaks(), p.closeBothDirections(), p.giveUpEarlier()}
	// Where a leak has most ports, more of them would only last longer. Where it is all that is wrong, they suffice.
	leaked := p.in(tcpstate.CloseWait) + p.in(tcpstate.SynSent) + p.destination.HalfClosed
	if 2*leaked <= p.demand() && p.reached.Has(Utilization, Load, Exhaustion, MayExhaust, Failures, MayRise) {
		all = append(all, p.wholeRange(), p.keepAlive(), p.reuse(), p.widen(), p.moveListeners(),
			p.connectWithoutBinding(), p.moreSources(), p.moreDestinations(), p.unixSocket(), p.closeSecond())
		return helpful(p.giveBackReserved(), all...)
	}
	return helpful(Cure{}, all...)
}

// ownRange reports whether connects fail although the pool is far from full, so that clients may have a range of their
// own.
func (p *tcpPool) ownRange() bool {
	return p.reached.Has(Failures) && !p.reached.Has(Utilization, Load, Exhaustion, MayExhaust)
}

// wholeRange has clients that use few of the ports use all. Then.Ports are those of the pool: the others have some already.
func (p *tcpPool) wholeRange() Cure {
	if !p.ownRange() {
		return Cure{}
	}
	c := p.cure("Let clients use the whole range", p.now.Ports)
	c.Now = outlook(p.destination.Held-p.destination.Reusable, p.destination.Open, p.destination.Hold)
	c.Sentence = fmt.Sprintf("Connects failed while %d of %d ports are free. Clients with a slice of the range (IP_LOCAL_PORT_RANGE) or a list of ports of their own are out of ports when that is used up: let them do without, or give them more.",
		p.now.Ports-c.Now.Ports, p.report.CapacityPorts)
	c.Condition = "The clients have a range of their own."
	return c
}

// cure returns a cure with a gain in ports: they become so many.
func (p *tcpPool) cure(title string, ports int) Cure {
	return Cure{Title: title, Now: p.now, Then: outlook(ports, p.destination.Open, p.destination.Hold)}
}

func (p *tcpPool) closeLeaks() Cure {
	return p.freeOpen("Close what the destination has closed", p.in(tcpstate.CloseWait),
		"An application has not closed %d connections that the destination closed. Restart it to free their ports, and find the leak.")
}

func (p *tcpPool) closeBothDirections() Cure {
	return p.freeOpen("Close both directions", p.destination.HalfClosed,
		"Programs on this host have shut down one direction of %d connections, and wait for the destination to close the other. There is no limit to that. Restart them to free their ports, and let them close after a time.")
}

func (p *tcpPool) giveUpEarlier() Cure {
	return p.freeOpen("Give up earlier without an answer", p.in(tcpstate.SynSent),
		"%d attempts to connect have no answer. Check that the destination is up and that no firewall drops packets, and let clients time out earlier.")
}

// freeOpen returns a cure that frees ports of connections that are not closed.
func (p *tcpPool) freeOpen(title string, ports int, sentence string) Cure {
	if !p.considerable(ports) {
		return Cure{}
	}
	return Cure{
		Title: title, Sentence: fmt.Sprintf(sentence, ports), N: ports,
		Now: p.now, Then: outlook(p.now.Ports, p.destination.Open-ports, p.destination.Hold),
	}
}

// keepAlive has the ceiling count requests, where each connection has one now.
func (p *tcpPool) keepAlive() Cure {
	if !p.considerable(p.closed) || p.now.Ceiling == 0 {
		return Cure{}
	}
	n := max(int(2*p.destination.CloseRate/p.now.Ceiling)+1, 2)
	return Cure{
		Title:    "Keep connections alive",
		Sentence: fmt.Sprintf("Send at least %d times as many requests on each connection: then the load is less than half of the ceiling.", n), N: n,
		Now: p.now, Then: Outlook{Ports: p.now.Ports, Ceiling: p.now.Ceiling * float64(n)}, Requests: true,
		Condition: keptOpen,
	}
}

const keptOpen = "The destination keeps connections open, too."

func (p *tcpPool) reuse() Cure {
	d, s := p.destination, p.report.Settings
	if !p.considerable(p.closed) || !p.canReuse() {
		return Cure{}
	}
	condition, fact := "", ""
	var changes []change
	switch {
	case s.Timestamps == 0:
		changes = append(changes, change{name: "net.ipv4.tcp_timestamps", before: "0", then: "1"})
		condition = fmt.Sprintf("The destination uses TCP timestamps. So do connections from then on only: those before hold their ports for %.3g s after they are closed, as now.", d.Hold)
	case d.Loopback:
	case d.Timestamps == pool.Yes:
		fact = " The destination uses TCP timestamps, which this needs."
	case d.TimestampsShare > 0:
		condition = fmt.Sprintf("All servers behind the destination use TCP timestamps: of the connections that were asked, %.2g%% do.", 100*d.TimestampsShare)
	default:
		condition = "The destination uses TCP timestamps: it is not known whether it does."
	}
	if s.TWReuse != 1 {
		changes = append(changes, change{name: "net.ipv4.tcp_tw_reuse", before: strconv.Itoa(s.TWReuse), then: "1"})
	}
	command, undo := commands(changes...)
	hold, atMost := p.holdWithReuse(), ""
	if s.ReusableEachSecond() {
		atMost = " at most"
	}
	return Cure{
		Title:    "Reuse ports in TIME_WAIT",
		Sentence: fmt.Sprintf("A closed connection then holds its port for %.3g s%s instead of %.3g s.%s", hold, atMost, d.Hold, fact),
		Now:      p.now, Then: outlook(p.now.Ports, d.Open, hold),
		Command: command, Undo: undo, Condition: condition,
	}
}

// canReuse reports whether ports in TIME_WAIT are not reusable for this destination because of the sysctls alone.
func (p *tcpPool) canReuse() bool {
	d, s := p.destination, p.report.Settings
	never := d.Timestamps == pool.No && s.Timestamps != 0 && !d.Loopback
	return !p.bindFirst() && !never && !s.Reusable(d.Loopback)
}

// holdWithReuse returns what Destination.Hold would be if the sysctls let connect() take over ports in TIME_WAIT, and the destination
// uses TCP timestamps where that is not known.
func (p *tcpPool) holdWithReuse() float64 {
	s, timestamps := p.report.Settings, p.destination.Timestamps
	if s.Timestamps == 0 {
		timestamps = pool.Unknown
	}
	s.TWReuse, s.Timestamps = 1, 1
	return p.holdOf(s, timestamps)
}

// holdOf returns what Destination.Hold would be with other settings.
func (p *tcpPool) holdOf(s pool.Settings, timestamps pool.Fact) float64 {
	return s.Hold(p.destination.Loopback, timestamps, p.destination.Unanswered)
}

func (p *tcpPool) widen() Cure {
	r := p.report
	w, ok := newWidening(r.Settings, servers{r.ListenerPorts, r.UDPServerPorts, r.UDPServersKnown})
	if !ok {
		return Cure{}
	}
	usable := w.usable.Size()
	c := p.cure("Widen the range", p.now.Ports+usable-r.CapacityPorts)
	c.Sentence = w.sentence(fmt.Sprintf("Outgoing connections can have %d of the ports", usable))
	c.Command, c.Undo, c.Condition = w.command, w.undo, w.condition()
	if p.ownRange() {
		c.Condition += " The clients have no range of their own."
	}
	return c
}

func (p *tcpPool) giveBackReserved() Cure {
	c := giveBack(p.report.Settings, func(port uint16) bool {
		_, tcp := slices.BinarySearch(p.report.ListenerPorts, port)
		_, udp := slices.BinarySearch(p.report.UDPServerPorts, port)
		return tcp || udp
	})
	c.Now, c.Then = p.now, outlook(p.now.Ports+c.N, p.destination.Open, p.destination.Hold)
	return c
}

func (p *tcpPool) moveListeners() Cure {
	s := p.report.Settings
	var reserved portset.Map
	reserved.AddRanges(s.ReservedPorts)
	var blocked []string
	for _, port := range p.report.ListenerPorts {
		if s.PortRange.Contains(port) && !reserved.Has(port) {
			blocked = append(blocked, strconv.Itoa(int(port)))
		}
	}
	c := p.cure("Move listeners out of the range", p.now.Ports+p.report.BlockedPorts)
	c.Sentence = fmt.Sprintf("These ports have listeners in the range %d-%d: %s.", s.PortRange.Low, s.PortRange.High, someOf(blocked))
	c.Command = fmt.Sprintf("ss -Htlnp sport ge :%d sport le :%d", s.PortRange.Low, s.PortRange.High)
	return c
}

func (p *tcpPool) connectWithoutBinding() Cure {
	c := p.cure("Connect without binding a port", p.report.CapacityPorts)
	if p.bindFirst() {
		c.Then = outlook(p.report.CapacityPorts, p.destination.Open, p.holdOf(p.report.Settings, p.destination.Timestamps))
	}
	c.Sentence = fmt.Sprintf("Clients bound %d ports before they connected, and these are lost to all destinations. Let them set IP_BIND_ADDRESS_NO_PORT, or not bind.", p.report.BoundPorts)
	return c
}

func (p *tcpPool) moreSources() Cure {
	c := p.morePools("More source addresses")
	c.Sentence = fmt.Sprintf("With at least %d more, less than half of the ports are in use.", c.N)
	c.Condition = usedAlike
	return c
}

const usedAlike = "Clients use all addresses alike, and connect without binding a port."

func (p *tcpPool) moreDestinations() Cure {
	c := p.morePools("More destination addresses or ports")
	c.Sentence = fmt.Sprintf("With at least %d more, less than half of the ports are in use.", c.N)
	c.Condition = "Clients use all of them alike, and connect without binding a port."
	return c
}

// morePools returns a cure that adds pools, so many that less than half of all ports are in use.
func (p *tcpPool) morePools(title string) Cure {
	each := p.portsOfMore(1)
	if each <= 0 {
		return Cure{}
	}
	wanted := p.destination.Open + p.closed
	n := max((2*wanted-p.now.Ports)/each+1, 1)
	c := p.cure(title, p.now.Ports+p.portsOfMore(n))
	c.N = n
	return c
}

// portsOfMore returns how many ports further pools have.
func (p *tcpPool) portsOfMore(pools int) int {
	return pools * (p.report.CapacityPorts - p.report.BoundPorts)
}

// unixSocket is for two ends on one host.
func (p *tcpPool) unixSocket() Cure {
	if !p.destination.Loopback {
		return Cure{}
	}
	return Cure{
		Title:    "Use a Unix socket",
		Sentence: "Both ends are on this host, and a connection over a Unix socket has no port.",
		Now:      p.now, Then: Outlook{NoPort: true},
		Condition: "Client and server can both use one.",
	}
}

func (p *tcpPool) closeSecond() Cure {
	if !p.considerable(p.closed) {
		return Cure{}
	}
	return Cure{
		Title:    "Let the other side close first",
		Sentence: "Then the destination has the TIME_WAIT, where it holds no ephemeral port.",
		Now:      p.now, Then: Outlook{Ports: p.now.Ports, Ceiling: math.Inf(1)},
		Condition: "Clients wait until the destination has closed.",
	}
}

// outlook returns what a number of ports suffices for, see pool.Ceiling.
func outlook(ports, open int, hold float64) Outlook {
	return Outlook{Ports: ports, Ceiling: pool.Ceiling(ports, open, hold)}
}

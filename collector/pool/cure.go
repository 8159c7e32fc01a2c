package pool

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"ephemeral_port_exporter/collector/internal/portset"
)

// A Cure is a change that lets a destination have more connections. The runbook has a chapter with
// the same Title.
type Cure struct {
	Title     string
	Sentence  string  // what to do, or what it does
	N         int     // the number in the Sentence: how many more requests or addresses; 0 if there is none
	Now, Then Outlook // Then is a prediction
	Command   string  // does it, or finds what to change; to be run in the namespace; may be empty
	Condition string  // of the prediction; may be empty
}

// Anchor returns the anchor of the chapter in the runbook.
func (c Cure) Anchor() string { return strings.ToLower(strings.ReplaceAll(c.Title, " ", "-")) }

// helps reports whether the gain is 1% or more. That of no Cure is not.
func (c Cure) helps() bool {
	return 100*c.Then.Ports >= 101*c.Now.Ports && c.Then.Ports > 0 || c.Then.Ceiling >= 1.01*c.Now.Ceiling && c.Then.Ceiling > c.Now.Ceiling
}

// An Outlook is how many connections a destination can have.
type Outlook struct {
	Ports   int     // at the same time
	Ceiling float64 // per second, closed first by this host; infinite if ports are no limit
}

// outlook returns what a number of ports suffices for, see ceiling.
func outlook(ports, open int, hold float64) Outlook {
	return Outlook{ports, ceiling(ports, open, hold)}
}

// A cure treats what has 1 / mainShare of the demand or more.
const mainShare = 5

// treats reports whether something has so many ports that a cure is for it.
func (p *patient) treats(ports int) bool { return ports > 0 && mainShare*ports >= p.demand() }

// cures returns the cures that help.
func (p *patient) cures() []Cure {
	all := []Cure{p.closeLeaks(), p.giveUpEarlier()}
	// Where a leak has most ports, more of them would only last longer.
	if leaked := p.in(CloseWait) + p.in(SynSent); 2*leaked <= p.demand() {
		all = append(all, p.keepAlive(), p.reuse(), p.widen(), p.giveBackReserved(), p.moveListeners(),
			p.connectWithoutBinding(), p.moreSources(), p.moreDestinations(), p.closeSecond())
	}
	return slices.DeleteFunc(all, func(c Cure) bool { return !c.helps() })
}

// cure returns a cure with a gain in ports: they become so many.
func (p *patient) cure(title string, ports int) Cure {
	return Cure{Title: title, Now: p.now, Then: outlook(ports, p.destination.Open, p.destination.Hold)}
}

func (p *patient) closeLeaks() Cure {
	return p.freeOpen("Close what the destination has closed", p.in(CloseWait),
		"An application has not closed %d connections that the destination closed. Restart it to free their ports, and find the leak.")
}

func (p *patient) giveUpEarlier() Cure {
	return p.freeOpen("Give up earlier without an answer", p.in(SynSent),
		"%d attempts to connect have no answer. Check that the destination is up and that no firewall drops packets, and let clients time out earlier.")
}

// freeOpen returns a cure that frees ports of connections that are not closed.
func (p *patient) freeOpen(title string, ports int, sentence string) Cure {
	if !p.treats(ports) {
		return Cure{}
	}
	return Cure{
		Title: title, Sentence: fmt.Sprintf(sentence, ports), N: ports,
		Now: p.now, Then: outlook(p.now.Ports, p.destination.Open-ports, p.destination.Hold),
	}
}

// keepAlive has the ceiling count requests, where each connection has one now.
func (p *patient) keepAlive() Cure {
	if !p.treats(p.closed) || p.now.Ceiling == 0 {
		return Cure{}
	}
	n := max(int(2*p.destination.CloseRate/p.now.Ceiling)+1, 2)
	return Cure{
		Title:    "Keep connections alive",
		Sentence: fmt.Sprintf("Send at least %d times as many requests on each connection: then the load is less than half of the ceiling.", n), N: n,
		Now: p.now, Then: Outlook{p.now.Ports, p.now.Ceiling * float64(n)},
		Condition: "The destination keeps connections open, too.",
	}
}

func (p *patient) reuse() Cure {
	d, s := p.destination, p.report.Settings
	never := d.Timestamps == No && s.Timestamps != 0 && !d.Loopback
	if !p.treats(p.closed) || p.bindFirst() || never || s.timeWaitRule(d.Loopback).reusable {
		return Cure{}
	}
	command, condition, timestamps := "sysctl -w", "", d.Timestamps
	switch {
	case s.Timestamps == 0:
		command += " net.ipv4.tcp_timestamps=1"
		condition = "The destination uses TCP timestamps. So do connections from then on only."
		timestamps = Unknown
	case d.Loopback:
	case timestamps == Yes:
		condition = "The destination uses TCP timestamps: it does."
	default:
		condition = "The destination uses TCP timestamps: it is not known whether it does."
	}
	if s.TWReuse != 1 {
		command += " net.ipv4.tcp_tw_reuse=1"
	}
	s.TWReuse, s.Timestamps = 1, 1
	hold, atMost := p.holdOf(s, timestamps), ""
	if s.timeWaitRule(d.Loopback).wholeSeconds {
		atMost = " at most"
	}
	return Cure{
		Title:    "Reuse ports in TIME_WAIT",
		Sentence: fmt.Sprintf("A closed connection then holds its port for %.3g s%s instead of %.3g s.", hold, atMost, d.Hold),
		Now:      p.now, Then: outlook(p.now.Ports, d.Open, hold),
		Command: command, Condition: condition,
	}
}

// holdOf returns what Destination.Hold would be with other settings.
func (p *patient) holdOf(s Settings, timestamps Fact) float64 {
	rule := s.timeWaitRule(p.destination.Loopback)
	unansweredHold, hold := rule.times[unanswered].hold.Seconds(), rule.hold(timestamps).Seconds()
	return hold + p.destination.Unanswered*(unansweredHold-hold)
}

func (p *patient) widen() Cure {
	s := p.report.Settings
	wide := PortRange{Low: min(s.PortRange.Low, 1024), High: 65535}
	before := s.PortRange
	s.PortRange = wide
	var usable, reserved portset.Map
	usable.AddUnreserved(s.PortRange, s.ReservedPorts)
	reserved.AddRanges(s.ReservedPorts)
	var listeners []string
	for _, port := range p.report.ListenerPorts {
		if usable.Has(port) && !before.Contains(port) {
			listeners = append(listeners, strconv.Itoa(int(port)))
			reserved.Add(port)
		}
		usable.Remove(port)
	}
	c := p.cure("Widen the range", p.now.Ports+usable.Size()-p.report.CapacityPorts)
	c.Sentence = fmt.Sprintf("Outgoing connections can have %d of the ports %d-%d.", usable.Size(), wide.Low, wide.High)
	c.Command = fmt.Sprintf("sysctl -w net.ipv4.ip_local_port_range=\"%d %d\"", wide.Low, wide.High)
	c.Condition = "Reserve all ports in there on which a program may listen later: those of services that are down, and on Kubernetes the node ports."
	if len(listeners) > 0 {
		command, ok := reserveCommand(&reserved)
		if !ok {
			return Cure{}
		}
		c.Sentence += " These have listeners, so reserve them first: " + someOf(listeners) + "."
		c.Command = strings.Replace(c.Command, "sysctl -w", command, 1)
	}
	return c
}

// reserveCommand returns a command that reserves these ports only. It returns false if the kernel
// would not read all: proc_do_large_bitmap of kernel/sysctl.c reads less than a page.
func reserveCommand(ports *portset.Map) (command string, ok bool) {
	list := ports.String()
	return "sysctl -w net.ipv4.ip_local_reserved_ports=" + list, len(list) < 4096
}

func (p *patient) giveBackReserved() Cure {
	s := p.report.Settings
	var kept portset.Map
	kept.AddRanges(s.ReservedPorts)
	n := 0
	for port := int(s.PortRange.Low); port <= int(s.PortRange.High); port++ {
		if _, listens := slices.BinarySearch(p.report.ListenerPorts, uint16(port)); kept.Has(uint16(port)) && !listens {
			kept.Remove(uint16(port))
			n++
		}
	}
	command, ok := reserveCommand(&kept)
	if !ok {
		return Cure{}
	}
	c := p.cure("Give back reserved ports", p.now.Ports+n)
	c.Command = command
	c.Sentence, c.N = fmt.Sprintf("%d ports of the range are reserved, and nothing listens on them.", n), n
	c.Condition = "No program that is not running now needs them."
	return c
}

func (p *patient) moveListeners() Cure {
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

func (p *patient) connectWithoutBinding() Cure {
	c := p.cure("Connect without binding a port", p.report.CapacityPorts)
	if p.bindFirst() {
		c.Then = outlook(p.report.CapacityPorts, p.destination.Open, p.holdOf(p.report.Settings, p.destination.Timestamps))
	}
	c.Sentence = fmt.Sprintf("Clients bound %d ports before they connected, and these are lost to all destinations. Let them set IP_BIND_ADDRESS_NO_PORT, or not bind.", p.report.BoundPorts)
	return c
}

func (p *patient) moreSources() Cure {
	c := p.morePools("More source addresses")
	c.Sentence = fmt.Sprintf("With at least %d more, less than half of the ports are in use.", c.N)
	c.Condition = "Clients use all addresses alike, and connect without binding a port."
	return c
}

func (p *patient) moreDestinations() Cure {
	c := p.morePools("More destination addresses or ports")
	c.Sentence = fmt.Sprintf("With at least %d more, less than half of the ports are in use.", c.N)
	c.Condition = "Clients use all of them alike."
	return c
}

// morePools returns a cure that adds pools, so many that less than half of all ports are in use.
func (p *patient) morePools(title string) Cure {
	each := p.report.CapacityPorts - p.report.BoundPorts
	if each <= 0 {
		return Cure{}
	}
	wanted := p.destination.Open + p.closed
	n := max((2*wanted-p.now.Ports)/each+1, 1)
	c := p.cure(title, p.now.Ports+n*each)
	c.N = n
	return c
}

func (p *patient) closeSecond() Cure {
	if !p.treats(p.closed) {
		return Cure{}
	}
	return Cure{
		Title:    "Let the other side close first",
		Sentence: "Then the destination has the TIME_WAIT, where it holds no ephemeral port.",
		Now:      p.now, Then: Outlook{p.now.Ports, math.Inf(1)},
		Condition: "Clients wait until the destination has closed.",
	}
}

// someOf writes the first words of a list.
func someOf(words []string) string {
	const most = 10
	if len(words) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), len(words)-most)
	}
	return strings.Join(words, ", ")
}

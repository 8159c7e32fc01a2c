package advice

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
)

// SNAT returns advice about a pool of the report. It returns nil if the pool is calm, see ReachedSNAT.
func SNAT(r *snat.Report, p *snat.Pool) *Advice {
	reached := ReachedSNAT(p)
	if reached.Level() == Calm {
		return nil
	}
	n := newSNATPool(r, p, reached)
	if !p.Known() {
		return &Advice{Diagnosis: n.whyUnknown()} // a cure would have no prediction
	}
	return &Advice{Diagnosis: n.diagnosis(), Cures: n.cures()}
}

// A snatPool is a pool of source NAT that needs advice.
type snatPool struct {
	report  *snat.Report
	pool    *snat.Pool
	reached Reached
	now     Outlook

	used   int // ports that are not free, nor reusable
	open   int // of those, of flows that are in use
	closed int // of those, of flows that only expire
}

func newSNATPool(r *snat.Report, p *snat.Pool, reached Reached) *snatPool {
	n := &snatPool{report: r, pool: p, reached: reached, now: Outlook{Ports: p.Capacity, Ceiling: p.Ceiling}, used: p.Held - p.Reusable}
	for state, ports := range p.Ports {
		if snat.State(state).Open() {
			n.open += ports
		}
	}
	n.closed = max(n.used-n.open, 0)
	return n
}

// whyUnknown says why it is not known how full the pool is.
func (n *snatPool) whyUnknown() string {
	const compare = "Compare the flag with the rules: nft list ruleset, or iptables-save -t nat."
	p, flag := n.pool, Ranges(n.report.Settings.PortRanges)
	const compareCilium = "how many of it are free is not known. Compare the flag with its setting nodePort.range."
	switch from := n.report.CiliumFrom; {
	case p.Cilium && from > 0:
		return fmt.Sprintf("Cilium chose many ports at random, and none below %d: its range does not begin at %d, above --node-ports, and %s", from, n.report.Settings.Cilium.Ports.Low, compareCilium)
	case p.Cilium:
		return fmt.Sprintf("Of %d flows of Cilium, %d have ports outside %s, which are those above --node-ports. So Cilium has another range, and %s",
			p.Held+p.Outside, p.Outside, Ranges([]pool.PortRange{n.report.Settings.Cilium.Ports}), compareCilium)
	}
	if p.FullBlocks != nil {
		return fmt.Sprintf("The pool looks full within these blocks of ports: %s. All of them are taken, no other part of %s is, and packets are dropped. If the rules name these blocks, repeat --snat.port-range for each. %s",
			Ranges(p.FullBlocks), flag, compare)
	}
	return fmt.Sprintf("Of %d flows, %d have ports outside %s, which --snat.port-range says. So the rules name other ports, and how many of those are free is not known. %s",
		p.Held+p.Outside, p.Outside, flag, compare)
}

// Ranges writes the first of some ranges.
func Ranges(ranges []pool.PortRange) string {
	words := make([]string, len(ranges))
	for i, r := range ranges {
		words[i] = fmt.Sprintf("%d-%d", r.Low, r.High)
	}
	return someOf(words)
}

// diagnosis says what holds most ports, and whether free ones are found.
func (n *snatPool) diagnosis() string {
	p := n.pool
	inUse := func(s snat.State) int {
		switch {
		case p.Cilium || !n.report.Settings.TakesOver || !s.TakenOver():
			return p.Ports[s]
		case s == snat.TimeWait: // stands for all closed ones: which of them are reusable is not known
			return n.closed
		default:
			return 0
		}
	}
	state := slices.MaxFunc(snat.States(p.Protocol), func(a, b snat.State) int { return cmp.Compare(inUse(a), inUse(b)) })
	text := fmt.Sprintf("%s. They hold %d of the %d ports in use; the pool has %d.", n.meaning(state), inUse(state), n.used, n.pool.Capacity)
	if free := n.pool.Capacity - p.Held; n.reached.Has(SearchFailure) && free > 0 {
		whose, reason := "the kernel's", "it does not try all"
		switch {
		case p.Cilium:
			whose, reason = "Cilium's", fmt.Sprintf("it tries %d at most", n.report.Settings.Cilium.Tries)
		case len(n.report.Settings.PortRanges) > 1:
			reason = "it tries those of one range only"
		}
		text += fmt.Sprintf(" %d%% of %s searches for a port fail although %d are free, because %s.", int(100*p.SearchFailure), whose, free, reason)
	}
	if n.oneClient() {
		text += fmt.Sprintf(" %d are held for %v alone.", p.Clients[0].Ports, p.Clients[0].Address)
	}
	return text
}

// meaning says what it means that flows in a state hold most ports.
func (n *snatPool) meaning(s snat.State) string {
	switch s {
	case snat.Established:
		if n.pool.Cilium {
			return "Open connections hold most ports, or connections whose ends are gone: Cilium tracks these for hours"
		}
		return "Open connections hold most ports, or connections whose ends are gone: connection tracking keeps these for days"
	case snat.SynSent, snat.Unreplied:
		return "Flows without an answer hold most ports: the destination does not answer"
	case snat.NoConnection:
		return "Flows without a connection hold most ports: they are left over until Cilium's agent collects them"
	case snat.TimeWait, snat.Close, snat.SynSent2:
		return "Closed connections hold most ports"
	case snat.Replied:
		return "Single exchanges over UDP hold most ports, until they expire"
	case snat.Assured:
		if n.pool.Cilium {
			return "Exchanges over UDP hold most ports, single ones too"
		}
		return "Longer exchanges over UDP hold most ports"
	default:
		return "Connections that are being closed hold most ports"
	}
}

// oneClient reports whether one address before translation holds more than half of the ports.
func (n *snatPool) oneClient() bool {
	return len(n.pool.Clients) > 0 && 2*n.pool.Clients[0].Ports > n.pool.Held
}

// considerable reports whether something has so many ports that a cure is about it.
func (n *snatPool) considerable(ports int) bool { return ports > 0 && mainShare*ports >= n.used }

// cures returns the cures that help.
func (n *snatPool) cures() []Cure {
	if n.pool.Cilium {
		return helpful(Cure{}, n.moreDestinations(), n.withoutTranslation())
	}
	return helpful(Cure{}, n.fullyRandom(), n.useAllPorts(), n.moreAddresses(), n.shorterTimeout(), n.newerKernel(),
		n.keepAlive(), n.moreDestinations(), n.withoutTranslation())
}

// outlook returns what a number of ports suffices for, with these settings.
func (n *snatPool) outlook(ports int, s snat.Settings) Outlook {
	if n.pool.Cilium {
		return Outlook{Ports: ports, Ceiling: math.NaN()}
	}
	return Outlook{Ports: ports, Ceiling: s.Ceiling(n.pool.Protocol, ports-n.open)}
}

// fullyRandom scatters the ports, so that taken ones do not lie in blocks.
func (n *snatPool) fullyRandom() Cure {
	if !n.reached.Has(SearchFailure) {
		return Cure{}
	}
	then := n.report.Settings.ScatteredFailure(n.pool.Held, n.pool.Reusable)
	if then > n.pool.SearchFailure/2 {
		return Cure{}
	}
	c := Cure{
		Title:     "Choose the ports fully at random",
		Sentence:  "Taken ports lie in blocks, in which searches find nothing. Write fully-random in the rule of nft, or --random-fully in that of iptables.",
		Now:       n.now,
		Then:      n.now,
		Condition: "The rule does not say so yet. It counts once the present flows have ended.",
	}
	c.Now.SearchFailure, c.Then.SearchFailure = n.pool.SearchFailure, then
	return c
}

// natPorts are those that NAT chooses from if the rule names none.
var natPorts = pool.PortRange{Low: 1024, High: 65535}

func (n *snatPool) useAllPorts() Cure {
	return Cure{
		Title:     "Let NAT use all ports",
		Sentence:  fmt.Sprintf("--snat.port-range says that the rule names the ports %s. Let it name none, and leave the flag out: then the kernel has %d-%d.", Ranges(n.report.Settings.PortRanges), natPorts.Low, natPorts.High),
		Now:       n.now,
		Then:      n.outlook(natPorts.Size(), n.report.Settings),
		Condition: "The rule has no need of its range: no other host has the rest of the address's ports, as with MAP-E and carrier NAT.",
	}
}

func (n *snatPool) moreAddresses() Cure {
	if n.oneClient() {
		return Cure{} // it would get the ports of one address still
	}
	c := n.morePools("More translated addresses")
	c.Sentence = fmt.Sprintf("With at least %d more in the rule, less than half of the ports are in use.", c.N)
	c.Condition = "Many clients have about the same traffic: each gets the ports of one address only."
	return c
}

func (n *snatPool) moreDestinations() Cure {
	c := n.morePools("More destination addresses or ports")
	share := "half"
	if n.pool.Cilium {
		share = "40%"
	}
	c.Sentence = fmt.Sprintf("With at least %d more, less than %s of the ports are in use.", c.N, share)
	c.Condition = "Clients use all of them alike."
	return c
}

// morePools returns a cure that adds pools, so many that less than half of all ports are in use, or of Cilium less than 40%: with more, its
// searches fail.
func (n *snatPool) morePools(title string) Cure {
	more := max(2*n.used/n.pool.Capacity, 1)
	if n.pool.Cilium {
		more = max(5*n.used/(2*n.pool.Capacity), 1)
	}
	return Cure{Title: title, N: more, Now: n.now, Then: n.outlook((1+more)*n.pool.Capacity, n.report.Settings)}
}

// Timeouts that are short enough to help, and long enough for most: answers over UDP come within 10 s,
// and Linux itself keeps TIME_WAIT for 60 s.
const (
	shortUDP         = 10 * time.Second
	shortTCPTimeWait = 60 * time.Second
)

func (n *snatPool) shorterTimeout() Cure {
	s := n.report.Settings
	c := Cure{Title: "Shorter timeouts of connection tracking", Now: n.now}
	switch {
	case !n.considerable(n.closed):
		return Cure{}
	case n.pool.Protocol == snat.UDP:
		c.Sentence = fmt.Sprintf("A single exchange then holds its port for %.0f s instead of %.0f s.", shortUDP.Seconds(), s.UDP.Seconds())
		c.Command, c.Undo = commands(timeout("nf_conntrack_udp_timeout", s.UDP, shortUDP))
		c.Condition = "Answers come within that time. It counts for flows that have a packet from then on."
		s.UDP = shortUDP
	default:
		c.Sentence = fmt.Sprintf("A closed connection then holds its port for %.0f s instead of %.0f s.", shortTCPTimeWait.Seconds(), s.TCPTimeWait.Seconds())
		c.Command, c.Undo = commands(timeout("nf_conntrack_tcp_timeout_time_wait", s.TCPTimeWait, shortTCPTimeWait))
		c.Condition = "The ends keep TIME_WAIT no longer, as Linux does. It counts for connections that are closed from then on."
		s.TCPTimeWait = shortTCPTimeWait
	}
	c.Then = n.outlook(n.now.Ports, s)
	return c
}

// timeout returns the change of a timeout of connection tracking.
func timeout(name string, before, then time.Duration) change {
	seconds := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 0, 64) }
	return change{name: "net.netfilter." + name, before: seconds(before), then: seconds(then)}
}

func (n *snatPool) newerKernel() Cure {
	s := n.report.Settings
	if n.pool.Protocol != snat.TCP || !n.considerable(n.closed) {
		return Cure{}
	}
	s.TakesOver = true
	return Cure{
		Title:    "A kernel that takes over closed flows",
		Sentence: "Since Linux 6.5, new connections get the ports of closed ones.",
		Now:      n.now, Then: n.outlook(n.now.Ports, s),
	}
}

// keepAlive has the ceiling count requests, where each connection has one now.
func (n *snatPool) keepAlive() Cure {
	if n.pool.Protocol != snat.TCP || !n.considerable(n.closed) {
		return Cure{}
	}
	const requests = 10
	return Cure{
		Title:    "Keep connections alive",
		Sentence: fmt.Sprintf("Let clients send %d requests on each connection.", requests), N: requests,
		Now: n.now, Then: Outlook{Ports: n.now.Ports, Ceiling: n.now.Ceiling * requests}, Requests: true,
		Condition: "The destination keeps connections open, too.",
	}
}

func (n *snatPool) withoutTranslation() Cure {
	if !isPrivate(n.pool.Address.Addr()) {
		return Cure{}
	}
	where := "Leave it out of the rule"
	if n.pool.Cilium {
		where = "Have Cilium leave it out: of masquerading by ipv4NativeRoutingCIDR or ipv6NativeRoutingCIDR, or by nonMasqueradeCIDRs of its ip-masq-agent; " +
			"of an egress gateway by excludedCIDRs of its policy; of a service by externalTrafficPolicy: Local"
	}
	return Cure{
		Title:     "Do not translate inside the network",
		Sentence:  fmt.Sprintf("%v is a private address. %s.", n.pool.Address.Addr(), where),
		Now:       n.now,
		Then:      Outlook{Ports: n.now.Ports, Ceiling: math.Inf(1), NoPort: true},
		Condition: "It has a route back to the clients.",
	}
}

// isPrivate reports whether an address is of RFC 1918, RFC 4193, or of RFC 6598, which providers and clusters
// use inside.
func isPrivate(a netip.Addr) bool {
	return a.IsPrivate() || netip.MustParsePrefix("100.64.0.0/10").Contains(a)
}

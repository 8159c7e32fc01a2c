package pool

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/internal/portset"
)

// From this share of failing searches on, a pool of source NAT is in danger, whatever its utilization.
const dangerSearchFailure = 0.01

// InDanger reports whether the ports of a pool run out, or may soon.
func (p *NATPool) InDanger() bool {
	return p.Utilization >= dangerUtilization || p.SearchFailure >= dangerSearchFailure
}

// NATAdvice says what is wrong with a pool of source NAT and what to change.
type NATAdvice struct {
	Diagnosis string
	Cures     []NATCure // best first; only those that help
}

// A NATCure is a Cure of a pool of source NAT. The Ceiling of its Outlook counts connections that are over within
// moments, and is NaN if the timeouts of connection tracking are not known.
type NATCure struct {
	Cure

	// FailureNow and FailureThen are shares of searches that fail, if the cure is about these. Else, they are
	// 0.
	FailureNow, FailureThen float64

	NoPort bool // then, connections need no port of source NAT
}

// Advise returns advice about a pool of the report. It returns nil if the pool is not in danger.
func (r *NATReport) Advise(p *NATPool) *NATAdvice {
	if !p.InDanger() {
		return nil
	}
	n := newNATPatient(r, p)
	return &NATAdvice{Diagnosis: n.diagnosis(), Cures: n.cures()}
}

// A natPatient is a pool that needs advice.
type natPatient struct {
	report *NATReport
	pool   *NATPool
	now    Outlook

	used   int // ports that are not free, nor reusable
	open   int // of those, of flows that are in use
	closed int // of those, of flows that only expire
}

func newNATPatient(r *NATReport, p *NATPool) *natPatient {
	n := &natPatient{report: r, pool: p, now: Outlook{r.CapacityPorts, p.Ceiling}, used: p.Held - p.Reusable}
	for state, ports := range p.Ports {
		if NATState(state).open() {
			n.open += ports
		}
	}
	n.closed = max(n.used-n.open, 0)
	return n
}

// diagnosis says what holds most ports, and whether free ones are found.
func (n *natPatient) diagnosis() string {
	p := n.pool
	inUse := func(s NATState) int {
		switch {
		case !n.report.Settings.TakesOver || !s.takenOver():
			return p.Ports[s]
		case s == NATTimeWait: // stands for all closed ones: which of them are reusable is not known
			return n.closed
		default:
			return 0
		}
	}
	state := slices.MaxFunc(NATStates(p.Protocol), func(a, b NATState) int { return cmp.Compare(inUse(a), inUse(b)) })
	text := fmt.Sprintf("%s. These are %d of the %d ports in use, of %d.", natMeaning(state), inUse(state), n.used, n.report.CapacityPorts)
	if free := n.report.CapacityPorts - p.Held; p.SearchFailure >= dangerSearchFailure && free > 0 {
		text += fmt.Sprintf(" %d%% of the kernel's searches for a port fail although %d are free, because it does not try all.", int(100*p.SearchFailure), free)
	}
	if n.oneClient() {
		text += fmt.Sprintf(" %d are held for %v alone.", p.Clients[0].Ports, p.Clients[0].Address)
	}
	return text
}

// natMeaning says what it means that flows in a state hold most ports.
func natMeaning(s NATState) string {
	switch s {
	case NATEstablished:
		return "Open connections hold most ports, or such whose ends are gone: connection tracking keeps these for days"
	case NATSynSent, NATUnreplied:
		return "Flows without an answer hold most ports: the destination does not answer"
	case NATTimeWait, NATClose, NATSynSent2:
		return "Closed connections hold most ports"
	case NATReplied:
		return "Single exchanges over UDP hold most ports, until they expire"
	case NATAssured:
		return "Longer exchanges over UDP hold most ports"
	default:
		return "Connections that are being closed hold most ports"
	}
}

// oneClient reports whether one address before translation holds more than half of the ports.
func (n *natPatient) oneClient() bool {
	return len(n.pool.Clients) > 0 && 2*n.pool.Clients[0].Ports > n.pool.Held
}

// treats reports whether something has so many ports that a cure is for it.
func (n *natPatient) treats(ports int) bool { return ports > 0 && mainShare*ports >= n.used }

// cures returns the cures that help.
func (n *natPatient) cures() []NATCure {
	all := []NATCure{n.fullyRandom(), n.useAllPorts(), n.moreAddresses(), n.shorterTimeout(), n.newerKernel(), n.keepAlive(), n.moreDestinations(), n.withoutTranslation()}
	return slices.DeleteFunc(all, func(c NATCure) bool {
		return !c.NoPort && !c.helps() && c.FailureThen >= c.FailureNow
	})
}

// outlook returns what a number of ports suffices for, with these settings.
func (n *natPatient) outlook(ports int, s NATSettings) Outlook {
	return Outlook{ports, s.ceiling(n.pool.Protocol, ports-n.open)}
}

// fullyRandom scatters the ports, so that taken ones do not lie in blocks.
func (n *natPatient) fullyRandom() NATCure {
	if n.pool.SearchFailure < dangerSearchFailure {
		return NATCure{}
	}
	then := scatteredFailure(n.report.Settings.PortRange, n.pool.Held, n.pool.Reusable)
	if then > n.pool.SearchFailure/2 {
		return NATCure{}
	}
	return NATCure{
		Cure: Cure{
			Title:     "Choose the ports fully at random",
			Sentence:  "Taken ports lie in blocks, in which searches find nothing. Write fully-random in the rule of nft, or --random-fully in that of iptables.",
			Now:       n.now,
			Then:      n.now,
			Condition: "The rule does not say so yet. It counts once the present flows have ended.",
		},
		FailureNow: n.pool.SearchFailure, FailureThen: then,
	}
}

// scatteredFailure returns the share of searches that fail in a range whose ports were taken by searches that
// begin at random. It is 1 if nearly all ports are taken. That of small ranges varies much: it is a mean.
func scatteredFailure(r PortRange, held, reusable int) float64 {
	if 100*held >= 99*r.Size() {
		return 1
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same for each call
	n := 1 + 16384/r.Size()
	sum := 0.0
	for range n {
		taken, closed := scatter(random, r, held, reusable)
		sum += searchFailure(r, &taken, &closed)
	}
	return sum / float64(n)
}

// scatter takes so many ports by searches, some of them reusable.
func scatter(random *rand.Rand, r PortRange, held, reusable int) (taken, closed portset.Map) {
	size := r.Size()
	search := func() bool {
		for tries := min(maxTries, size); ; tries /= 2 {
			first := random.IntN(size)
			for i := range tries {
				port := r.Low + uint16((first+i)%size)
				if taken.Has(port) {
					continue
				}
				taken.Add(port)
				if random.IntN(held) < reusable {
					closed.Add(port)
				}
				return true
			}
			if tries >= size || tries < minTries {
				return false
			}
		}
	}
	for n := 0; n < held; {
		if search() {
			n++
		}
	}
	return taken, closed
}

// natPorts are those that NAT chooses from if the rule names none.
var natPorts = PortRange{Low: 1024, High: 65535}

func (n *natPatient) useAllPorts() NATCure {
	r := n.report.Settings.PortRange
	return NATCure{Cure: Cure{
		Title:     "Let NAT use all ports",
		Sentence:  fmt.Sprintf("--snat.port-range says that the rule names the ports %d-%d. Let it name none, and leave the flag out: then the kernel has %d-%d.", r.Low, r.High, natPorts.Low, natPorts.High),
		Now:       n.now,
		Then:      n.outlook(natPorts.Size(), n.report.Settings),
		Condition: "The rule has no need of its range.",
	}}
}

func (n *natPatient) moreAddresses() NATCure {
	if n.oneClient() {
		return NATCure{} // it would get the ports of one address still
	}
	c := n.morePools("More translated addresses")
	c.Sentence = fmt.Sprintf("With at least %d more in the rule, less than half of the ports are in use.", c.N)
	c.Condition = "Many clients have about the same traffic: each gets the ports of one address only."
	return c
}

func (n *natPatient) moreDestinations() NATCure {
	c := n.morePools("More destination addresses or ports")
	c.Sentence = fmt.Sprintf("With at least %d more, less than half of the ports are in use.", c.N)
	c.Condition = "Clients use all of them alike."
	return c
}

// morePools returns a cure that adds pools, so many that less than half of all ports are in use.
func (n *natPatient) morePools(title string) NATCure {
	more := max(2*n.used/n.report.CapacityPorts, 1)
	return NATCure{Cure: Cure{Title: title, N: more, Now: n.now, Then: n.outlook((1+more)*n.report.CapacityPorts, n.report.Settings)}}
}

// Timeouts that are short enough to help, and long enough for most: answers over UDP come within 10 s,
// and Linux itself keeps TIME_WAIT for 60 s.
const (
	shortUDP         = 10 * time.Second
	shortTCPTimeWait = 60 * time.Second
)

func (n *natPatient) shorterTimeout() NATCure {
	s := n.report.Settings
	c := Cure{Title: "Shorter timeouts of connection tracking", Now: n.now}
	switch {
	case !n.treats(n.closed):
		return NATCure{}
	case n.pool.Protocol == UDP:
		c.Sentence = fmt.Sprintf("A single exchange then holds its port for %.0f s instead of %.0f s.", shortUDP.Seconds(), s.UDP.Seconds())
		c.Command = fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_udp_timeout=%.0f", shortUDP.Seconds())
		c.Condition = "Answers come within that time. It counts for flows that have a packet from then on."
		s.UDP = shortUDP
	default:
		c.Sentence = fmt.Sprintf("A closed connection then holds its port for %.0f s instead of %.0f s.", shortTCPTimeWait.Seconds(), s.TCPTimeWait.Seconds())
		c.Command = fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_tcp_timeout_time_wait=%.0f", shortTCPTimeWait.Seconds())
		c.Condition = "The ends keep TIME_WAIT no longer, as Linux does. It counts for connections that are closed from then on."
		s.TCPTimeWait = shortTCPTimeWait
	}
	c.Then = n.outlook(n.now.Ports, s)
	return NATCure{Cure: c}
}

func (n *natPatient) newerKernel() NATCure {
	s := n.report.Settings
	if n.pool.Protocol != TCP || !n.treats(n.closed) {
		return NATCure{}
	}
	s.TakesOver = true
	return NATCure{Cure: Cure{
		Title:    "A kernel that takes over closed flows",
		Sentence: "Since Linux 6.5, new connections get the ports of closed ones.",
		Now:      n.now, Then: n.outlook(n.now.Ports, s),
	}}
}

// keepAlive has the ceiling count requests, where each connection has one now.
func (n *natPatient) keepAlive() NATCure {
	if n.pool.Protocol != TCP || !n.treats(n.closed) {
		return NATCure{}
	}
	const requests = 10
	return NATCure{Cure: Cure{
		Title:    "Keep connections alive",
		Sentence: fmt.Sprintf("Let clients send %d requests on each connection.", requests), N: requests,
		Now: n.now, Then: Outlook{n.now.Ports, n.now.Ceiling * requests},
		Condition: "The destination keeps connections open, too.",
	}}
}

func (n *natPatient) withoutTranslation() NATCure {
	if !isPrivate(n.pool.Address.Addr()) {
		return NATCure{}
	}
	return NATCure{
		Cure: Cure{
			Title:     "Do not translate inside the network",
			Sentence:  fmt.Sprintf("%v is a private address. Leave it out of the rule.", n.pool.Address.Addr()),
			Now:       n.now,
			Then:      Outlook{n.now.Ports, math.Inf(1)},
			Condition: "It has a route back to the clients.",
		},
		NoPort: true,
	}
}

// isPrivate reports whether an address is of RFC 1918, RFC 4193, or of RFC 6598, which providers and clusters
// use inside.
func isPrivate(a netip.Addr) bool {
	return a.IsPrivate() || netip.MustParsePrefix("100.64.0.0/10").Contains(a)
}

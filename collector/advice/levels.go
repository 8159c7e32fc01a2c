package advice

import (
	"cmp"
	"math"
	"slices"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
)

// A Level says how bad things are.
type Level int

// The levels. What is not known may be worse than a warning, but hides nothing that is known to be.
const (
	Calm      Level = iota
	Warning         // half of the ports are in use, closes near the ceiling, failed connects, or leaks
	Unknown         // something that can be critical could not be read, or it does not tell how bad
	Critical        // most ports are in use, closes at the ceiling, or ports run out within minutes
	Exhausted       // connect() fails, or can fail at any moment
)

// String returns the name that all formats use.
func (l Level) String() string {
	return [...]string{"calm", "warning", "unknown", "critical", "exhausted"}[l]
}

// A Kind says what a Threshold is about.
type Kind string

// The kinds.
const (
	Destination Kind = "destination" // a pool.Destination
	Unreported  Kind = "unreported"  // the worst destination, if the limits leave it out
	BoundPorts  Kind = "bound"       // the ports of a namespace that are bound, so that no plain connect() gets them
	Source      Kind = "source"      // a pool.Source whose clients bind before they connect
	UDPPool     Kind = "udp"         // a pool.UDPPool
	SNATPool    Kind = "snat"        // a snat.Pool
	Conntrack   Kind = "conntrack"   // the flows that connection tracking has
	TimeWait    Kind = "time_wait"   // the sockets in TIME_WAIT of a namespace, of which some were too many
)

// A Quantity is what a Threshold compares.
type Quantity string

// The quantities.
const (
	Utilization   Quantity = "utilization"    // of the ports; of Conntrack and TimeWait, as a share of the limit
	Possible      Quantity = "possible"       // utilization at most, as far as is known, if that is worse than all else
	Load          Quantity = "load"           // closes per second, as a share of the ceiling
	Exhaustion    Quantity = "exhaustion"     // seconds until the ports run out; reached below the threshold
	MayExhaust    Quantity = "may_exhaust"    // the same, if it is not sure: of a burst, or of a rate that has only begun to rise
	Failures      Quantity = "failures"       // connects that failed because no port was free
	InCloseWait   Quantity = "close_wait"     // ports in CLOSE_WAIT, as a share of the capacity
	InSynSent     Quantity = "syn_sent"       // ports in SYN_SENT, as a share of the capacity
	MostSynSent   Quantity = "most_syn_sent"  // ports in SYN_SENT, as a share of those that are not in TIME_WAIT, if they are many
	MayRise       Quantity = "may_rise"       // utilization, if open connections may be on the rise and nothing else is reached
	MayShare      Quantity = "may_share"      // utilization, if bind() may take ports in use too: it depends on SO_REUSEADDR
	Overflows     Quantity = "overflows"      // connections that skipped TIME_WAIT lately
	SearchFailure Quantity = "search_failure" // share of the searches for a port that find none
	NotKnown      Quantity = "not_known"      // 1 if the utilization is not known
)

// A Threshold is a value from which on something is wrong.
type Threshold struct {
	Kind  Kind
	Of    Quantity
	At    float64
	Level Level

	// Alert is the alert of deploy/prometheus/rules.yml that fires there, with a chapter of that name in the
	// runbook. It is empty if the level begins before an alert.
	Alert string
}

// nearCeiling is the share of the ceiling from which on closes are too many.
const nearCeiling = 0.8

// thresholds are all thresholds, those of one quantity from the worst on. Up to half of the ports, connect() finds
// a free one at once. For a UDP socket, the kernel searches from a random port on, so that it finds one within
// microseconds up to 90% of a usual range.
var thresholds = [...]Threshold{
	{Destination, Utilization, 0.98, Exhausted, "EphemeralPortsExhausted"},
	{Destination, Utilization, 0.8, Critical, "EphemeralPortsNearlyExhausted"},
	{Destination, Utilization, 0.5, Warning, "EphemeralPortsHalfUsed"},
	{Destination, Possible, 0.8, Unknown, "EphemeralPortsPossiblyExhausted"}, // also of one that the limits leave out
	{Destination, Possible, 0.5, Warning, ""},
	{Destination, Load, 0.9, Critical, "EphemeralPortsRateNearCeiling"},
	{Destination, Load, nearCeiling, Warning, ""},
	{Destination, Exhaustion, 600, Critical, "EphemeralPortsExhaustionPredicted"},
	{Destination, MayExhaust, 600, Warning, ""},
	{Destination, Failures, 1, Warning, "EphemeralPortsConnectFailing"},
	{Destination, InCloseWait, 0.2, Warning, "EphemeralPortsCloseWait"},
	{Destination, InSynSent, 0.2, Warning, "EphemeralPortsSynSent"},
	{Destination, MostSynSent, 0.5, Warning, "EphemeralPortsSynSent"},
	{Destination, MayRise, 0.3, Calm, "EphemeralPortsOpenConnectionsRise"}, // one scan shows no trend

	{Unreported, Utilization, 0.8, Critical, "EphemeralPortsWorstUnreported"},
	{Unreported, Utilization, 0.5, Warning, ""},

	{BoundPorts, Utilization, 0.98, Exhausted, "EphemeralPortsAllBound"},
	{BoundPorts, Utilization, 0.8, Critical, "EphemeralPortsNearlyAllBound"},
	{BoundPorts, Utilization, 0.5, Warning, "EphemeralPortsHalfBound"},

	{Source, Utilization, 0.8, Critical, "EphemeralPortsSourceNearlyExhausted"},
	{Source, Utilization, 0.5, Warning, ""},
	{Source, MayShare, 0.8, Warning, ""},

	{UDPPool, Utilization, 0.98, Exhausted, "EphemeralPortsUDPExhausted"},
	{UDPPool, Utilization, 0.8, Critical, "EphemeralPortsUDPNearlyExhausted"},

	{SNATPool, Utilization, 0.98, Exhausted, "EphemeralPortsSNATExhausted"},
	{SNATPool, Utilization, 0.8, Critical, "EphemeralPortsSNATNearlyExhausted"},
	{SNATPool, Utilization, 0.5, Warning, "EphemeralPortsSNATHalfUsed"},
	{SNATPool, SearchFailure, 0.1, Exhausted, "EphemeralPortsSNATExhausted"},
	{SNATPool, SearchFailure, 0.01, Critical, "EphemeralPortsSNATNearlyExhausted"},
	{SNATPool, NotKnown, 1, Unknown, "EphemeralPortsSNATPortRange"},

	{Conntrack, Utilization, 0.9, Critical, "EphemeralPortsConntrackNearlyFull"},

	{TimeWait, Overflows, 1, Warning, "EphemeralPortsTimeWaitOverflow"},
	{TimeWait, Utilization, 0.5, Warning, "EphemeralPortsTimeWaitOverflow"},
}

// Thresholds returns all thresholds.
func Thresholds() []Threshold { return slices.Clone(thresholds[:]) }

// Reached are the thresholds that something has reached, at most one of each quantity, the worst level first.
type Reached []Threshold

// Level returns the worst level. It is Calm if no threshold is reached, or only one that is a hint.
func (r Reached) Level() Level {
	if len(r) == 0 {
		return Calm
	}
	return r[0].Level
}

// Alerts returns the alerts about these, each once.
func (r Reached) Alerts() []string {
	var names []string
	for _, t := range r {
		if t.Alert != "" && !slices.Contains(names, t.Alert) {
			names = append(names, t.Alert)
		}
	}
	return names
}

// Has reports whether a threshold of one of the quantities is reached.
func (r Reached) Has(of ...Quantity) bool {
	return slices.ContainsFunc(r, func(t Threshold) bool { return slices.Contains(of, t.Of) })
}

// reached returns the thresholds that are reached by these values.
func reached(kind Kind, values map[Quantity]float64) Reached {
	var all Reached
	for _, t := range thresholds {
		value, known := values[t.Of]
		if t.Kind == kind && known && t.reachedBy(value) && !all.Has(t.Of) {
			all = append(all, t)
		}
	}
	slices.SortStableFunc(all, func(a, b Threshold) int { return cmp.Compare(b.Level, a.Level) })
	return all
}

// reachedBy reports whether a value reaches the threshold.
func (t Threshold) reachedBy(value float64) bool {
	if t.Of == Exhaustion || t.Of == MayExhaust {
		return value < t.At
	}
	return value >= t.At
}

// ReachedTCP returns what a destination of the report has reached. failing says that connects to it fail because
// no port is free.
func ReachedTCP(r *pool.Report, d *pool.Destination, failing bool) Reached {
	values := map[Quantity]float64{Utilization: d.Utilization, Load: LoadOf(d), Exhaustion: d.SureExhaustion}
	if math.IsInf(d.SureExhaustion, 1) {
		values[MayExhaust] = d.Exhaustion
	}
	if failing {
		values[Failures] = 1
	}
	if r.CapacityPorts > 0 {
		values[InCloseWait] = float64(portsIn(d, tcpstate.CloseWait)) / float64(r.CapacityPorts)
		values[InSynSent] = float64(portsIn(d, tcpstate.SynSent)) / float64(r.CapacityPorts)
	}
	if n := portsIn(d, tcpstate.SynSent); n >= pool.ManySynSent {
		values[MostSynSent] = float64(n) / float64(openPorts(d))
	}
	// To fire, the alert takes 5 minutes of a rise that leads to 1 within 10.
	if u := d.Utilization; 2*float64(openPorts(d)) >= (1-u)*float64(r.CapacityPorts) {
		values[MayRise] = u
	}
	all := reached(Destination, values)
	if possible := reachedPossible(d.PossibleUtilization); possible.Level() > all.Level() {
		all = append(possible, all...)
	}
	if all.Level() > Calm {
		return slices.DeleteFunc(all, func(t Threshold) bool { return t.Of == MayRise })
	}
	return all
}

// reachedPossible returns what a destination has reached that possibly has this utilization.
func reachedPossible(utilization float64) Reached {
	return reached(Destination, map[Quantity]float64{Possible: utilization})
}

// openPorts returns how many ports of a destination are not in TIME_WAIT.
func openPorts(d *pool.Destination) int { return d.Held - portsIn(d, tcpstate.TimeWait) }

// LoadOf returns closes per second as a share of the ceiling: at 1 the ports run out. It is 0 where open connections
// leave no port, as utilization tells that.
func LoadOf(d *pool.Destination) float64 {
	if d.Ceiling == 0 {
		return 0
	}
	return d.CloseRate / d.Ceiling
}

// portsIn returns how many ports of a destination are in a state.
func portsIn(d *pool.Destination, state tcpstate.State) int {
	return d.Ports[slices.Index(pool.States[:], state)]
}

// ReachedUnreported returns what the worst destination has reached, if it has no series. Where bound
// ports alone reach as much, it returns nothing: every destination lacks these, and no limit hides the cause.
func ReachedUnreported(r *pool.Report) Reached {
	var all Reached
	if len(r.Destinations) == 0 || r.Destinations[0].Unreported || r.Destinations[0].Utilization < r.MaxUtilization {
		all = reached(Unreported, map[Quantity]float64{Utilization: r.MaxUtilization})
	}
	if all.Level() <= ReachedBound(r).Level() {
		all = nil
	}
	worst := max(all.Level(), ReachedBound(r).Level())
	for i := range r.Destinations {
		if d := &r.Destinations[i]; !d.Unreported {
			worst = max(worst, ReachedTCP(r, d, false).Level())
		}
	}
	if possible := reachedPossible(r.MaxPossibleUtilization); possible.Level() > worst {
		all = append(possible, all...)
	}
	return all
}

// ReachedBound returns what the bound ports of a namespace have reached.
func ReachedBound(r *pool.Report) Reached {
	if !r.BoundKnown || r.CapacityPorts == 0 {
		return nil
	}
	return reached(BoundPorts, map[Quantity]float64{Utilization: float64(r.BoundPorts) / float64(r.CapacityPorts)})
}

// ReachedPossiblyBound returns what the ports of a namespace that may be bound have reached, if that is worse than what is
// known of them.
func ReachedPossiblyBound(r *pool.Report) Reached {
	all := reachedPossible(float64(r.BoundPorts+r.BoundUnknown) / float64(max(r.CapacityPorts, 1)))
	if all.Level() <= ReachedBound(r).Level() {
		return nil
	}
	return all
}

// ReachedSource returns what a source of the report has reached whose clients bind before they connect.
func ReachedSource(r *pool.Report, s *pool.Source) Reached {
	if r.Settings.AutobindReuse {
		return reached(Source, map[Quantity]float64{MayShare: s.Utilization})
	}
	return reached(Source, map[Quantity]float64{Utilization: s.Utilization})
}

// ReachedUDP returns what a pool of UDP ports has reached.
func ReachedUDP(p *pool.UDPPool) Reached {
	return reached(UDPPool, map[Quantity]float64{Utilization: p.Utilization})
}

// ReachedSNAT returns what a pool of source NAT has reached.
func ReachedSNAT(p *snat.Pool) Reached {
	if !p.Known() {
		return reached(SNATPool, map[Quantity]float64{NotKnown: 1})
	}
	return reached(SNATPool, map[Quantity]float64{Utilization: p.Utilization, SearchFailure: p.SearchFailure})
}

// ReachedUnreportedSNAT returns what the worst pool of source NAT that limits leave out has reached, if none of the report
// is as bad.
func ReachedUnreportedSNAT(r *snat.Report) Reached {
	all := reached(SNATPool, map[Quantity]float64{Utilization: r.UnreportedMaxUtilization})
	for i := range r.Pools {
		if ReachedSNAT(&r.Pools[i]).Level() >= all.Level() {
			return nil
		}
	}
	return all
}

// ReachedConntrack returns what connection tracking has reached whose flows are this share of their limit.
func ReachedConntrack(share float64) Reached {
	return reached(Conntrack, map[Quantity]float64{Utilization: share})
}

// ReachedTimeWait returns what the sockets in TIME_WAIT of a namespace have reached. While it is not known whether some
// skipped it lately, it does if some ever did and their number is high: at the limit it swings, because many are freed at
// once.
func ReachedTimeWait(t TimeWaitSockets) Reached {
	switch {
	case t.Window > 0:
		return reached(TimeWait, map[Quantity]float64{Overflows: float64(t.Recent)})
	case t.Overflows > 0:
		return reached(TimeWait, map[Quantity]float64{Utilization: float64(t.Sockets) / float64(max(t.Limit, 1))})
	default:
		return nil
	}
}

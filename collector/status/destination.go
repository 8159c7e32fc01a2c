package status

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// A destination is a pool of ports of TCP, as the page shows it.
type destination struct {
	pool      *pool.Destination
	namespace *scan.Namespace
	traced    traced
	reached   advice.Reached
	owners    []scan.Owner // control groups that hold its ports, those with most first
	who       who
	advice    *advice.Advice // nil unless it is in danger
	past      *past          // nil if nothing is remembered

	Level                  level
	Address, Source, Netns string
	Cures                  []cure
}

// newDestination returns a destination, with what is traced of its pool.
func newDestination(s *scan.Snapshot, n *scan.Namespace, d *pool.Destination, t traced, c cleaner) *destination {
	owners, failing := s.Resolve(d.Owners), t.failures > 0
	row := &destination{
		pool: d, namespace: n, traced: t, owners: owners, advice: advice.TCP(&n.TCP.Report, d, failing),
		Address: d.Address.String(), Source: d.Source.String(), Netns: c.name(n.Name), who: newWho(d, owners, t, s.Trace, c),
	}
	row.reached = advice.ReachedTCP(&n.TCP.Report, d, failing)
	row.Level = row.reached.Level()
	row.Cures = newCures(n, row.advice, "Ports")
	return row
}

// addDestinations adds the destinations of a namespace.
func (p *page) addDestinations(s *scan.Snapshot, n *scan.Namespace, t tracedPools, c cleaner) {
	for i := range n.TCP.Report.Destinations {
		d := &n.TCP.Report.Destinations[i]
		traced := t.take(n.Name, d.Source, d.Address)
		if p.View.has(d.Address) {
			row := newDestination(s, n, d, traced, c)
			row.past = p.pastOf(history.OfTCP(n, d), s, row.Level)
			p.Destinations = append(p.Destinations, row)
		}
	}
}

// used returns the utilization, or what it is at least and at most.
func (d *destination) used() string {
	return percentRange(d.pool.Utilization, d.pool.PossibleUtilization)
}

// problem returns what is wrong with a destination, as the end of a sentence that begins with its
// address.
func (d *destination) problem() string {
	switch p := d.pool; {
	case d.reached.Has(advice.Possible):
		return "has " + percent(p.Utilization) + " or " + percent(p.PossibleUtilization) + " of its ports in use: " + advice.Doubt(p.MayBeBound, p.MayBeHeld, p.TimestampsShare > 0)
	case p.Utilization >= 1:
		return "is out of ports"
	case d.Level == exhausted:
		return "has " + percent(p.Utilization) + " of its ports in use: connect() can fail at any moment"
	case d.reached.Has(advice.Exhaustion):
		return "runs out of ports in " + seconds(p.SureExhaustion)
	case d.reached.Has(advice.MayExhaust):
		return "has " + percent(p.Utilization) + " of its ports in use, and may run out in " + seconds(p.Exhaustion) + ": this is a burst of closes, or the start of a rise"
	case d.reached.Has(advice.Utilization):
		return "has " + percent(p.Utilization) + " of its ports in use"
	case d.reached.Has(advice.Load):
		return "closes at " + percent(advice.LoadOf(p)) + " of its ceiling"
	case d.reached.Has(advice.Failures):
		return "had " + connects(d.traced.failures) + " that failed, the last within 15 minutes"
	case d.reached.Has(advice.InCloseWait):
		return "has many connections that an application has not closed"
	default:
		return "does not answer many attempts to connect"
	}
}

// worstFirst orders destinations: by level, then by the time that is left, then by utilization.
func worstFirst(a, b *destination) int {
	return cmp.Or(
		cmp.Compare(b.Level, a.Level), cmp.Compare(a.pool.SureExhaustion, b.pool.SureExhaustion), cmp.Compare(a.pool.Exhaustion, b.pool.Exhaustion),
		cmp.Compare(b.pool.Utilization, a.pool.Utilization), cmp.Compare(b.pool.Held, a.pool.Held),
		a.pool.Address.Compare(b.pool.Address), a.pool.Source.Compare(b.pool.Source), cmp.Compare(a.Netns, b.Netns),
	)
}

// destinationKinds are the kinds of segments of destinations. Those up to bound are the utilization.
var destinationKinds = legend{
	{"open", 'o', "open", "open: established"},
	{"syn-sent", 's', "syn_sent", "syn_sent: the destination has not answered yet"},
	{"close-wait", 'w', "close_wait", "close_wait: the application has not closed"},
	{"closing", 'c', "closing", "closing: fin_wait, last_ack, closing"},
	{"time-wait", 't', "time_wait", "time_wait"},
	{"bound", 'b', "bound by others", "bound by other clients"},
	{"reusable", 'r', "reusable", "time_wait that connect() may take over"},
}

// kindOf returns the kind of the ports in a state.
func kindOf(s tcpstate.State) string {
	switch s {
	case tcpstate.Established, tcpstate.SynRecv:
		return "open"
	case tcpstate.SynSent:
		return "syn-sent"
	case tcpstate.CloseWait:
		return "close-wait"
	case tcpstate.TimeWait:
		return "time-wait"
	default:
		return "closing"
	}
}

// bar returns the bar of a destination.
func (d *destination) bar() []segment {
	ports := map[string]int{"bound": d.pool.BoundByOthers, "reusable": d.pool.Reusable}
	for i, state := range pool.States {
		ports[kindOf(state)] += d.pool.Ports[i]
	}
	ports["time-wait"] -= d.pool.Reusable
	return destinationKinds.bar(ports, d.namespace.TCP.Report.CapacityPorts)
}

// destinationTable shows the destinations.
func (p *page) destinationTable(s *scan.Snapshot) table {
	t := table{
		ID: "destinations", Title: "Destinations, worst first",
		About:  "Full in: until no port is free at the present rate of closes; ? if that rate is so new that it may be a burst; - if the ports suffice.",
		Legend: destinationKinds,
		Columns: []column{
			{"Destination", "DESTINATION", 23, addresses}, {"Source", "SOURCE", 17, addresses}, {"Namespace", "NETNS", 14, words}, {"Ports in use", "USED", 7, bars},
			{"Closes/s", "CLOSES/S", 10, numbers}, {"Ceiling/s", "CEILING/S", 11, numbers}, {"Full in", "FULL IN", 9, numbers},
		},
	}
	if p.Counts {
		t.Columns = append(t.Columns, column{"Failed connects", "FAILED", 10, numbers})
	}
	more, unlisted, ports, alerts := 0, 0, 0, []string(nil)
	for i := range s.Namespaces {
		r := &s.Namespaces[i].TCP.Report
		more += r.UnreportedDestinations
		unlisted += r.Unlisted()
		ports += r.AllUnreported()
		if 2*r.AllUnreported() > r.CapacityPorts {
			alerts = []string{"EphemeralPortsUnreported"}
		}
	}
	if more > 0 {
		t.More = []finding{aside(leftOut(more, "destination", ports, unlisted), alerts...)}
	}
	for _, d := range p.Destinations {
		cells := append([]cell{{Text: d.Address, Link: View{Format: HTML, Destination: d.pool.Address}.URL()}}, cells(
			d.Source, d.Netns, d.used(), rate(d.pool.CloseRate), rate(d.pool.Ceiling), d.forecast())...)
		cells[3].Bar = d.bar()
		cells[4].Over = d.reached.Has(advice.Load)
		if p.Counts {
			cells = append(cells, cell{Text: strconv.FormatUint(d.traced.failures, 10)})
		}
		t.Rows = append(t.Rows, row{Level: d.Level, Cells: cells, Owners: d.who.InRow, Details: d.details(), Past: d.past})
	}
	return t
}

// forecast writes when the ports run out at the present rate.
func (d *destination) forecast() string {
	const day = 24 * 3600.
	switch p := d.pool; {
	case p.Utilization >= 1:
		return "now"
	case p.SureExhaustion < day:
		return seconds(p.SureExhaustion)
	case p.Exhaustion < day:
		return seconds(p.Exhaustion) + "?"
	default:
		return "-"
	}
}

// details tell what holds the ports of a destination, what helps, and how to see it.
func (d *destination) details() *details {
	more := &details{
		Key: d.Netns + " " + d.Source + " " + d.Address, Title: d.Source + " to " + d.Address + " in " + d.Netns,
		Sentences: slices.Concat(d.who.Sentences, d.sentences()), Cures: d.Cures, Alerts: d.reached.Alerts(), Commands: destinationCommands(d.namespace, d.pool),
	}
	var states []stateCount
	for i, state := range pool.States {
		states = append(states, stateCount{state.String(), d.pool.Ports[i]})
	}
	more.Summary = summary(states, d.pool.Reusable)
	if d.advice != nil {
		more.Sentences = append(more.Sentences, d.advice.Diagnosis)
	}
	if more.Commands == nil {
		more.Sentences = append(more.Sentences, enterFirst(d.namespace))
	}
	return more
}

// sentences say what holds the ports of a destination.
func (d *destination) sentences() []string {
	p, capacity := d.pool, d.namespace.TCP.Report.CapacityPorts
	ports := fmt.Sprintf("Of %d ports, connections to this destination hold %d", capacity, p.Held)
	most := max(capacity-(p.Held-p.Reusable)-p.BoundByOthers, 0)
	free := fmt.Sprintf(" %d are free", most)
	if doubt := p.MayBeBound + p.MayBeHeld; doubt > 0 {
		free = fmt.Sprintf(" %d to %d are free", max(most-doubt, 0), most)
	}
	if p.Reusable > 0 {
		ports += fmt.Sprintf(", of which connect() may take over %d", p.Reusable)
		free += ", those included"
	}
	if p.BoundByOthers > 0 {
		ports += fmt.Sprintf(". Other clients have bound %d more", p.BoundByOthers)
	}
	sentences := []string{ports + "." + free + "."}
	switch p.Timestamps {
	case pool.Yes:
		sentences = append(sentences, "The peer uses TCP timestamps.")
	case pool.No:
		sentences = append(sentences, "The peer does not use TCP timestamps: its ports in TIME_WAIT are never reusable.")
	default:
		if p.TimestampsShare > 0 {
			sentences = append(sentences, fmt.Sprintf("Of the connections that were asked lately, %.2g%% use TCP timestamps: only their ports in TIME_WAIT are ever reusable.", 100*p.TimestampsShare))
		}
	}
	return sentences
}

// lacksBound reports whether a destination without series is in danger because of ports that are bound or may be, and holds few itself:
// every destination is then, and other findings say so.
func (d *destination) lacksBound() bool {
	return d.pool.Unreported && d.pool.BoundByOthers+d.pool.MayBeBound > d.pool.Held &&
		!slices.ContainsFunc(d.reached, func(t advice.Threshold) bool {
			return t.Level > calm && t.Of != advice.Utilization && t.Of != advice.Possible
		})
}

// judgeDestinations finds the worst destination, if it is in danger.
func (p *page) judgeDestinations() {
	var worst *destination
	inDanger := 0
	for _, d := range p.Destinations {
		if d.Level > calm && !d.lacksBound() {
			inDanger++
			worst = cmp.Or(worst, d)
		}
	}
	if inDanger > 0 {
		p.find(worst.Level, worst.reached.Alerts(), "%s in danger: %s %s%s.%s", plural(inDanger, "destination", "destinations"), worst.Address, worst.problem(), worst.blame(), worst.past.sentence())
	}
}

type documentDestination struct {
	Netns       string          `json:"netns"`
	Source      string          `json:"source_ip"`
	Destination string          `json:"destination_ip"`
	Port        uint16          `json:"destination_port"`
	Level       string          `json:"level"`
	Utilization float64         `json:"utilization_ratio"`
	Possible    *float64        `json:"possible_utilization_ratio,omitempty"`
	Ports       map[string]int  `json:"ports"`
	Reusable    int             `json:"reusable_ports"`
	Unsure      int             `json:"reusable_unknown_ports,omitempty"`
	Bound       int             `json:"bound_by_others_ports"`
	Closes      float64         `json:"closes_per_second"`
	Ceiling     float64         `json:"ceiling_requests_per_second"`
	Exhaustion  *float64        `json:"exhaustion_seconds,omitempty"`
	Sure        *float64        `json:"sure_exhaustion_seconds,omitempty"`
	Timestamps  *bool           `json:"timestamps,omitempty"`
	Share       float64         `json:"timestamps_share_ratio,omitempty"`
	Failures    *uint64         `json:"connect_failures,omitempty"`
	Owners      []documentOwner `json:"owners,omitempty"`
	Diagnosis   string          `json:"diagnosis,omitempty"`
	Cures       []documentCure  `json:"cures,omitempty"`
	*documentPast

	WhatIf []documentWhatIf `json:"what_if,omitempty"`
}

func newDocumentDestination(row *destination, counts bool) documentDestination {
	d := row.pool
	doc := documentDestination{
		Netns: row.namespace.Name, Source: d.Source.String(), Destination: d.Address.Addr().String(), Port: d.Address.Port(),
		Level: row.Level.String(), Utilization: d.Utilization, Possible: above(d.PossibleUtilization, d.Utilization), Ports: portsByState(d.Ports), Reusable: d.Reusable, Unsure: d.ReusableUnknown, Bound: d.BoundByOthers,
		Closes: d.CloseRate, Ceiling: d.Ceiling, Exhaustion: finite(d.Exhaustion), Sure: finite(d.SureExhaustion), Share: d.TimestampsShare, Owners: newDocumentOwners(row.owners), documentPast: newDocumentPast(row.past, row.Level),
	}
	if d.Timestamps != pool.Unknown {
		yes := d.Timestamps == pool.Yes
		doc.Timestamps = &yes
	}
	if counts {
		doc.Failures = &row.traced.failures
	}
	if row.advice != nil {
		doc.Diagnosis = row.advice.Diagnosis
		doc.Cures = newDocumentCures(row.Cures, row.advice)
	}
	return doc
}

// portsByState returns ports in the order of pool.States by the names of these.
func portsByState(ports [len(pool.States)]int) map[string]int {
	byState := map[string]int{}
	for i, state := range pool.States {
		byState[state.String()] = ports[i]
	}
	return byState
}

package pool

import (
	"cmp"

	"ephemeral_port_exporter/collector/internal/limit"
)

// Limits bound the size of a Report: of its destinations, and of its sources.
type Limits = limit.Limits

// byDanger orders destinations: the greatest utilization first, then most ports, then by
// address. So what a tenant with many ports holds does not hide a small pool that is nearly full.
func byDanger(a, b Destination) int {
	return cmp.Or(
		cmp.Compare(b.Utilization, a.Utilization), cmp.Compare(b.Held, a.Held),
		a.Source.Compare(b.Source), a.Address.Compare(b.Address),
	)
}

// sourceByDanger orders sources: the greatest utilization first, then most ports, then by address.
func sourceByDanger(a, b Source) int {
	return cmp.Or(cmp.Compare(b.Utilization, a.Utilization), cmp.Compare(b.Ports, a.Ports), a.Address.Compare(b.Address))
}

// ShareLimit bounds several reports together: most is the limit for all their destinations,
// and for all their sources. It keeps those in most danger and counts the others as unreported.
// Unless most is 0, each report keeps its first, so that no namespace hides another: there can be
// as many as reports, even if these are more than most. The reports must be those of Table.Report.
func ShareLimit(reports []*Report, most int) {
	destinations := func(r *Report) []Destination { return r.Destinations }
	for i, n := range limit.Shares(reports, most, destinations, byDanger) {
		reports[i].keepDestinations(n)
	}
	sources := func(r *Report) []Source { return r.Sources }
	for i, n := range limit.Shares(reports, most, sources, sourceByDanger) {
		reports[i].keepSources(n)
	}
}

// keepDestinations leaves out all destinations but the first n.
func (r *Report) keepDestinations(n int) {
	for _, d := range r.Destinations[n:] {
		r.leaveOut(d.Ports)
	}
	r.Destinations = r.Destinations[:n]
}

// leaveOut counts an unreported destination that holds these ports.
func (r *Report) leaveOut(ports [len(States)]int) {
	r.UnreportedDestinations++
	for i, n := range ports {
		r.UnreportedPorts[i] += n
	}
}

// AllUnreported returns the sum of UnreportedPorts.
func (r *Report) AllUnreported() (sum int) {
	for _, n := range r.UnreportedPorts {
		sum += n
	}
	return sum
}

// keepSources leaves out all sources but the first n.
func (r *Report) keepSources(n int) {
	r.UnreportedSources += len(r.Sources) - n
	r.Sources = r.Sources[:n]
}

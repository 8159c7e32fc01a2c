package pool

import (
	"cmp"
	"slices"

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

// ShareLimit bounds several reports together: most is the limit for all their destinations that are reported,
// and for all their sources. It keeps those in most danger and counts the others as unreported.
// Unless most is 0, each report keeps its first, so that no namespace hides another: there can be
// as many as reports, even if these are more than most. The same holds for the destinations that are listed without being
// reported. The reports must be those of Table.Report.
func ShareLimit(reports []*Report, most int) {
	reported := 0
	for i, n := range limit.Shares(reports, most, (*Report).reported, byDanger) {
		reports[i].keepReported(n)
		reported += n
	}
	for i, n := range limit.Shares(reports, limit.Rest(most, reported), (*Report).unreported, byDanger) {
		r := reports[i]
		r.Destinations = r.Destinations[:len(r.reported())+n]
	}
	sources := func(r *Report) []Source { return r.Sources }
	for i, n := range limit.Shares(reports, most, sources, sourceByDanger) {
		reports[i].keepSources(n)
	}
}

// reported returns the destinations that are reported, which are the first.
func (r *Report) reported() []Destination {
	n := slices.IndexFunc(r.Destinations, func(d Destination) bool { return d.Unreported })
	if n < 0 {
		return r.Destinations
	}
	return r.Destinations[:n]
}

// unreported returns the others.
func (r *Report) unreported() []Destination { return r.Destinations[len(r.reported()):] }

// Unlisted returns how many destinations Destinations does not contain.
func (r *Report) Unlisted() int { return r.UnreportedDestinations - len(r.unreported()) }

// keepReported leaves only the first n destinations reported.
func (r *Report) keepReported(n int) {
	left := r.reported()[n:]
	for i := range left {
		left[i].Unreported = true
		r.leaveOut(left[i].Ports)
	}
	slices.SortFunc(r.Destinations[n:], byDanger)
}

// leaveOut counts an unreported destination that holds these ports.
func (r *Report) leaveOut(ports [len(States)]int) {
	r.UnreportedDestinations++
	for i, n := range ports {
		r.UnreportedPorts[i] += n
	}
}

// takeIn undoes leaveOut.
func (r *Report) takeIn(ports [len(States)]int) {
	r.UnreportedDestinations--
	for i, n := range ports {
		r.UnreportedPorts[i] -= n
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

package pool

import (
	"cmp"
	"slices"
)

// Limits bound the size of a Report.
type Limits struct {
	MinPorts int // a destination is reported if it holds at least this many ports
	Most     int // at most this many destinations and this many sources are reported
}

// byDanger orders destinations: the greatest utilization first, then most ports, then by
// address. So what a tenant with many ports holds does not hide a small pool that is nearly full.
func byDanger(a, b Destination) int {
	return cmp.Or(
		cmp.Compare(b.Utilization, a.Utilization), cmp.Compare(b.Held, a.Held),
		a.Source.Compare(b.Source), a.Address.Compare(b.Address),
	)
}

// sourceByDanger orders sources likewise.
func sourceByDanger(a, b Source) int {
	return cmp.Or(cmp.Compare(b.Utilization, a.Utilization), cmp.Compare(b.Ports, a.Ports), a.Address.Compare(b.Address))
}

// ShareLimit bounds several reports together: most is the limit for all their destinations,
// and for all their sources. It keeps those in most danger and counts the others as unreported.
// Unless most is 0, each report keeps its first, so that no namespace hides another: there can be
// as many as reports, even if these are more than most. The reports must be those of Table.Report.
func ShareLimit(reports []*Report, most int) {
	destinations := func(r *Report) []Destination { return r.Destinations }
	for i, n := range sharesOf(reports, most, destinations, byDanger) {
		reports[i].keepDestinations(n)
	}
	sources := func(r *Report) []Source { return r.Sources }
	for i, n := range sharesOf(reports, most, sources, sourceByDanger) {
		reports[i].keepSources(n)
	}
}

// sharesOf returns how many items each report keeps of one of its lists, which are ordered.
func sharesOf[R, T any](reports []*R, most int, list func(*R) []T, order func(a, b T) int) []int {
	type place struct{ report, index int }
	shares := make([]int, len(reports))
	var rest []place // all but the first of each
	quota := most
	for i, r := range reports {
		if n := len(list(r)); n > 0 && most > 0 {
			shares[i] = 1
			quota--
		}
		for j := shares[i]; j < len(list(r)); j++ {
			rest = append(rest, place{i, j})
		}
	}
	// Stable, so that what each report keeps is the beginning of its list.
	slices.SortStableFunc(rest, func(a, b place) int {
		return order(list(reports[a.report])[a.index], list(reports[b.report])[b.index])
	})
	for _, p := range rest[:min(max(quota, 0), len(rest))] {
		shares[p.report]++
	}
	return shares
}

// keepDestinations leaves out all destinations but the first n.
func (r *Report) keepDestinations(n int) {
	for _, d := range r.Destinations[n:] {
		r.UnreportedDestinations++
		r.UnreportedPorts += d.Held
	}
	r.Destinations = r.Destinations[:n]
}

// keepSources leaves out all sources but the first n.
func (r *Report) keepSources(n int) {
	r.UnreportedSources += len(r.Sources) - n
	r.Sources = r.Sources[:n]
}

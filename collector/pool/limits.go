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

// ShareLimit bounds several reports together: most is the limit for all their destinations,
// and for all their sources. It keeps those that hold most ports and removes the others.
// Destinations that it removes are counted as unreported.
func ShareLimit(reports []*Report, most int) {
	var held, ports []int
	for _, r := range reports {
		for _, d := range r.Destinations {
			held = append(held, d.Held)
		}
		for _, src := range r.Sources {
			ports = append(ports, src.Ports)
		}
	}
	destinations, sources := newThreshold(held, most), newThreshold(ports, most)
	for _, r := range reports {
		r.Destinations = slices.DeleteFunc(r.Destinations, func(d Destination) bool {
			if destinations.accept(d.Held) {
				return false
			}
			r.UnreportedDestinations++
			r.UnreportedPorts += d.Held
			return true
		})
		r.Sources = slices.DeleteFunc(r.Sources, func(s Source) bool { return !sources.accept(s.Ports) })
	}
}

// A threshold selects the greatest of some numbers. It accepts each number above the limit.
// Of the numbers equal to the limit, it accepts as many as the quota.
type threshold struct {
	limit, quota int
}

// newThreshold returns a threshold that accepts the greatest of the numbers, at most most of
// them. No number may be negative. It sorts numbers.
func newThreshold(numbers []int, most int) threshold {
	if len(numbers) <= most {
		return threshold{limit: -1}
	}
	slices.SortFunc(numbers, func(a, b int) int { return cmp.Compare(b, a) })
	limit := numbers[most]
	quota := most
	for _, n := range numbers[:most] {
		if n > limit {
			quota--
		}
	}
	return threshold{limit: limit, quota: quota}
}

// accept reports whether n is selected. It uses up the quota: call it once for each number.
func (t *threshold) accept(n int) bool {
	if n == t.limit && t.quota > 0 {
		t.quota--
		return true
	}
	return n > t.limit
}

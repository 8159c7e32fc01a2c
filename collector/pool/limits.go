package pool

import (
	"cmp"
	"slices"
)

// Limits bound the size of a Report.
type Limits struct {
	MinPorts int // a destination is reported if it holds as many ports
	Most     int // destinations reported, and sources
}

// ShareLimit applies Limits.Most to several reports together: it keeps the destinations
// and the sources that hold most ports in all of them. The others become unreported.
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
	destinations, sources := newCut(held, most), newCut(ports, most)
	for _, r := range reports {
		r.Destinations = slices.DeleteFunc(r.Destinations, func(d Destination) bool {
			if destinations.keeps(d.Held) {
				return false
			}
			r.UnreportedDestinations++
			r.UnreportedPorts += d.Held
			return true
		})
		r.Sources = slices.DeleteFunc(r.Sources, func(s Source) bool { return !sources.keeps(s.Ports) })
	}
}

// A cut keeps the greatest of some numbers: all above a limit, and as many of the limit
// itself as there is place for.
type cut struct {
	limit, place int
}

// newCut makes a cut that keeps as many of these numbers as most says.
func newCut(numbers []int, most int) cut {
	if len(numbers) <= most {
		return cut{limit: -1}
	}
	slices.SortFunc(numbers, func(a, b int) int { return cmp.Compare(b, a) })
	limit := numbers[most]
	place := most
	for _, n := range numbers[:most] {
		if n > limit {
			place--
		}
	}
	return cut{limit: limit, place: place}
}

// keeps reports whether a number is kept. It is to be asked once for each.
func (c *cut) keeps(n int) bool {
	if n == c.limit && c.place > 0 {
		c.place--
		return true
	}
	return n > c.limit
}

// Package limit bounds how many items several reports have together.
package limit

import (
	"hash/maphash"
	"slices"
)

// Limits bound the size of a report.
type Limits struct {
	MinPorts int // an item is reported if it holds at least this many ports
	Most     int // at most this many items of a kind are reported

	// Seed is for lots among items of which all have the same right to be reported. It stays the same, so that the same
	// ones are. The zero value draws none.
	Seed maphash.Seed
}

// Shares returns how many items each report keeps of one of its lists, which are in that order, if all
// together may have that many. Unless that is 0, each report keeps its first.
func Shares[R, T any](reports []*R, most int, list func(*R) []T, order func(a, b T) int) []int {
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

// Package limit bounds how many items several reports have together.
package limit

import (
	"hash/maphash"
	"slices"
)

// Limits bound the size of a report. An item that it lists has series, or not.
type Limits struct {
	MinPorts int // an item has series if it holds at least this many ports; 0 means 0.5% of its capacity, at least 10
	Most     int // at most this many items of a kind have series

	// Seed is for lots among items of which all have the same right to be reported. It stays the same, so that the same
	// ones are. The zero value draws none.
	Seed maphash.Seed
}

// Listed is how many items are listed always, those in most danger.
const Listed = 20

// leastListed is the number of ports from which on an item is listed if there is room for it.
const leastListed = 10

// Series returns the number of ports from which on an item with this capacity has series.
func (l Limits) Series(capacity int) int {
	if l.MinPorts > 0 {
		return l.MinPorts
	}
	return max(leastListed, (capacity+199)/200)
}

// Small returns the number of ports below which an item is listed only if it is one of those in most danger.
func (l Limits) Small() int {
	if l.MinPorts > 0 {
		return min(l.MinPorts, leastListed)
	}
	return leastListed
}

// Rest returns how many items without series are listed at most, if at most this many can have series, and this many have.
func Rest(most, series int) int { return max(most-series, 0) + Listed }

// A Top has the first items of those that were added.
type Top[T any] struct {
	Items []T // in order
	Most  int // at most that many
	Order func(a, b T) int
}

// Add adds an item. It returns the one for which there is no room then, if there is one.
func (t *Top[T]) Add(item T) (left T, ok bool) {
	if len(t.Items) >= t.Most {
		if t.Most == 0 || t.Order(item, t.Items[t.Most-1]) >= 0 {
			return item, true
		}
		left, ok = t.Items[t.Most-1], true
		t.Items = t.Items[:t.Most-1]
	}
	i, _ := slices.BinarySearchFunc(t.Items, item, t.Order)
	t.Items = slices.Insert(t.Items, i, item)
	return left, ok
}

// Shares returns how many items each report keeps of one of its lists, which are in that order, if all
// together may have that many. Unless that is 0, each report keeps its first.
func Shares[R, T any](reports []*R, most int, list func(*R) []T, order func(a, b T) int) []int {
	type place struct{ report, index int }
	shares, lists := make([]int, len(reports)), make([][]T, len(reports))
	var rest []place // all but the first of each
	quota := most
	for i, r := range reports {
		lists[i] = list(r)
		if n := len(lists[i]); n > 0 && most > 0 {
			shares[i] = 1
			quota--
		}
		for j := shares[i]; j < len(lists[i]); j++ {
			rest = append(rest, place{i, j})
		}
	}
	// Stable, so that what each report keeps is the beginning of its list.
	slices.SortStableFunc(rest, func(a, b place) int {
		return order(lists[a.report][a.index], lists[b.report][b.index])
	})
	for _, p := range rest[:min(max(quota, 0), len(rest))] {
		shares[p.report]++
	}
	return shares
}

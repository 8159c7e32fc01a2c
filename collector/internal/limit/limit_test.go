package limit

import (
	"cmp"
	"slices"
	"testing"
)

// TestShares keeps the greatest numbers, the first of each list whatever the others are, and of equal ones those of
// the first lists.
func TestShares(t *testing.T) {
	lists := [][]int{{9, 5, 5, 1}, {}, {7, 6}, {2, 1}}
	for _, tt := range []struct {
		most int
		want []int
	}{
		{0, []int{0, 0, 0, 0}},
		{1, []int{1, 0, 1, 1}},
		{3, []int{1, 0, 1, 1}},
		{4, []int{1, 0, 2, 1}},
		{5, []int{2, 0, 2, 1}},
		{6, []int{3, 0, 2, 1}},
		{7, []int{4, 0, 2, 1}},
		{8, []int{4, 0, 2, 2}},
		{100, []int{4, 0, 2, 2}},
	} {
		var reports []*[]int
		for i := range lists {
			reports = append(reports, &lists[i])
		}
		got := Shares(reports, tt.most, func(r *[]int) []int { return *r }, func(a, b int) int { return cmp.Compare(b, a) })
		if !slices.Equal(got, tt.want) {
			t.Errorf("at most %d: got %v, want %v", tt.most, got, tt.want)
		}
	}
	if got := Shares(nil, 5, func(r *[]int) []int { return *r }, cmp.Compare[int]); len(got) != 0 {
		t.Errorf("no reports: got %v", got)
	}
}

// TestLimits checks from how many ports on an item has series, and from how many on it is listed if there is room.
func TestLimits(t *testing.T) {
	for _, tt := range []struct{ minPorts, capacity, series, small int }{
		{0, 28232, 142, 10},
		{0, 64512, 323, 10},
		{0, 2000, 10, 10},
		{0, 200, 10, 10},
		{0, 0, 10, 10},
		{1, 28232, 1, 1},
		{10, 28232, 10, 10},
		{5000, 28232, 5000, 10},
	} {
		l := Limits{MinPorts: tt.minPorts}
		if got := l.Series(tt.capacity); got != tt.series || l.Small() != tt.small {
			t.Errorf("%d of %d ports: series from %d ports on, small below %d, want %d and %d", tt.minPorts, tt.capacity, got, l.Small(), tt.series, tt.small)
		}
	}
	for _, tt := range []struct{ most, series, want int }{{256, 0, 276}, {256, 256, 20}, {0, 0, 20}, {1, 3, 20}} {
		if got := Rest(tt.most, tt.series); got != tt.want {
			t.Errorf("%d of %d have series: %d others are listed, want %d", tt.series, tt.most, got, tt.want)
		}
	}
}

// TestTop adds numbers in any order.
func TestTop(t *testing.T) {
	for _, most := range []int{0, 1, 20, 2000} {
		top := Top[int]{Most: most, Order: cmp.Compare[int]}
		var left []int
		for i := range 1000 {
			if item, ok := top.Add(i * 7919 % 1000); ok {
				left = append(left, item)
			}
		}
		slices.Sort(left)
		for i, got := range slices.Concat(top.Items, left) {
			if got != i {
				t.Fatalf("most %d: got %v, and %v is left", most, top.Items, left)
			}
		}
		if want := min(most, 1000); len(top.Items) != want || len(left) != 1000-want {
			t.Errorf("%d items, want %d; %d are left", len(top.Items), want, len(left))
		}
	}
}

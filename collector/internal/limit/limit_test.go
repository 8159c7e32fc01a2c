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

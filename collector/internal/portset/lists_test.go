package portset

import (
	"slices"
	"testing"
)

// TestLists keeps the ports of several lists apart.
func TestLists(t *testing.T) {
	var all Lists
	var lists [3]List
	for i := range 100 {
		for j := range lists {
			if i%(j+1) == 0 {
				all.Add(&lists[j], uint16(1000*j+i))
			}
		}
	}
	for j, list := range lists {
		got := slices.Sorted(all.All(list))
		var want []uint16
		for i := 0; i < 100; i += j + 1 {
			want = append(want, uint16(1000*j+i))
		}
		if !slices.Equal(got, want) {
			t.Errorf("list %d: got %v, want %v", j, got, want)
		}
	}
	for range all.All(List{}) {
		t.Error("a port in an empty list")
	}
}

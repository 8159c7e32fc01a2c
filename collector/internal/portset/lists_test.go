package portset

import (
	"math/rand/v2"
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

// TestLongLists compares lists, some of them long, with slices. Ports come more than once. Lists that were cleared are like new ones.
func TestLongLists(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var all Lists
	for round, ports := range []int{6000, 65536, 10} {
		var lists [5]List
		var want [len(lists)][]uint16
		for range 60_000 {
			i := min(random.IntN(2*len(lists)), len(lists)-1) // the last one gets most
			port := uint16(random.IntN(ports))
			all.Add(&lists[i], port)
			want[i] = append(want[i], port)
			if n := lists[i].Len(); n != len(want[i]) {
				t.Fatalf("round %d: %d ports, want %d", round, n, len(want[i]))
			}
		}
		for i, list := range lists {
			slices.Sort(want[i])
			if got := slices.Sorted(all.All(list)); !slices.Equal(got, want[i]) {
				t.Errorf("round %d, list %d: %d ports, not the %d that were added", round, i, len(got), len(want[i]))
			}
			for range all.All(list) {
				break
			}
		}
		all.Clear()
		all.Trim()
	}
}

// TestListsMemory checks that a long list takes no more memory the longer it is, and that the memory of what it was before serves others.
func TestListsMemory(t *testing.T) {
	var all Lists
	for range 10 {
		var list List
		for port := range MaxPorts {
			all.Add(&list, uint16(port))
		}
	}
	if blocks := all.blocks.Len(); blocks > longest/len(listBlock{}.ports)+1 || len(all.long) != 10 {
		t.Errorf("%d blocks, %d long lists", blocks, len(all.long))
	}
}

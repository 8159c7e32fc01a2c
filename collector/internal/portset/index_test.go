package portset

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestIndex compares an Index with a map, also after it was cleared and gave memory back.
func TestIndex(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var x Index[[3]uint32, int]
	for round, n := range []int{3, 5000, 100, 0, 100, 2000, 100, 100} {
		want := map[[3]uint32]int{}
		var order [][3]uint32
		if _, ok := x.Find([3]uint32{}); ok {
			t.Fatalf("round %d: found something", round)
		}
		for range n {
			key := [3]uint32{random.Uint32N(100), random.Uint32N(100)}
			i, added := x.Add(key)
			if j, ok := want[key]; ok == added || ok && i != j {
				t.Fatalf("round %d: key %v has number %d, added %v, want %d", round, key, i, added, j)
			}
			if added {
				want[key] = i
				order = append(order, key)
				x.At(i).Value = i * i
			}
		}
		if x.Len() != len(want) {
			t.Fatalf("round %d: %d items, want %d", round, x.Len(), len(want))
		}
		for i, key := range order {
			j, ok := x.Find(key)
			if !ok || j != i || *x.At(i) != (Item[[3]uint32, int]{key, i * i}) {
				t.Fatalf("round %d: key %v has number %d (%v), %v, want %d", round, key, j, ok, *x.At(i), i)
			}
		}
		if _, ok := x.Find([3]uint32{100}); ok {
			t.Fatalf("round %d: found what was never added", round)
		}
		x.Clear()
		if round%2 == 1 {
			x.Trim()
		}
	}
}

// TestIndexTrim keeps the memory of an Index as long as it is needed, and gives it back then.
func TestIndexTrim(t *testing.T) {
	var x Index[[3]uint32, int]
	fill := func(n int) {
		for i := range n {
			x.Add([3]uint32{uint32(i)})
		}
		x.Clear()
		x.Trim()
	}
	fill(10_000)
	if n := testing.AllocsPerRun(5, func() { fill(10_000) }); n != 0 {
		t.Errorf("%v allocations when it was as full before", n)
	}
	if n := testing.AllocsPerRun(1, func() { fill(20); fill(10_000) }); n > 10 {
		t.Errorf("%v allocations after one time with few items", n)
	}
	for range 80 {
		fill(20)
	}
	if len(x.slots) > 2*leastSlots || len(x.items.blocks) != 1 {
		t.Errorf("%d slots and %d blocks are left", len(x.slots), len(x.items.blocks))
	}
}

// BenchmarkIndex adds keys in a random order, and removes them.
func BenchmarkIndex(b *testing.B) {
	for _, n := range []int{20, 120_000} {
		keys := make([][3]uint32, n)
		for i := range keys {
			keys[i] = [3]uint32{1, uint32(i), 443}
		}
		rand.Shuffle(n, func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var x Index[[3]uint32, int]
			for b.Loop() {
				for _, k := range keys {
					x.Add(k)
				}
				x.Clear()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/key")
		})
	}
}

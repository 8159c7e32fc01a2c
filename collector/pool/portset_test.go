package pool

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestPortMapRange checks that the map contains the ports of the range and no others.
func TestPortMapRange(t *testing.T) {
	for _, r := range [][2]uint16{{0, 0}, {0, 65535}, {65535, 65535}, {63, 64}, {64, 127}, {65, 66}, {32768, 60999}, {1024, 1087}} {
		var m portMap
		m.addRange(r[0], r[1])
		if got, want := m.size(), int(r[1])-int(r[0])+1; got != want {
			t.Errorf("%v: %d ports, want %d", r, got, want)
		}
		for p := range 1 << 16 {
			if got, want := m.has(uint16(p)), p >= int(r[0]) && p <= int(r[1]); got != want {
				t.Errorf("%v: port %d: %v", r, p, got)
			}
		}
	}
}

// TestPortSet compares the set with a Go map, at sizes below, at and above maxSparse.
func TestPortSet(t *testing.T) {
	for _, n := range []int{0, 1, maxSparse - 1, maxSparse, maxSparse + 1, 5000} {
		var set portSet
		want := map[uint16]bool{}
		odd := 0
		random := rand.New(rand.NewPCG(1, uint64(n)))
		for len(want) < n {
			port := uint16(random.Uint32())
			for range 2 { // a port that is added twice counts once
				set.add(port)
			}
			if !want[port] && port%2 == 1 {
				odd++
			}
			want[port] = true
		}
		if set.size() != n || set.parityOf(1) != odd || set.parityOf(0) != n-odd {
			t.Errorf("%d ports, %d odd: got %d, %d odd, %d even", n, odd, set.size(), set.parityOf(1), set.parityOf(0))
		}
		if dense := set.dense != nil; dense != (n > maxSparse) {
			t.Errorf("%d ports: dense %v", n, dense)
		}
	}
}

// TestPortCount compares the counts of both kinds of sets with a simple loop.
func TestPortCount(t *testing.T) {
	var m portMap
	var few, many portSet
	m.addRange(1000, 2000)
	for p := range uint16(1001) {
		many.add(1000 + p)
	}
	for _, p := range []uint16{999, 1000, 1001, 1063, 1064, 1127, 1500, 1501, 2000, 2001} {
		few.add(p)
	}
	for _, bounds := range [][2]int{{0, 1 << 16}, {1000, 1500}, {1064, 1064}, {1001, 1002}, {1500, 1 << 16}, {1087, 1152}} {
		for port := range uint16(2) {
			for name, set := range map[string]struct {
				has   func(uint16) bool
				count func(uint16, int, int) int
			}{"map": {m.has, m.count}, "dense": {many.has, many.count}, "sparse": {few.has, few.count}} {
				want := 0
				for p := bounds[0]; p < bounds[1]; p++ {
					if uint16(p)%2 == port && set.has(uint16(p)) {
						want++
					}
				}
				if got := set.count(port, bounds[0], bounds[1]); got != want {
					t.Errorf("%s: %d ports like %d in %v, want %d", name, got, port, bounds, want)
				}
			}
		}
	}
	if got := few.common(&many); got != 8 || many.common(&few) != 8 || many.common(&many) != 1001 {
		t.Errorf("%d ports in common, want 8", got)
	}
}

// TestPortLists keeps the ports of several lists apart.
func TestPortLists(t *testing.T) {
	var all portLists
	var lists [3]portList
	for i := range 100 {
		for j := range lists {
			if i%(j+1) == 0 {
				all.add(&lists[j], uint16(1000*j+i))
			}
		}
	}
	for j, list := range lists {
		got := slices.Sorted(all.all(list))
		var want []uint16
		for i := 0; i < 100; i += j + 1 {
			want = append(want, uint16(1000*j+i))
		}
		if !slices.Equal(got, want) {
			t.Errorf("list %d: got %v, want %v", j, got, want)
		}
	}
	for range all.all(portList{}) {
		t.Error("a port in an empty list")
	}
}

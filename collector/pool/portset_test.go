package pool

import (
	"math/rand/v2"
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

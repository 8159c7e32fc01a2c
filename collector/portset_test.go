package collector

import (
	"math/rand/v2"
	"testing"
)

// TestPortSet compares with a map, below, at and above the size where the set changes
// its form.
func TestPortSet(t *testing.T) {
	for _, n := range []int{0, 1, maxSparse - 1, maxSparse, maxSparse + 1, 5000} {
		var set portSet
		want := map[uint16]bool{}
		odd := 0
		random := rand.New(rand.NewPCG(1, uint64(n)))
		for len(want) < n {
			port := uint16(random.Uint32())
			for range 2 { // a port counts once
				set.add(port)
			}
			if !want[port] && port%2 == 1 {
				odd++
			}
			want[port] = true
		}
		if set.size() != n || set.withParity(1) != odd || set.withParity(0) != n-odd {
			t.Errorf("%d ports, %d odd: got %d, %d odd, %d even", n, odd, set.size(), set.withParity(1), set.withParity(0))
		}
		if dense := set.dense != nil; dense != (n > maxSparse) {
			t.Errorf("%d ports: dense %v", n, dense)
		}
	}
}

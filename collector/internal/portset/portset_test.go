package portset

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRange checks the ends of ranges.
func TestRange(t *testing.T) {
	for _, r := range []Range{{0, 0}, {65535, 65535}, {0, 65535}, {32768, 60999}} {
		n := 0
		for port := range MaxPorts {
			if r.Contains(uint16(port)) {
				n++
			}
		}
		if n != r.Size() || !r.Contains(r.Low) || !r.Contains(r.High) {
			t.Errorf("%v: size %d, contains %d ports", r, r.Size(), n)
		}
	}
}

// TestMapString writes ports as ip_local_reserved_ports has them, and reads them from ranges that overlap.
func TestMapString(t *testing.T) {
	for _, tt := range []struct {
		ranges []Range
		want   string
	}{
		{nil, ""},
		{[]Range{{0, 0}}, "0"},
		{[]Range{{65535, 65535}, {80, 80}}, "80,65535"},
		{[]Range{{8080, 8081}, {22, 22}, {65530, 65535}}, "22,8080-8081,65530-65535"},
		{[]Range{{100, 200}, {150, 250}, {251, 251}, {253, 253}}, "100-251,253"},
		{[]Range{{0, 65535}}, "0-65535"},
	} {
		var m Map
		m.AddRanges(tt.ranges)
		if got := m.String(); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.ranges, got, tt.want)
		}
	}
}

// TestMapAddUnreserved withholds what is reserved, in the range and over its ends.
func TestMapAddUnreserved(t *testing.T) {
	for _, tt := range []struct {
		reserved []Range
		want     string
	}{
		{nil, "40000-40009"},
		{[]Range{{1, 39999}, {40010, 65535}}, "40000-40009"},
		{[]Range{{40000, 40000}, {40009, 40009}}, "40001-40008"},
		{[]Range{{39990, 40001}, {40004, 40005}, {40005, 40006}, {40009, 41000}}, "40002-40003,40007-40008"},
		{[]Range{{0, 65535}}, ""},
	} {
		var m Map
		m.AddUnreserved(Range{40000, 40009}, tt.reserved)
		if got := m.String(); got != tt.want {
			t.Errorf("%v reserved: got %q, want %q", tt.reserved, got, tt.want)
		}
	}
}

// TestMapAll has ports in the first and last bit of words, and compares both kinds of sets.
func TestMapAll(t *testing.T) {
	want := []uint16{0, 63, 64, 127, 128, 32767, 65472, 65535}
	var m Map
	var few, many Set
	for _, port := range slices.Backward(want) {
		m.Add(port)
		few.Add(port)
		many.Add(port)
	}
	for port := range uint16(maxSparse) {
		m.Add(1000 + port)
		many.Add(1000 + port)
	}
	if got, both := slices.Collect(m.All()), many.All(); !slices.Equal(got, both) || len(got) != len(want)+maxSparse || !slices.IsSorted(got) {
		t.Errorf("map: %v, set: %v", got, both)
	}
	for port := range uint16(maxSparse) {
		m.Remove(1000 + port)
		m.Remove(5000 + port) // is not there
	}
	if got := slices.Collect(m.All()); !slices.Equal(got, want) || !slices.Equal(few.All(), want) {
		t.Errorf("map: %v, set: %v, want %v", got, few.All(), want)
	}
	for port := range m.All() {
		if port != 0 {
			t.Errorf("port %d after the end of the loop", port)
		}
		break
	}
}

// TestMapIn has the ports of ranges, with ends inside of words and at their ends.
func TestMapIn(t *testing.T) {
	var m Map
	m.AddRanges([]Range{{0, 3}, {60, 70}, {127, 128}, {65530, 65535}})
	for r, want := range map[Range][]uint16{
		{0, 0}: {0}, {4, 59}: nil, {3, 60}: {3, 60}, {62, 65}: {62, 63, 64, 65}, {128, 200}: {128}, {127, 127}: {127}, {65534, 65535}: {65534, 65535},
	} {
		if got := slices.Collect(m.In(r)); !slices.Equal(got, want) {
			t.Errorf("%v: got %v, want %v", r, got, want)
		}
	}
	for range m.In(Range{0, 65535}) {
		break
	}
	for range m.Runs() {
		break
	}
}

// TestMapRange checks that the map contains the ports of the range and no others.
func TestMapRange(t *testing.T) {
	for _, r := range []Range{{0, 0}, {0, 65535}, {65535, 65535}, {63, 64}, {64, 127}, {65, 66}, {32768, 60999}, {1024, 1087}} {
		var m Map
		m.AddRange(r)
		if got, want := m.Size(), int(r.High)-int(r.Low)+1; got != want {
			t.Errorf("%v: %d ports, want %d", r, got, want)
		}
		for p := range 1 << 16 {
			if got, want := m.Has(uint16(p)), p >= int(r.Low) && p <= int(r.High); got != want {
				t.Errorf("%v: port %d: %v", r, p, got)
			}
		}
	}
}

// TestSet compares the set with a Go map, at sizes below, at and above maxSparse.
func TestSet(t *testing.T) {
	for _, n := range []int{0, 1, maxSparse - 1, maxSparse, maxSparse + 1, 5000} {
		var set Set
		want := map[uint16]bool{}
		odd := 0
		random := rand.New(rand.NewPCG(1, uint64(n)))
		for len(want) < n {
			port := uint16(random.Uint32())
			for range 2 { // a port that is added twice counts once
				set.Add(port)
			}
			if !want[port] && port%2 == 1 {
				odd++
			}
			want[port] = true
		}
		if set.Size() != n || set.ParityOf(1) != odd || set.ParityOf(0) != n-odd {
			t.Errorf("%d ports, %d odd: got %d, %d odd, %d even", n, odd, set.Size(), set.ParityOf(1), set.ParityOf(0))
		}
		if dense := set.dense != nil; dense != (n > maxSparse) {
			t.Errorf("%d ports: dense %v", n, dense)
		}
	}
}

// TestSetAddAll adds small and large sets to each other.
func TestSetAddAll(t *testing.T) {
	for _, sizes := range [][2]int{{0, 0}, {0, 3}, {3, 0}, {3, 3}, {3, 500}, {500, 3}, {500, 500}} {
		var s, other Set
		want := map[uint16]bool{}
		for i := range sizes[0] {
			s.Add(uint16(40000 + 2*i))
			want[uint16(40000+2*i)] = true
		}
		for i := range sizes[1] {
			other.Add(uint16(40000 + 3*i))
			want[uint16(40000+3*i)] = true
		}
		s.AddAll(&other)
		if s.Size() != len(want) || other.Size() != sizes[1] || slices.ContainsFunc(s.All(), func(port uint16) bool { return !want[port] }) {
			t.Errorf("%v: %d ports, want %d", sizes, s.Size(), len(want))
		}
	}
}

// TestCount compares the counts of both kinds of sets with a simple loop.
func TestCount(t *testing.T) {
	var m Map
	var few, many Set
	m.AddRange(Range{1000, 2000})
	for p := range uint16(1001) {
		many.Add(1000 + p)
	}
	for _, p := range []uint16{999, 1000, 1001, 1063, 1064, 1127, 1500, 1501, 2000, 2001} {
		few.Add(p)
	}
	for _, bounds := range [][2]int{{0, 1 << 16}, {1000, 1500}, {1064, 1064}, {1001, 1002}, {1500, 1 << 16}, {1087, 1152}} {
		for port := range uint16(2) {
			for name, set := range map[string]struct {
				has   func(uint16) bool
				count func(uint16, int, int) int
			}{"map": {m.Has, m.Count}, "dense": {many.Has, many.Count}, "sparse": {few.Has, few.Count}} {
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
	if got := few.Common(&many); got != 8 || many.Common(&few) != 8 || many.Common(&many) != 1001 {
		t.Errorf("%d ports in common, want 8", got)
	}
}

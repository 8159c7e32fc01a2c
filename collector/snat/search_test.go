package snat

import (
	"math"
	"math/rand/v2"
	"testing"

	"ephemeral_port_exporter/collector/internal/portset"
)

// TestSearchFailure compares the share of failures with searches by the kernel's steps.
func TestSearchFailure(t *testing.T) {
	tests := []struct {
		name     string
		ports    portset.Range
		taken    func(r *rand.Rand, port uint16) bool
		reusable func(r *rand.Rand, port uint16) bool
	}{
		{"nothing taken", portset.Range{Low: 40000, High: 40099}, never, never},
		{"all taken, up to 128 ports", portset.Range{Low: 40000, High: 40127}, always, never},
		{"all taken", portset.Range{Low: 40000, High: 40999}, always, never},
		{"one port, reusable", portset.Range{Low: 40000, High: 40000}, always, always},
		{"one of 100 free", portset.Range{Low: 40000, High: 40099}, but(40042), never},
		{"one of 128 free", portset.Range{Low: 40000, High: 40127}, but(40127), never},
		{"one of 129 free", portset.Range{Low: 40000, High: 40128}, but(40001), never},
		{"one of 200 free", portset.Range{Low: 40000, High: 40199}, but(40000), never},
		{"95% at random", portset.Range{Low: 40000, High: 40999}, share(0.95), never},
		{"a block over the ends of the range", portset.Range{Low: 40000, High: 40999}, func(_ *rand.Rand, p uint16) bool { return p < 40300 || p >= 40600 }, never},
		{"the range of Linux clients", portset.Range{Low: 1024, High: 65535}, func(_ *rand.Rand, p uint16) bool { return p >= 32768 && p <= 60999 }, never},
		{"one of 32 reusable", portset.Range{Low: 40000, High: 40031}, always, only(40007)},
		{"one of 100 reusable", portset.Range{Low: 40000, High: 40099}, always, only(40007)},
		{"a tenth of 100 reusable", portset.Range{Low: 40000, High: 40099}, always, share(0.1)},
		{"1% of 1000 reusable", portset.Range{Low: 40000, High: 40999}, always, share(0.01)},
		{"some free, some reusable", portset.Range{Low: 40000, High: 40299}, share(0.98), share(0.02)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			var taken, reusable portset.Map
			for p := int(tt.ports.Low); p <= int(tt.ports.High); p++ {
				if port := uint16(p); tt.taken(r, port) {
					taken.Add(port)
					if tt.reusable(r, port) {
						reusable.Add(port)
					}
				}
			}
			const searches = 200000
			failed := 0
			for range searches {
				if !search(r, tt.ports, &taken, &reusable) {
					failed++
				}
			}
			want := float64(failed) / searches
			got := searchFailure(tt.ports, &taken, &reusable)
			if deviation := 5*math.Sqrt(want*(1-want)/searches) + 1e-5; math.Abs(got-want) > deviation {
				t.Errorf("share of failures is %v, want %v ± %v", got, want, deviation)
			}
		})
	}
}

// search is nf_nat_l4proto_unique_tuple, without the overflow of its offset.
func search(r *rand.Rand, ports portset.Range, taken, reusable *portset.Map) bool {
	size := ports.Size()
	attempts := min(size, 128)
	for {
		off := r.IntN(size)
		for i := range attempts {
			port := ports.Low + uint16((off+i)%size)
			if !taken.Has(port) || attempts-i <= 32 && reusable.Has(port) && r.IntN(2) == 0 {
				return true
			}
		}
		if attempts >= size || attempts < 16 {
			return false
		}
		attempts /= 2
	}
}

func never(*rand.Rand, uint16) bool  { return false }
func always(*rand.Rand, uint16) bool { return true }

func but(free uint16) func(*rand.Rand, uint16) bool {
	return func(_ *rand.Rand, p uint16) bool { return p != free }
}

func only(port uint16) func(*rand.Rand, uint16) bool {
	return func(_ *rand.Rand, p uint16) bool { return p == port }
}

func share(of float64) func(*rand.Rand, uint16) bool {
	return func(r *rand.Rand, _ uint16) bool { return r.Float64() < of }
}

// TestScatteredFailure compares with shares of packets that a kernel dropped with fully-random, of
// 64512 and 1000 ports: see nattest.
func TestScatteredFailure(t *testing.T) {
	for _, tt := range []struct {
		ports     int
		used      float64
		low, high float64
	}{
		{64512, 0.80, 0, 0.0005},
		{64512, 0.90, 0.002, 0.008},
		{64512, 0.95, 0.04, 0.08},
		{1000, 0.90, 0, 0.01},
		{1000, 0.97, 0.07, 0.25},
		{1000, 0.99, 1, 1},
	} {
		s := Settings{PortRanges: []portset.Range{{Low: 1024, High: uint16(1023 + tt.ports)}}}
		if got := s.ScatteredFailure(int(tt.used*float64(tt.ports)), 0); got < tt.low || got > tt.high {
			t.Errorf("%d ports, %v used: %.4f, want %v to %v", tt.ports, tt.used, got, tt.low, tt.high)
		}
	}
	s := Settings{PortRanges: []portset.Range{{Low: 1024, High: 2023}}}
	if all, some := s.ScatteredFailure(970, 0), s.ScatteredFailure(970, 400); some >= all/2 {
		t.Errorf("%.4f of the searches fail with reusable ports, %.4f without", some, all)
	}
}

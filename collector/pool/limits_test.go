package pool

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestShareLimit keeps those in most danger, the first of each report whatever the others are, and
// counts all others as unreported.
func TestShareLimit(t *testing.T) {
	// Ports held, of a range of that many.
	report := func(capacity int, held ...int) *Report {
		var r Report
		for i, h := range held {
			address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)
			u := utilization(h, capacity)
			r.Destinations = append(r.Destinations, Destination{Address: address, Held: h, Ports: [len(States)]int{h}, Utilization: u})
			r.Sources = append(r.Sources, Source{Address: address.Addr(), Ports: h, Utilization: u})
		}
		return &r
	}
	// The second has few ports, and they are nearly used up. The third is calm.
	tests := []struct {
		most int
		want string
	}{
		{0, "[] 5 145 5 | [] 2 17 2 | [] 2 30 2"},
		{1, "[100] 4 45 4 | [9] 1 8 1 | [20] 1 10 1"},
		{3, "[100] 4 45 4 | [9] 1 8 1 | [20] 1 10 1"},
		{4, "[100] 4 45 4 | [9 8] 0 0 0 | [20] 1 10 1"},
		{5, "[100 20] 3 25 3 | [9 8] 0 0 0 | [20] 1 10 1"},
		{7, "[100 20 20] 2 5 2 | [9 8] 0 0 0 | [20 10] 0 0 0"},
		{100, "[100 20 20 4 1] 0 0 0 | [9 8] 0 0 0 | [20 10] 0 0 0"},
	}
	for _, tt := range tests {
		reports := []*Report{report(1000, 100, 20, 20, 4, 1), report(10, 9, 8), report(1000, 20, 10)}
		ShareLimit(reports, tt.most)
		var got []string
		for _, r := range reports {
			held, ports := []int{}, []int{}
			for _, d := range r.Destinations {
				held = append(held, d.Held)
			}
			for _, src := range r.Sources {
				ports = append(ports, src.Ports)
			}
			if !slices.Equal(held, ports) {
				t.Errorf("limit %d: destinations %v, sources %v", tt.most, held, ports)
			}
			got = append(got, fmt.Sprintf("%v %d %d %d", held, r.UnreportedDestinations, r.AllUnreported(), r.UnreportedSources))
		}
		if got := strings.Join(got, " | "); got != tt.want {
			t.Errorf("limit %d: got %s, want %s", tt.most, got, tt.want)
		}
	}
}

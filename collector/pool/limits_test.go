package pool

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestShareLimit checks that the destinations with most ports stay, and that all others are counted as unreported.
func TestShareLimit(t *testing.T) {
	report := func(held ...int) *Report {
		var r Report
		for i, h := range held {
			address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)
			r.Destinations = append(r.Destinations, Destination{Address: address, Held: h})
			r.Sources = append(r.Sources, Source{Address: address.Addr(), Ports: h})
		}
		return &r
	}
	tests := []struct {
		most int
		want string
	}{
		{0, "[] 0/0 6 149 | [] 0/0 3 75"},
		{1, "[100] 100/1 5 49 | [] 0/0 3 75"},
		{3, "[100 20] 120/2 4 29 | [50] 50/1 2 25"},
		{4, "[100 20 20] 140/3 3 9 | [50] 50/1 2 25"},
		{5, "[100 20 20] 140/3 3 9 | [50 20] 70/2 1 5"},
		{100, "[100 20 20 5 3 1] 149/6 0 0 | [50 20 5] 75/3 0 0"},
	}
	for _, tt := range tests {
		reports := []*Report{report(100, 20, 20, 5, 3, 1), report(50, 20, 5)}
		ShareLimit(reports, tt.most)
		var got []string
		for _, r := range reports {
			held, sum := []int{}, 0
			for _, d := range r.Destinations {
				held = append(held, d.Held)
			}
			for _, src := range r.Sources {
				sum += src.Ports
			}
			got = append(got, fmt.Sprintf("%v %d/%d %d %d", held, sum, len(r.Sources), r.UnreportedDestinations, r.UnreportedPorts))
		}
		if got := strings.Join(got, " | "); got != tt.want {
			t.Errorf("limit %d: got %s, want %s", tt.most, got, tt.want)
		}
	}
}

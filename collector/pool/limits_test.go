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
			for _, d := range r.reported() {
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

// TestShareLimitListed checks that all reports together list those in most danger without series, and which of two has series
// does not depend on these.
func TestShareLimitListed(t *testing.T) {
	const reports, most = 3, 5
	var all []*Report
	for i := range reports {
		var r Report
		for j := range 30 {
			// The first are reported, although they are in less danger: connect() may take over their ports.
			d := Destination{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j)}), 80), Held: 500, Ports: [len(States)]int{500}}
			if j >= 3 {
				d.Unreported, d.Held, d.Utilization = true, 9, float64(30-j)/100+float64(i)/1000
				r.leaveOut(d.Ports)
			}
			r.Destinations = append(r.Destinations, d)
		}
		all = append(all, &r)
	}
	ShareLimit(all, most)
	reported, listed, unreported := 0, 0, 0
	for i, r := range all {
		reported += len(r.reported())
		listed += len(r.unreported())
		unreported += r.UnreportedDestinations
		if !slices.IsSortedFunc(r.unreported(), byDanger) || r.unreported()[0].Utilization != 0.27+float64(i)/1000 {
			t.Errorf("not in the order of danger: %v", r.unreported())
		}
	}
	if reported != most || listed != 20 || unreported != 30*reports-most {
		t.Errorf("%d with series and %d without, %d unreported, want %d, 20 and %d", reported, listed, unreported, most, 30*reports-most)
	}
}

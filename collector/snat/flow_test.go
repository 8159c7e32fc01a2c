package snat

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestStates has the states of each protocol, what connection tracking calls them, and which of them hold a port while
// the ends use it or yield it to a new connection (enum tcp_conntrack, nf_nat_used_tuple_harder).
func TestStates(t *testing.T) {
	type state struct {
		Name            string
		Open, TakenOver bool
	}
	want := map[Protocol][]state{
		TCP: {
			{"syn_sent", true, false}, {"syn_recv", true, false}, {"established", true, false}, {"fin_wait", true, false}, {"close_wait", true, false},
			{"last_ack", true, false}, {"time_wait", false, true}, {"close", false, true}, {"syn_sent2", true, true}, {"no_connection", false, false},
		},
		UDP: {{"unreplied", false, false}, {"replied", false, false}, {"assured", true, false}, {"no_connection", false, false}},
	}
	got := map[Protocol][]state{}
	seen := map[State]bool{}
	for p := range want {
		for _, s := range States(p) {
			got[p] = append(got[p], state{s.String(), s.Open(), s.TakenOver()})
			seen[s] = true
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
	if len(seen) != int(numStates) {
		t.Errorf("%d states, of %d", len(seen), numStates)
	}
}

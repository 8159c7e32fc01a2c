package pool

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/internal/portset"
)

// compareClients compares what is known of clients without a verdict on any port.
var compareClients = cmp.AllowUnexported(clients{}, verdicts{}, portset.Set{})

// TestJudge checks each step from new ports to what is known of clients.
func TestJudge(t *testing.T) {
	// Of the evidence: ports held by parity, new ports by parity.
	ports := func(heldConnect, heldBind, newConnect, newBind int) evidence {
		return evidence{held: [2]int{heldConnect, heldBind}, newConnectParity: newConnect, newBindParity: newBind, bindShows: true}
	}
	had := clients{connectChoice: true}
	for _, tt := range []struct {
		name   string
		before clients
		e      evidence
		choice bool
		want   clients
	}{
		{"nothing new", had, ports(10, 10, 0, 0), true, had},
		{"nothing new, of clients that bind", clients{score: 2, connectChoice: true, contrary: 7}, ports(0, 10, 0, 0), true,
			clients{score: 2, connectChoice: true, contrary: 7}},

		{"clear", had, ports(0, 5, 0, 5), true, clients{score: 3, connectChoice: true}},
		{"one port short of clear", had, ports(0, 4, 0, 4), true, clients{score: 1, connectChoice: true}},
		{"clear, beside some of connect parity", had, ports(2, 8, 2, 8), true, clients{score: 3, connects: true, connectChoice: true}},
		{"too many of connect parity", had, ports(2, 7, 2, 7), true, clients{score: 1, connects: true, connectChoice: true}},
		{"clear evidence ends the contrary", clients{contrary: 19, connectChoice: true}, ports(0, 5, 0, 5), true, clients{score: 3, connectChoice: true}},

		{"second time", clients{score: 1, contrary: 19, connectChoice: true}, ports(5, 6, 5, 1), true, clients{score: 2, connects: true, connectChoice: true}},
		{"third time", clients{score: 2, connectChoice: true}, ports(5, 6, 5, 1), true, clients{score: 3, connects: true, connectChoice: true}},
		{"not above certain", clients{score: 3, connectChoice: true}, ports(5, 6, 5, 1), true, clients{score: 3, connects: true, connectChoice: true}},
		{"again, of clients that bind", clients{score: 1, connectChoice: true}, ports(5, 6, 5, 1), true, clients{score: 2, connects: true, connectChoice: true}},

		{"no choice before", clients{}, ports(0, 50, 0, 50), true, had},
		{"no choice now", had, ports(0, 50, 0, 50), false, clients{}},
		{"one port, no choice before", clients{}, ports(0, 1, 0, 1), true, had},
		{"no choice, and ports of both parities", clients{score: 1, contrary: 18}, ports(30, 1, 30, 1), true, clients{score: 1, contrary: 18, connects: true, connectChoice: true}},

		{"plain", had, ports(1, 0, 1, 0), true, clients{connects: true, contrary: 1, connectChoice: true}},
		{"plain, without a choice", clients{}, ports(1, 0, 1, 0), false, clients{connects: true, contrary: 1}},
		{"plain, beside one of bind parity", had, ports(1, 1, 1, 1), true, clients{score: 1, connects: true, connectChoice: true}},
		{"contrary, not enough", clients{score: 3, contrary: 10}, ports(9, 9, 9, 0), false, clients{score: 3, connects: true, contrary: 19}},
		{"contrary", clients{score: 3, contrary: 10}, ports(10, 9, 10, 0), false, clients{connects: true, contrary: 20}},
		{"contrary, before it is certain", clients{score: 2}, ports(20, 9, 20, 0), false, clients{connects: true, contrary: 20}},
	} {
		if diff := cmp.Diff(tt.want, tt.before.judge(tt.e, tt.choice), compareClients); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestPresume checks what the ports that are held tell by themselves.
func TestPresume(t *testing.T) {
	binding := clients{score: certain}
	for _, tt := range []struct {
		name           string
		before, others clients
		held           [2]int
		want           clients
	}{
		{"nothing", clients{}, clients{}, [2]int{}, clients{}},
		{"plain", clients{}, clients{}, [2]int{5, 0}, clients{connects: true}},
		{"few", clients{}, clients{}, [2]int{4, 0}, clients{}},
		{"one of bind parity", clients{}, clients{}, [2]int{5, 1}, clients{}},
		{"like the others, which bind", clients{}, binding, [2]int{20, 10}, clients{score: certain}},
		{"not like the others, which bind", clients{}, binding, [2]int{21, 10}, clients{}},
		{"like the others, which do not bind", clients{}, clients{score: 2}, [2]int{0, 10}, clients{}},
	} {
		if diff := cmp.Diff(tt.want, tt.before.presume(tt.others, evidence{held: tt.held, unforced: tt.held[connectParity]}), compareClients); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestTurnedOver has a pool that is nearly full of ports of connect parity: its suspects are those of plain connect() if they come and go.
func TestTurnedOver(t *testing.T) {
	for _, tt := range []struct {
		name       string
		gone, held int
		overflows  bool
		score      int
		want       bool
	}{
		{"none was given back", 0, 20, true, 0, false},
		{"few", 4, 4, true, 0, false},
		{"less than a fourth", 5, 21, true, 0, false},
		{"a fourth", 5, 20, true, 0, true},
		{"not full", 5, 20, false, 0, false},
		{"some bind", 5, 20, true, 1, false},
	} {
		c := clients{verdicts: verdicts{suspects: *portSetOf(40001)}, gone: tt.gone, score: tt.score}
		got := c.presume(clients{}, evidence{held: [2]int{40, tt.held}, overflows: tt.overflows})
		if released := got.suspects.Size() == 0; released != tt.want || got.connects != (tt.overflows && tt.score == 0) {
			t.Errorf("%s: released %v, seen to connect %v", tt.name, released, got.connects)
		}
	}
}

// TestClientsPlain has all that a client can be seen to do.
func TestClientsPlain(t *testing.T) {
	for _, tt := range []struct {
		clients
		want bool
	}{
		{clients{}, false}, {clients{score: certain}, false}, {clients{connects: true}, true}, {clients{connects: true, score: certain - 1}, true},
		{clients{connects: true, score: certain}, false},
	} {
		if got := tt.onlyConnect(); got != tt.want {
			t.Errorf("%+v: got %v", tt.clients, got)
		}
	}
}

// TestTakeMany takes clients of many pools that were judged together: that costs no more than for one pool.
func TestTakeMany(t *testing.T) {
	var together clients
	for port := uint16(40000); port < 41000; port++ {
		together.plain.Add(port)
	}
	parts := make([]clients, 1000)
	for i := range parts {
		parts[i] = together
		parts[i].suspects.Add(uint16(50000 + i))
	}
	var all clients
	if n := testing.AllocsPerRun(1, func() {
		all = together
		all.take(func(yield func(*clients) bool) {
			for i := range parts {
				yield(&parts[i])
			}
		})
	}); n > 50 {
		t.Errorf("%v allocations", n)
	}
	if all.plain.Size() != 1000 || all.suspects.Size() != 1000 {
		t.Errorf("%d plain ports, %d suspects, want 1000 of each", all.plain.Size(), all.suspects.Size())
	}
}

package advice

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/pool"
)

// TestBound checks the advice for a namespace whose ports are bound.
func TestBound(t *testing.T) {
	settings := pool.Settings{PortRange: pool.PortRange{Low: 40000, High: 40099}}
	for _, tt := range []struct {
		name  string
		bound int
		want  []string
	}{
		{"few", 49, nil},
		{"nearly all", 97, []string{
			"Sockets got 97 of the 100 ports by bind(). No plain connect() of this network namespace can choose these, whatever its address and its destination.",
			"Connect without binding a port: 3, then 100. ",
			"Widen the range: 3, then 61647. " + widenAll,
		}},
		{"all", 100, []string{
			"Sockets got 100 of the 100 ports by bind(). No plain connect() of this network namespace can choose these, whatever its address and its destination.",
			"Connect without binding a port: 0, then 100. ",
			"Bind on another address: 0, then 100. ",
			"Widen the range: 0, then 61644. " + widenAll,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := pool.Report{
				Settings: settings, CapacityPorts: 100, BoundPorts: tt.bound, BoundKnown: true, UDPServersKnown: true,
				Sources: []pool.Source{
					{Address: netip.MustParseAddr("10.0.0.1"), Ports: 3, Capacity: 100},
					{Address: netip.MustParseAddr("10.0.0.2"), Ports: 30, Bound: 30, Capacity: 100},
					{Address: netip.MustParseAddr("10.0.0.3"), Ports: 100, Bound: 70, Capacity: 100},
				},
			}
			a := Bound(&r)
			if diff := cmp.Diff(tt.want, lines(t, a)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if tt.bound < 100 {
				return
			}
			want := "The client can use an address that others have not bound to. On the addresses of these, bind() finds fewer: 0 on 10.0.0.3, 70 on 10.0.0.2."
			if diff := cmp.Diff(want, a.Cures[1].Condition); diff != "" {
				t.Errorf("condition (-want +got):\n%s", diff)
			}
		})
	}
}

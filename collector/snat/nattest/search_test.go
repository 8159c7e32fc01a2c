//go:build linux

package nattest_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
	"ephemeral_port_exporter/collector/snat/nattest"
)

// TestSearchFailure compares pool's chance that a search finds no port with how many of the kernel's
// find none, for arrangements of ports that the kernel made.
func TestSearchFailure(t *testing.T) {
	const low = 40000
	takesOver := nattest.TakesOver(t)
	for _, tt := range []struct{ ports, free, timeWait int }{
		{ports: 128, timeWait: 1},
		{ports: 200, free: 5},
		{ports: 1000, free: 20},
		{ports: 1000, timeWait: 1},
	} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			portRange := pool.PortRange{Low: low, High: low + uint16(tt.ports) - 1}
			g := nattest.New(t, nattest.Postrouting(fmt.Sprintf("masquerade to :%d-%d", portRange.Low, portRange.High)))

			flows := map[uint16]snat.State{} // by translated port
			client := 0
			// open tries to open a connection until it is granted.
			open := func(state nattest.State, seq uint32) netip.AddrPort {
				for {
					client++
					if translated, ok := g.Open(state, clients(client, 20000)(0), server, seq); ok {
						return translated
					}
				}
			}
			for len(flows) < tt.ports-tt.free {
				flows[open(nattest.SynSent, 0).Port()] = snat.SynSent
			}
			for port := range flows {
				if tt.timeWait == 0 {
					break
				}
				// The kernel forgets the flow, and the next one can only get its port.
				g.Refuse(netip.AddrPortFrom(nattest.Gateway4, port), server, 0)
				flows[open(nattest.TimeWait, rand.Uint32()).Port()] = snat.TimeWait
				tt.timeWait--
			}

			table := snat.NewTable(snat.Settings{PortRanges: []pool.PortRange{portRange}, TakesOver: takesOver})
			for port, state := range flows {
				table.Add(&snat.Flow{
					Protocol: snat.TCP, State: state, SNAT: true,
					Client: clients(0, 0)(0).Addr(), Translated: netip.AddrPortFrom(nattest.Gateway4, port), Destination: server,
				})
			}
			report := table.Report(pool.Limits{MinPorts: 1, Most: 1})
			if len(report.Pools) != 1 {
				t.Fatalf("%d pools, want 1", len(report.Pools))
			}
			want := report.Pools[0].SearchFailure

			const searches = 1000
			failed := 0
			for i := range searches {
				// Each search finds the same arrangement.
				state := nattest.SynSent
				if tt.free == 0 {
					state = nattest.TimeWait
				}
				seq := rand.Uint32()
				translated, granted := g.Open(state, clients(30000+i, 20000)(0), server, seq)
				switch {
				case !granted:
					failed++
				case tt.free > 0:
					g.Refuse(translated, server, seq)
				}
			}
			got := float64(failed) / searches
			// 6 standard deviations: one of a billion runs is beyond.
			if tolerance := 6 * math.Sqrt(want*(1-want)/searches); math.Abs(got-want) > tolerance {
				t.Errorf("%.4f of the searches failed, predicted %.4f ± %.4f", got, want, tolerance)
			}
		})
	}
}

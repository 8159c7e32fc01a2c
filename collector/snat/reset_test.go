package snat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/internal/limit"
	"ephemeral_port_exporter/collector/internal/portset"
)

// randomFlow returns a flow of an own socket or of source NAT, of IPv4 or IPv6.
func randomFlow(r *rand.Rand, destinations int) Flow {
	protocol := []Protocol{TCP, UDP}[r.IntN(2)]
	states := States(protocol)
	f := Flow{
		Protocol: protocol, State: states[r.IntN(len(states))], ClientPort: uint16(1024 + r.IntN(100)), Zone: uint16(r.IntN(2)),
		Expected: r.IntN(50) == 0, SNAT: r.IntN(4) > 0,
	}
	from, client, to := byte(r.IntN(3)), byte(r.IntN(25)), r.IntN(destinations)
	translated, destination := netip.AddrFrom4([4]byte{203, 0, 113, from}), netip.AddrFrom4([4]byte{192, 0, byte(to >> 8), byte(to)})
	f.Client = netip.AddrFrom4([4]byte{10, 0, 0, client})
	if r.IntN(5) == 0 {
		translated, destination = netip.AddrFrom16([16]byte{0x20, 1, 15: from}), netip.AddrFrom16([16]byte{0x20, 2, 15: byte(to)})
		f.Client = netip.AddrFrom16([16]byte{0xfd, 7: client % 4, 15: client})
	}
	f.Translated = netip.AddrPortFrom(translated, uint16(1000+r.IntN(130)))
	f.Destination = netip.AddrPortFrom(destination, uint16(80+r.IntN(2)))
	return f
}

// TestReset compares a Table that was used and Reset with a new one, over random flows.
func TestReset(t *testing.T) {
	used := new(Table)
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		settings := Settings{PortRanges: []portset.Range{{Low: 1024, High: 1103}}, Drops: r.IntN(2) == 0, TakesOver: r.IntN(2) == 0}
		if r.IntN(3) == 0 {
			settings.PortRanges = append(settings.PortRanges, portset.Range{Low: 1104, High: 1111})
		}
		limits := limit.Limits{MinPorts: r.IntN(12), Most: []int{0, 1, 5, 256}[r.IntN(4)]}
		table := NewTable(settings)
		used.Reset(settings)
		destinations := []int{1, 30, 300}[r.IntN(3)]
		for range r.IntN(3000) {
			f := randomFlow(r, destinations)
			table.Add(&f)
			used.Add(&f)
		}
		want, got := table.Report(limits), used.Report(limits)
		// Printed, as a NaN differs from itself.
		if diff := cmp.Diff(fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got)); diff != "" {
			t.Fatalf("flows %d: (-new +used):\n%s", seed, diff)
		}
		if r.IntN(3) == 0 {
			used.Release()
		}
	}
}

package snat

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/internal/limit"
	"ephemeral_port_exporter/collector/internal/portset"
)

// TestCiliumSearchFailure compares the share of failures with searches for all random numbers, by the steps of the datapath. TestCiliumDatapath compares it
// with the datapath itself.
func TestCiliumSearchFailure(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	usual := portset.Range{Low: 32768, High: 65535}
	for _, ports := range []portset.Range{usual, {Low: 40001, High: 65535}, {Low: 65530, High: 65535}, {Low: 65535, High: 65535}, {Low: 1024, High: 65535}} {
		for _, share := range []float64{0, 0.3, 0.6, 0.95, 1} {
			for _, c := range []Cilium{{ports, 32, false}, {ports, 128, true}, {ports, 3, false}} {
				if c.Old && ports.Size() == 1 {
					continue // it would divide by zero, and no node has that
				}
				var taken portset.Map
				for p := int(ports.Low); p <= int(ports.High); p++ {
					if random.Float64() < share {
						taken.Add(uint16(p))
					}
				}
				// search is the loop of snat_v4_new_mapping whose first try has failed.
				search := func(number uint16, clamp func(start, end, val uint16) uint16) bool {
					port := clamp(ports.Low, ports.High, number)
					for retries := 1; retries < c.Tries; retries++ {
						if !taken.Has(port) {
							return true
						}
						port = clamp(ports.Low, ports.High, port+1)
					}
					return false
				}
				failure := func(clamp func(start, end, val uint16) uint16) (share float64) {
					for number := range 1 << 16 {
						if !search(uint16(number), clamp) {
							share += 1. / (1 << 16)
						}
					}
					return share
				}
				want := failure(func(start, end, val uint16) uint16 {
					n := uint32(end-start) + 1
					return start + uint16(uint32(val)*n>>16)
				})
				if c.Old {
					want = max(want, failure(func(start, end, val uint16) uint16 { return val%(end-start) + start }))
				}
				if got := c.searchFailure(&taken); math.Abs(got-want) > 1e-9 {
					t.Errorf("%+v with %v taken: %v, want %v", c, share, got, want)
				}
			}
		}
	}
}

// TestCiliumPools has flows of Cilium and of the kernel on the same ports of the same address, for the same destination.
func TestCiliumPools(t *testing.T) {
	s := settings
	s.Cilium = Cilium{Ports: portset.Range{Low: 40000, High: 40499}, Tries: 32}
	of := func(f Flow) Flow { f.Cilium = true; return f }
	table := NewTable(s)
	flows(table, 20, tcpFlow(Established, 40000))
	flows(table, 300, of(tcpFlow(TimeWait, 40000)))
	flows(table, 100, of(tcpFlow(NoConnection, 40300)))
	own := of(tcpFlow(Established, 40400))
	own.SNAT, own.Client, own.ClientPort = false, own.Translated.Addr(), own.Translated.Port()
	flows(table, 50, own)
	outside := of(tcpFlow(Established, 20000))
	outside.Destination = netip.MustParseAddrPort("198.51.100.2:443")
	flows(table, 100, outside)
	alone := own
	alone.Destination = netip.MustParseAddrPort("198.51.100.3:443")
	flows(table, 50, alone)
	r := table.Report(limit.Limits{MinPorts: 1, Most: 10})
	var got []string
	for _, p := range r.Pools {
		got = append(got, fmt.Sprintf("%v cilium %v: %d of %d, %.1f, reusable %d, outside %d, ceiling %v", p.Address, p.Cilium, p.Held, p.Capacity, p.Utilization, p.Reusable, p.Outside, p.Ceiling))
	}
	want := []string{
		"198.51.100.1:443 cilium true: 450 of 500, 0.9, reusable 0, outside 0, ceiling NaN",
		"198.51.100.2:443 cilium true: 0 of 500, NaN, reusable 0, outside 100, ceiling NaN",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pools (-want +got):\n%s", diff)
	}
	if r.MaxUtilization != 0.9 || r.UnknownPools != 1 || r.UnreportedPools != 1 || r.UnreportedPorts != 20 {
		t.Errorf("report: %+v", r)
	}
	if f := r.Pools[0].SearchFailure; f < 0.5 {
		t.Errorf("%v of searches fail", f)
	}
}

// TestCiliumFew has a client that takes few ports, but those that all searches try last: the pool is far from full, and yet searches fail.
func TestCiliumFew(t *testing.T) {
	s := settings
	s.Cilium = Cilium{Ports: portset.Range{Low: 32768, High: 65535}, Tries: 32}
	table := NewTable(s)
	f := tcpFlow(Established, 60000)
	f.Cilium = true
	flows(table, 5536, f)
	cycle := f
	for port := uint16(32768); port < 60000; port = s.Cilium.scaled(port + 1) {
		cycle.Translated = netip.AddrPortFrom(f.Translated.Addr(), port)
		table.Add(&cycle)
	}
	r := table.Report(limit.Limits{MinPorts: 100000, Most: 10})
	if len(r.Pools) != 1 || r.Pools[0].Utilization > 0.2 || r.Pools[0].SearchFailure < 0.1 {
		t.Errorf("pools: %+v", r.Pools)
	}
}

// TestCiliumRange has flows whose ports show, or do not show, that the range of the datapath begins higher than expected.
func TestCiliumRange(t *testing.T) {
	s := settings
	s.Cilium = Cilium{Ports: portset.Range{Low: 32768, High: 65535}, Tries: 32}
	for _, tt := range []struct {
		name          string
		random, first int // so many ports from this one on that are not those of the clients
		kept          uint16
		from          uint16
	}{
		{"begins higher", 200, 36864, 0, 36864},
		{"few", 199, 40000, 0, 0},
		{"a little higher", 5000, 36863, 0, 0},
		{"a client has kept a low port", 5000, 40000, 33000, 0},
		{"a client has kept a high port", 5000, 40000, 39000, 39000},
		{"begins lower", 5000, 30000, 0, 0},
	} {
		table := NewTable(s)
		f := tcpFlow(Established, uint16(tt.first))
		f.Cilium = true
		flows(table, tt.random, f)
		if tt.kept != 0 {
			f.ClientPort, f.Translated = tt.kept, netip.AddrPortFrom(f.Translated.Addr(), tt.kept)
			table.Add(&f)
		}
		r := table.Report(limit.Limits{MinPorts: 1, Most: 10})
		known := tt.from == 0 && tt.first >= 32768
		if r.CiliumFrom != tt.from || r.Pools[0].Known() != known || math.IsNaN(r.MaxUtilization) == known {
			t.Errorf("%s: from %d, pool %+v, want from %d, known %v", tt.name, r.CiliumFrom, r.Pools[0], tt.from, known)
		}
	}
}

// TestCiliumOnePort has a version before Cilium 1.18, and --node-ports up to 65534 or 65535: one port is left.
func TestCiliumOnePort(t *testing.T) {
	s := settings
	s.Cilium = Cilium{Ports: portset.Range{Low: 65535, High: 65535}, Tries: 128, Old: true}
	table := NewTable(s)
	f := tcpFlow(Established, 65535)
	f.Cilium = true
	table.Add(&f)
	if r := table.Report(limit.Limits{MinPorts: 1, Most: 10}); len(r.Pools) != 1 || r.Pools[0].Utilization != 1 || r.Pools[0].SearchFailure != 1 {
		t.Errorf("pools: %+v", r.Pools)
	}
}

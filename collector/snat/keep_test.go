package snat

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"net/netip"
	"slices"
	"testing"

	"ephemeral_port_exporter/collector/internal/limit"
	"ephemeral_port_exporter/collector/internal/portset"
)

// use has a client hold the first ports of pools to n destinations, from one on.
func use(table *Table, client netip.Addr, ports, first, n int) {
	for i := range n {
		f := tcpFlow(Established, 40000)
		f.Client, f.Destination = client, netip.AddrPortFrom(f.Destination.Addr(), uint16(first+i))
		flows(table, ports, f)
	}
}

// destinationsOf returns how many pools of a report are to destinations from first on.
func destinationsOf(r *Report, first int) (n int) {
	for _, p := range r.Pools {
		if int(p.Address.Port()) >= first {
			n++
		}
	}
	return n
}

// victims is the first port of the victims' destinations in these tests. Those of the others are lower, so that the order of
// addresses is no help.
const victims = 1000

// TestFlood has a client that fills many more pools than the limit. The worst pools of others stay in the report, whether or
// not they are in danger, and so do more than that.
func TestFlood(t *testing.T) {
	attacker, victim, quiet := netip.MustParseAddr("10.1.0.66"), netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.3")
	for _, tt := range []struct {
		name string
		add  func(table *Table)
		want int // pools of others
	}{
		{"one", func(table *Table) { use(table, victim, 99, victims, 1) }, 1},
		{"not in danger", func(table *Table) { use(table, victim, 10, victims, 1) }, 1},
		{"several", func(table *Table) { use(table, victim, 60, victims, 4); use(table, quiet, 10, victims+10, 4) }, 8},
		{"as many", func(table *Table) { use(table, victim, 60, victims, 300) }, 20},
		{"as many, not in danger", func(table *Table) { use(table, victim, 10, victims, 300) }, 10},
		{"the attacker has most of the victim's pool", func(table *Table) {
			use(table, attacker, 80, victims, 1)
			f := tcpFlow(Established, 40080)
			f.Client, f.Destination = victim, netip.AddrPortFrom(f.Destination.Addr(), victims)
			flows(table, 15, f)
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := NewTable(settings)
			use(table, attacker, 100, 1, 300)
			tt.add(table)
			r := table.Report(limit.Limits{MinPorts: 10, Most: 40, Seed: maphash.MakeSeed()})
			if got := destinationsOf(&r, victims); got != tt.want || len(r.Pools) != 40 {
				t.Errorf("%d of the victims' pools and %d in all, want %d of 40", got, len(r.Pools), tt.want)
			}
			if !slices.IsSortedFunc(r.Pools, func(a, b Pool) int { return byDanger(&a, &b) }) {
				t.Error("the worst is not first")
			}
			if r.MaxUtilization != 1 || r.UnreportedMaxUtilization != 1 {
				t.Errorf("greatest utilization %v, of those left out %v, want 1", r.MaxUtilization, r.UnreportedMaxUtilization)
			}
		})
	}
}

// TestFloodIPv6 has a client with as many addresses as it likes, all of one prefix, each with full pools.
func TestFloodIPv6(t *testing.T) {
	table := NewTable(settings)
	for n := range 300 {
		use(table, address6("2001:db8:0:66::", n), 100, 1+2*n, 2)
	}
	for n := range 5 { // these share a prefix
		use(table, address6("2001:db8::", n), 10, victims+n, 1)
	}
	use(table, netip.MustParseAddr("10.1.0.2"), 10, victims+10, 5)
	r := table.Report(limit.Limits{MinPorts: 10, Most: 40})
	if got := destinationsOf(&r, victims); got != 10 {
		t.Errorf("%d of the victims' pools are reported, want 10", got)
	}
}

// address6 returns an address of a prefix.
func address6(prefix string, n int) netip.Addr {
	b := netip.MustParseAddr(prefix).As16()
	binary.BigEndian.PutUint64(b[8:], uint64(n))
	return netip.AddrFrom16(b)
}

// TestFloodLots has more clients with full pools than places: each has its chance, also one whose pool is not the fullest, and
// it stays the same from scan to scan.
func TestFloodLots(t *testing.T) {
	report := func(seed maphash.Seed) Report {
		table := NewTable(settings)
		for n := range 60 {
			use(table, netip.AddrFrom4([4]byte{10, 1, 1, byte(n)}), 100, 1+n, 1)
		}
		use(table, netip.MustParseAddr("10.1.0.2"), 99, victims, 1)
		return table.Report(limit.Limits{MinPorts: 10, Most: 40, Seed: seed})
	}
	kept := 0
	const draws = 64 // each with a chance of nearly a third
	for range draws {
		seed := maphash.MakeSeed()
		a, b := report(seed), report(seed)
		if got := destinationsOf(&a, victims); got != destinationsOf(&b, victims) {
			t.Fatal("two scans have different pools")
		} else {
			kept += got
		}
	}
	if kept == 0 || kept == draws {
		t.Errorf("the victim's pool is in %d of %d reports", kept, draws)
	}
}

// TestFloodNamespace has a client of one namespace fill its pools beside another namespace: limits of both together leave
// each client its worst pool, however many clients the other one invents.
func TestFloodNamespace(t *testing.T) {
	limits := limit.Limits{MinPorts: 10, Most: 40, Seed: maphash.MakeSeed()}
	attack, gateway := NewTable(settings), NewTable(settings)
	for n := range 200 {
		use(attack, netip.AddrFrom4([4]byte{10, 1, 1, byte(n)}), 100, 1+n, 1)
	}
	for n := range 8 {
		use(gateway, netip.AddrFrom4([4]byte{10, 1, 2, byte(n)}), 50, victims+n, 1)
	}
	a, g := attack.Report(limits), gateway.Report(limits)
	ShareLimit([]*Report{&a, &g}, limits.Most)
	if len(g.Pools) != 8 || len(a.Pools) != 32 || a.UnreportedPools != 168 || a.UnreportedMaxUtilization != 1 {
		t.Errorf("%d pools of the gateway, %d of the other one, and %d not reported, want 8, 32, 168", len(g.Pools), len(a.Pools), a.UnreportedPools)
	}
	ShareLimit([]*Report{&a, &g}, 1)
	if len(g.Pools) != 1 || len(a.Pools) != 1 {
		t.Errorf("%d and %d pools, want the worst of each namespace", len(g.Pools), len(a.Pools))
	}
	ShareLimit([]*Report{&a, &g}, 0)
	if len(g.Pools)+len(a.Pools) != 0 || g.UnreportedMaxUtilization != 0.5 {
		t.Errorf("%d and %d pools, want none; the worst of the gateway has %v", len(g.Pools), len(a.Pools), g.UnreportedMaxUtilization)
	}
}

// TestMinPortsFullRange has two ranges of which the smaller one is full: then half of the searches fail, and the pool is reported, however few
// ports that is.
func TestMinPortsFullRange(t *testing.T) {
	settings := settings
	settings.PortRanges = []portset.Range{{Low: 1024, High: 59999}, {Low: 60000, High: 60199}}
	table := NewTable(settings)
	fill(table, settings.PortRanges[1])
	if r := table.Report(limit.Limits{Most: 10}); len(r.Pools) != 1 || r.Pools[0].SearchFailure < 0.4 {
		t.Errorf("reported %+v", r)
	}
}

// TestMinPortsInDanger reports a pool of few ports once half of them are in use.
func TestMinPortsInDanger(t *testing.T) {
	settings := settings
	settings.PortRanges = []portset.Range{{Low: 40000, High: 40007}}
	for held, want := range map[int]int{3: 0, 4: 1, 8: 1} {
		table := NewTable(settings)
		flows(table, held, tcpFlow(Established, 40000))
		r := table.Report(limit.Limits{MinPorts: 10, Most: 10})
		if len(r.Pools) != want {
			t.Errorf("%d of 8 ports: %d pools, want %d", held, len(r.Pools), want)
		}
		if left := r.UnreportedMaxUtilization; want == 0 && left != float64(held)/8 || want == 1 && !math.IsNaN(left) {
			t.Errorf("%d of 8 ports: utilization of those left out is %v", held, left)
		}
	}
}

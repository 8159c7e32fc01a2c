package pool

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"ephemeral_port_exporter/collector/internal/tcpstate"

	"github.com/google/go-cmp/cmp"
)

// addOwned adds sockets of control groups, each on a port of its own, in this order.
func addOwned(t *Table, destination string, cgroups ...uint64) {
	for i, cgroup := range cgroups {
		t.Add(&Socket{
			State:  tcpstate.Established,
			Local:  netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(32768+i)),
			Remote: netip.MustParseAddrPort(destination), Cgroup: cgroup,
		})
	}
}

// TestOwners checks that each destination has its own owners, those with most ports, and that what
// nobody owns has none.
func TestOwners(t *testing.T) {
	table := NewTable(Settings{PortRange: PortRange{Low: 32768, High: 60999}, TimeWaitLength: tenPorts.TimeWaitLength})
	addOwned(table, "192.0.2.1:443", 7, 7, 7, 0, 0, 0, 0)
	addOwned(table, "192.0.2.2:443", 0, 7, 8, 0, 9, 8, 10, 10, 9, 9, 8, 8)
	addOwned(table, "192.0.2.3:443", 0, 0)
	for _, state := range []tcpstate.State{tcpstate.TimeWait, tcpstate.FinWait2} {
		table.Add(&Socket{
			State: state, Mini: true,
			Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("192.0.2.3:443"),
		})
	}
	want := map[string][]Owner{
		"192.0.2.1:443": {{7, 3}},
		"192.0.2.2:443": {{8, 4}, {9, 3}, {10, 2}},
		"192.0.2.3:443": nil,
	}
	got := map[string][]Owner{}
	for _, d := range table.Report(Limits{Most: 10}).Destinations {
		got[d.Address.String()] = d.Owners
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
}

// TestOwnersBlocked checks that sockets whose ports connect() cannot choose count for nobody.
func TestOwnersBlocked(t *testing.T) {
	table := NewTable(Settings{PortRange: PortRange{Low: 32768, High: 60999}, TimeWaitLength: tenPorts.TimeWaitLength})
	table.Block(Listener{Local: netip.MustParseAddrPort("10.0.0.1:32768")})
	addOwned(table, "192.0.2.1:443", 7, 8, 8)
	d := table.Report(Limits{Most: 10}).Destinations[0]
	if diff := cmp.Diff([]Owner{{8, 2}}, d.Owners); diff != "" || d.Held != 2 {
		t.Errorf("%d held, owners (-want +got):\n%s", d.Held, diff)
	}
}

// TestOwnersMany checks that thousands of small control groups do not keep the large ones out: these are
// counted exactly.
func TestOwnersMany(t *testing.T) {
	var cgroups []uint64
	for i := range uint64(20000) {
		cgroups = append(cgroups, 1000+i)
	}
	for range 2000 {
		cgroups = append(cgroups, 7, 7, 8)
	}
	random := rand.New(rand.NewPCG(1, 2))
	random.Shuffle(len(cgroups), func(i, j int) { cgroups[i], cgroups[j] = cgroups[j], cgroups[i] })
	table := NewTable(Settings{PortRange: PortRange{Low: 32768, High: 60999}, TimeWaitLength: tenPorts.TimeWaitLength})
	addOwned(table, "192.0.2.1:443", cgroups...)
	owners := table.Report(Limits{Most: 10}).Destinations[0].Owners
	if diff := cmp.Diff([]Owner{{7, 4000}, {8, 2000}}, owners[:2]); diff != "" || len(owners) != MaxOwners {
		t.Errorf("%d owners (-want +got):\n%s", len(owners), diff)
	}
}

// TestBoundOwners checks that the owners of bound ports are those of the pools that have most of their ports bound.
func TestBoundOwners(t *testing.T) {
	table := NewTable(Settings{PortRange: PortRange{Low: 32768, High: 60999}, TimeWaitLength: tenPorts.TimeWaitLength})
	table.KnowBound()
	add := func(destination string, bound Fact, cgroups ...uint64) {
		for _, cgroup := range cgroups {
			table.Add(&Socket{
				State: tcpstate.Established, Cgroup: cgroup, Bound: bound,
				Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(32768+table.sockets)), Remote: netip.MustParseAddrPort(destination),
			})
		}
	}
	add("192.0.2.1:443", Yes, 7, 7, 0, 8)
	add("192.0.2.2:443", Yes, 8, 8)
	add("192.0.2.2:443", No, 9)
	add("192.0.2.3:443", Yes, 10)
	add("192.0.2.3:443", No, 9, 9)
	add("192.0.2.4:443", Yes, 0)
	if diff := cmp.Diff([]Owner{{8, 3}, {7, 2}, {9, 1}}, table.Report(Limits{Most: 10}).BoundOwners); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

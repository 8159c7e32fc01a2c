package snat

import (
	gocmp "cmp"
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ephemeral_port_exporter/collector/internal/limit"
	"ephemeral_port_exporter/collector/internal/portset"
)

var settings = Settings{
	PortRanges: []portset.Range{{Low: 40000, High: 40099}}, TakesOver: true,
	TCPTimeWait: 120 * time.Second, UDP: 30 * time.Second,
}

// flows adds n flows like f, on ports from that of f on.
func flows(table *Table, n int, f Flow) {
	for i := range n {
		g := f
		g.Translated = netip.AddrPortFrom(f.Translated.Addr(), f.Translated.Port()+uint16(i))
		table.Add(&g)
	}
}

func tcpFlow(state State, port uint16) Flow {
	return Flow{
		Protocol: TCP, State: state, Client: netip.MustParseAddr("10.1.0.2"), ClientPort: 20000, SNAT: true,
		Translated:  netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port),
		Destination: netip.MustParseAddrPort("198.51.100.1:443"),
	}
}

func TestReport(t *testing.T) {
	established := tcpFlow(Established, 40000)
	pool := Pool{
		Protocol: TCP, Source: established.Translated.Addr(), Address: established.Destination, Capacity: 100,
		Ports: [numStates]int{Established: 20}, Held: 20, Utilization: 0.2, Ceiling: math.Inf(1),
		Clients: []Client{{established.Client, 20}},
	}
	with := func(change func(p *Pool)) []Pool {
		p := pool
		change(&p)
		return []Pool{p}
	}
	tests := []struct {
		name string
		add  func(table *Table)
		old  bool // Linux before 6.5
		want []Pool
	}{
		{"nothing", func(*Table) {}, false, nil},
		{"open flows", func(table *Table) { flows(table, 20, established) }, false, []Pool{pool}},
		{"ports outside of the range", func(table *Table) {
			flows(table, 20, established)
			low := tcpFlow(Established, 1000)
			low.ClientPort = 1000
			flows(table, 20, low) // have a pool of their own
			flows(table, 2, tcpFlow(Established, 40100))
		}, false, with(func(p *Pool) { p.Outside, p.Clients = 2, []Client{{established.Client, 22}} })},
		{"many ports outside of the range", func(table *Table) {
			flows(table, 20, established)
			flows(table, 1, tcpFlow(Established, 1000))
			flows(table, 2, tcpFlow(Established, 40100))
		}, false, with(func(p *Pool) {
			p.unknown()
			p.Outside, p.Clients = 3, []Client{{established.Client, 23}}
		})},
		{"all ports outside of the range", func(table *Table) {
			flows(table, 20, tcpFlow(Established, 40100))
		}, false, with(func(p *Pool) {
			p.unknown()
			p.Ports, p.Held, p.Outside = [numStates]int{}, 0, 20
		})},
		{"own sockets take ports", func(table *Table) {
			own := established
			own.SNAT, own.Client = false, established.Translated.Addr()
			flows(table, 5, own)
			flows(table, 15, tcpFlow(Established, 40005))
		}, false, with(func(p *Pool) {
			p.Clients = []Client{{established.Client, 15}, {established.Translated.Addr(), 5}}
		})},
		{"own sockets alone are no pool", func(table *Table) {
			own := established
			own.SNAT = false
			flows(table, 100, own)
		}, false, nil},
		{"two clients", func(table *Table) {
			flows(table, 15, established)
			other := tcpFlow(Established, 40015)
			other.Client = netip.MustParseAddr("10.1.0.3")
			flows(table, 5, other)
		}, false, with(func(p *Pool) {
			p.Clients = []Client{{established.Client, 15}, {netip.MustParseAddr("10.1.0.3"), 5}}
		})},
		{"closed flows are taken over", func(table *Table) {
			flows(table, 10, established)
			flows(table, 5, tcpFlow(TimeWait, 40010))
			flows(table, 3, tcpFlow(Close, 40015))
			flows(table, 2, tcpFlow(SynSent2, 40018))
		}, false, with(func(p *Pool) {
			p.Ports = [numStates]int{Established: 10, TimeWait: 5, Close: 3, SynSent2: 2}
			p.Reusable, p.Utilization = 10, 0.1
		})},
		{"closed flows before 6.5", func(table *Table) {
			flows(table, 10, established)
			flows(table, 10, tcpFlow(TimeWait, 40010))
		}, true, with(func(p *Pool) {
			p.Ports = [numStates]int{Established: 10, TimeWait: 10}
			p.Ceiling = 90.0 / 120
		})},
		{"closed flows of own sockets", func(table *Table) {
			flows(table, 10, established)
			own := tcpFlow(TimeWait, 40010)
			own.SNAT = false
			flows(table, 10, own)
		}, false, with(func(p *Pool) {
			p.Ports = [numStates]int{Established: 10, TimeWait: 10}
			p.Clients = []Client{{established.Client, 10}, {established.Translated.Addr(), 10}}
		})},
		{"full", func(table *Table) { flows(table, 100, established) }, false, with(func(p *Pool) {
			p.Ports, p.Held, p.Utilization = [numStates]int{Established: 100}, 100, 1
			p.SearchFailure, p.Ceiling = 1, 0
			p.Clients = []Client{{established.Client, 100}}
		})},
		{"full, but one may be taken over", func(table *Table) {
			flows(table, 99, established)
			flows(table, 1, tcpFlow(TimeWait, 40099))
		}, false, with(func(p *Pool) {
			p.Ports, p.Held, p.Reusable = [numStates]int{Established: 99, TimeWait: 1}, 100, 1
			// Every second search that has it among the last 32 of its 100 tries.
			p.Utilization, p.SearchFailure = 0.99, 1-0.32/2
			p.Clients = []Client{{established.Client, 100}}
		})},
		{"states without an end before 6.5", func(table *Table) {
			flows(table, 10, tcpFlow(SynSent2, 40000))
			flows(table, 10, tcpFlow(Close, 40010))
		}, true, with(func(p *Pool) {
			p.Ports, p.Ceiling = [numStates]int{SynSent2: 10, Close: 10}, 90.0/120
		})},
		{"full of closed flows of own sockets", func(table *Table) {
			flows(table, 10, established)
			own := tcpFlow(TimeWait, 40010)
			own.SNAT = false
			flows(table, 90, own)
		}, false, with(func(p *Pool) {
			p.Ports, p.Held, p.Utilization = [numStates]int{Established: 10, TimeWait: 90}, 100, 1
			p.SearchFailure, p.Ceiling = 1, 0
			p.Clients = []Client{{established.Translated.Addr(), 90}, {established.Client, 10}}
		})},
		{"UDP", func(table *Table) {
			udp := established
			for i, state := range []State{Unreplied, Replied, Assured} {
				udp.Protocol, udp.State = UDP, state
				udp.Translated = netip.AddrPortFrom(udp.Translated.Addr(), 40000+5*uint16(i))
				flows(table, 5*(1+i/2), udp)
			}
		}, false, with(func(p *Pool) {
			p.Protocol, p.Ports, p.Ceiling = UDP, [numStates]int{Unreplied: 5, Replied: 5, Assured: 10}, 90.0/30
		})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			settings := settings
			settings.TakesOver = !tt.old
			table := NewTable(settings)
			tt.add(table)
			got := table.Report(limit.Limits{MinPorts: 1, Most: 10})
			if diff := cmp.Diff(tt.want, got.Pools, cmpopts.EquateEmpty(), cmpopts.EquateNaNs(), cmpopts.IgnoreUnexported(Pool{}), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.EquateApprox(0, 1e-9)); diff != "" {
				t.Errorf("pools (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPools gives flows that differ in one thing, and says whether they share a pool.
func TestPools(t *testing.T) {
	tests := []struct {
		name   string
		change func(f *Flow)
		pools  int
	}{
		{"the client", func(f *Flow) { f.Client = netip.MustParseAddr("10.1.0.3") }, 1},
		{"the state", func(f *Flow) { f.State = TimeWait }, 1},
		{"the protocol", func(f *Flow) { f.Protocol, f.State = UDP, Assured }, 2},
		{"the translated address", func(f *Flow) { f.Translated = netip.MustParseAddrPort("192.0.2.2:40000") }, 2},
		{"the destination", func(f *Flow) { f.Destination = netip.MustParseAddrPort("198.51.100.2:443") }, 2},
		{"the destination's port", func(f *Flow) { f.Destination = netip.MustParseAddrPort("198.51.100.1:80") }, 2},
		{"the family", func(f *Flow) {
			f.Translated, f.Destination = netip.MustParseAddrPort("[2001:db8::1]:40000"), netip.MustParseAddrPort("[2001:db8::2]:443")
		}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := NewTable(settings)
			flows(table, 10, tcpFlow(Established, 40000))
			other := tcpFlow(Established, 40010)
			tt.change(&other)
			flows(table, 10, other)
			if got := table.Report(limit.Limits{MinPorts: 1, Most: 10}); len(got.Pools) != tt.pools {
				t.Errorf("%d pools, want %d: %+v", len(got.Pools), tt.pools, got.Pools)
			}
		})
	}
}

// TestZones has pools that differ only in the zone, which is no label.
func TestZones(t *testing.T) {
	table := NewTable(settings)
	f := tcpFlow(Established, 40000)
	for zone, n := range []int{20, 50, 30} {
		f.Zone = uint16(zone)
		flows(table, n, f)
	}
	got := table.Report(limit.Limits{MinPorts: 1, Most: 10})
	if len(got.Pools) != 1 || got.Pools[0].Held != 50 || got.UnreportedPools != 2 || got.UnreportedPorts != 50 || got.Flows != 100 {
		t.Errorf("report %+v, want the pool with 50 ports, and 2 unreported ones with 50, of 100 flows", got)
	}
}

func TestLimits(t *testing.T) {
	var reports []*Report
	for _, destinations := range []int{1, 4} {
		table := NewTable(settings)
		for i := range destinations {
			f := tcpFlow(Established, 40000)
			f.Destination = netip.AddrPortFrom(f.Destination.Addr(), uint16(1+i))
			flows(table, 10*(i+destinations), f)
		}
		f := tcpFlow(Established, 40000)
		flows(table, 5, f) // too few
		report := table.Report(limit.Limits{MinPorts: 10, Most: 3})
		reports = append(reports, &report)
	}
	ShareLimit(reports, 2)
	type got struct {
		Reported, Listed []int
		MaxUtilization   float64
		Pools, LeftPorts int
	}
	var all []got
	for _, r := range reports {
		g := got{MaxUtilization: r.MaxUtilization, Pools: r.UnreportedPools, LeftPorts: r.UnreportedPorts}
		for _, p := range r.Pools {
			g.Reported = append(g.Reported, p.Held)
		}
		for _, p := range r.Others {
			g.Listed = append(g.Listed, p.Held)
		}
		all = append(all, g)
	}
	want := []got{{[]int{10}, []int{5}, 0.1, 1, 5}, {[]int{70}, []int{60, 50, 40, 5}, 0.7, 4, 5 + 40 + 50 + 60}}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("reports (-want +got):\n%s", diff)
	}
}

// TestZonesOthers has pools of several zones without series: each label is listed once, so other clients keep their places, and what is in most
// danger is shown of it.
func TestZonesOthers(t *testing.T) {
	settings := settings
	settings.PortRanges, settings.Drops = []portset.Range{{Low: 1024, High: 65535}}, true
	table := NewTable(settings)
	use := func(zone, port, n int) {
		f := tcpFlow(Established, 30000)
		f.Zone, f.Destination = uint16(zone), netip.AddrPortFrom(f.Destination.Addr(), uint16(port))
		flows(table, n, f)
	}
	for zone := range limit.Listed {
		use(zone, 1, 90) // one destination in many zones
		use(1, 100+zone, 400)
		use(2, 100+zone, 90) // many with series in another zone
	}
	for n := range 5 {
		use(0, 1000+n, 80)
	}
	f := tcpFlow(Established, 0)
	f.Zone = 1
	for _, r := range mapE(0x34) { // one that looks full, while it has many ports free in another zone
		f.Translated = netip.AddrPortFrom(f.Translated.Addr(), r.Low)
		flows(table, r.Size(), f)
	}
	use(2, int(f.Destination.Port()), 400)
	r := table.Report(limit.Limits{Most: 256})
	if len(r.Pools) != limit.Listed || len(r.Others) != 7 || r.Others[0].FullBlocks == nil || r.Others[1].Held != 90 {
		t.Errorf("%d pools and %d others, want %d and 7, of which the first looks full: %+v", len(r.Pools), len(r.Others), limit.Listed, r.Others)
	}
}

// TestOthers compares what is listed without series with a report that has all pools: those in most danger. So it does where a flow of
// another zone could have made twins.
func TestOthers(t *testing.T) {
	settings := settings
	settings.PortRanges = []portset.Range{{Low: 40000, High: 40999}}
	random := rand.New(rand.NewPCG(5, 6))
	for round := range 30 {
		table := NewTable(settings)
		pools := 1 + random.IntN(120)
		for n := range pools {
			f := tcpFlow(Established, 40000)
			f.Destination = netip.AddrPortFrom(f.Destination.Addr(), uint16(1+n))
			flows(table, 1+random.IntN(1+random.IntN(600)), f)
			f.Translated = netip.AddrPortFrom(f.Translated.Addr(), 30000)
			if random.IntN(4) == 0 {
				flows(table, 150, f) // it may not be known how full it is
			}
		}
		if round%2 > 0 {
			own := tcpFlow(Established, 40000)
			own.Zone, own.SNAT = 1, false
			table.Add(&own)
		}
		limits := limit.Limits{MinPorts: 100, Most: random.IntN(20)}
		all := table.Report(limit.Limits{MinPorts: 1, Most: pools})
		got := table.Report(limits)
		reported := map[labels]bool{}
		for _, p := range got.Pools {
			if p.Held+p.Outside < limits.MinPorts && p.rank() > 0 {
				t.Errorf("round %d: series of %+v", round, p)
			}
			reported[p.labels()] = true
		}
		var want []labels
		for _, p := range all.Pools {
			if !reported[p.labels()] && len(want) < limit.Listed {
				want = append(want, p.labels())
			}
		}
		var listed []labels
		for _, p := range got.Others {
			listed = append(listed, p.labels())
		}
		if !slices.Equal(listed, want) {
			t.Errorf("round %d: others\n%v, want\n%v", round, listed, want)
		}
		if got.UnreportedPools != pools-len(got.Pools) {
			t.Errorf("round %d: %d pools are not reported, want %d", round, got.UnreportedPools, pools-len(got.Pools))
		}
	}
}

// TestListed has pools without series. The 20 in most danger are listed all the same, but none of which so few flows tell that it is not
// known.
func TestListed(t *testing.T) {
	settings := settings
	settings.PortRanges = []portset.Range{{Low: 1024, High: 65535}} // 0.5% are 323 ports
	table := NewTable(settings)
	to := func(n int) Flow {
		f := tcpFlow(Established, 40000)
		f.Destination = netip.AddrPortFrom(f.Destination.Addr(), uint16(n))
		return f
	}
	flows(table, 323, to(1))
	flows(table, 322, to(2))
	for n := range 30 {
		flows(table, 1+n%5, to(10+n))
	}
	outside := to(3)
	outside.Translated = netip.AddrPortFrom(outside.Translated.Addr(), 600)
	table.Add(&outside)
	r := table.Report(limit.Limits{Most: 256})
	var got []int
	for _, p := range r.Listed() {
		got = append(got, p.Held)
	}
	want := slices.Concat([]int{323, 322}, slices.Repeat([]int{5}, 6), slices.Repeat([]int{4}, 6), slices.Repeat([]int{3}, 6), []int{2})
	if diff := cmp.Diff(want, got); diff != "" || len(r.Pools) != 1 || r.UnreportedPools != 32 || r.UnreportedPorts != 322+90 || r.UnknownPools != 0 {
		t.Errorf("%d with series, %d pools with %d ports unreported, %d unknown; listed (-want +got):\n%s", len(r.Pools), r.UnreportedPools, r.UnreportedPorts, r.UnknownPools, diff)
	}
}

// TestDanger has a pool whose searches fail, as its ports lie together, before one with more ports.
func TestDanger(t *testing.T) {
	settings := settings
	settings.PortRanges = []portset.Range{{Low: 1024, High: 65535}}
	table := NewTable(settings)
	together, apart := tcpFlow(Established, 1), tcpFlow(Established, 1)
	apart.Destination = netip.MustParseAddrPort("198.51.100.2:443")
	for port := 32768; port < 61000; port++ { // 44%
		together.Translated = netip.AddrPortFrom(together.Translated.Addr(), uint16(port))
		table.Add(&together)
	}
	for port := 1024; port < 65535; port += 2 { // 50%
		apart.Translated = netip.AddrPortFrom(apart.Translated.Addr(), uint16(port))
		table.Add(&apart)
	}
	r := table.Report(limit.Limits{MinPorts: 1, Most: 1})
	if len(r.Pools) != 1 || r.Pools[0].Address != together.Destination {
		t.Fatalf("reported %+v, want the pool to %s", r.Pools, together.Destination)
	}
	if got := r.Pools[0].SearchFailure; got < 0.01 || got > 0.02 {
		t.Errorf("share of searches that fail is %v, want about 0.44^5", got)
	}
	if r.MaxUtilization != 0.5 {
		t.Errorf("greatest utilization is %v, want that of the other pool, 0.5", r.MaxUtilization)
	}
}

// TestByDanger has pools in the order in which they are reported.
func TestByDanger(t *testing.T) {
	pool := func(failure, utilization float64, held int, source, address string, protocol Protocol) Pool {
		return Pool{
			SearchFailure: failure, Utilization: utilization, Held: held, Protocol: protocol,
			Source: netip.MustParseAddr(source), Address: netip.MustParseAddrPort(address),
		}
	}
	nan := math.NaN()
	want := []Pool{
		pool(0.5, 0.4, 40, "192.0.2.1", "198.51.100.1:80", TCP),
		pool(0.021, 0.9, 90, "192.0.2.1", "198.51.100.1:80", TCP),
		pool(0.029, 0.8, 90, "192.0.2.1", "198.51.100.1:80", TCP), // as many failures in percent
		pool(0, 0.7, 70, "192.0.2.1", "198.51.100.1:80", TCP),
		pool(0, 0.6, 90, "192.0.2.9", "198.51.100.1:80", TCP),
		pool(0, 0.6, 80, "192.0.2.1", "198.51.100.1:81", TCP),
		pool(0, 0.6, 80, "192.0.2.2", "198.51.100.1:80", TCP),
		pool(0, 0.6, 80, "192.0.2.2", "198.51.100.1:80", UDP),
		pool(0, 0.6, 80, "192.0.2.2", "198.51.100.1:81", TCP),
		pool(0, 0.5, 50, "192.0.2.1", "198.51.100.1:80", TCP),
		pool(nan, nan, 50, "192.0.2.1", "198.51.100.1:80", TCP),
		pool(nan, nan, 40, "192.0.2.1", "198.51.100.1:80", TCP),
		pool(0, 0.49, 49, "192.0.2.1", "198.51.100.1:80", TCP),
		pool(0.009, 0.4, 40, "192.0.2.1", "198.51.100.1:80", TCP),
	}
	for i, a := range want {
		for j, b := range want {
			if got, want := byDanger(&a, &b), gocmp.Compare(i, j); got != want {
				t.Errorf("%+v and %+v: got %d, want %d", a, b, got, want)
			}
		}
	}
}

// TestSearched has a pool with few ports, but all in a row: some searches fail, and that is reported.
func TestSearched(t *testing.T) {
	settings := settings
	settings.PortRanges = []portset.Range{{Low: 40000, High: 40999}}
	table := NewTable(settings)
	flows(table, 200, tcpFlow(Established, 40300))
	want := 1.0
	for _, tries := range []float64{128, 64, 32, 16, 8} {
		want *= (200 - tries + 1) / 1000 // of the ports to begin with
	}
	r := table.Report(limit.Limits{MinPorts: 1, Most: 1})
	if got := r.Pools[0].SearchFailure; math.Abs(got-want) > 1e-9 {
		t.Errorf("share of searches that fail is %v, want %v", got, want)
	}
}

// mapE are the ports of one of the subscribers who share an address by MAP-E, 256 of them, as RFC 7597 has it.
func mapE(psid int) []portset.Range {
	var blocks []portset.Range
	for i := 1; i < 16; i++ {
		low := uint16(i<<12 | psid<<4)
		blocks = append(blocks, portset.Range{Low: low, High: low + 15})
	}
	return blocks
}

// fill adds a flow for each port of some ranges.
func fill(table *Table, ranges ...portset.Range) {
	for _, r := range ranges {
		flows(table, r.Size(), tcpFlow(Established, r.Low))
	}
}

// TestRanges fills blocks one after the other.
func TestRanges(t *testing.T) {
	settings := settings
	settings.PortRanges = mapE(0x34)
	table := NewTable(settings)
	for i, block := range settings.PortRanges {
		fill(table, portset.Range{Low: block.Low, High: block.High - 1})
		r := table.Report(limit.Limits{MinPorts: 1, Most: 1})
		used := float64(16*i+15) / 240
		if p := r.Pools[0]; r.CapacityPorts != 240 || math.Abs(p.Utilization-used) > 1e-9 || math.Abs(p.SearchFailure-float64(i)/15) > 1e-9 {
			t.Errorf("%d blocks are full: capacity %d, utilization %v, %v of the searches fail", i, r.CapacityPorts, p.Utilization, p.SearchFailure)
		}
		fill(table, portset.Range{Low: block.High, High: block.High})
	}
	if p := table.Report(limit.Limits{MinPorts: 1, Most: 1}).Pools[0]; p.Utilization != 1 || p.SearchFailure != 1 {
		t.Errorf("all are full: utilization %v, %v of the searches fail", p.Utilization, p.SearchFailure)
	}
}

// TestRangesDanger has a pool with a full block, which comes before one with more ports in use.
func TestRangesDanger(t *testing.T) {
	settings := settings
	settings.PortRanges = mapE(0x34)
	table := NewTable(settings)
	fill(table, settings.PortRanges[0])
	apart := tcpFlow(Established, 0)
	apart.Destination = netip.MustParseAddrPort("198.51.100.2:443")
	for _, block := range settings.PortRanges {
		apart.Translated = netip.AddrPortFrom(apart.Translated.Addr(), block.Low)
		flows(table, 2, apart)
	}
	r := table.Report(limit.Limits{MinPorts: 1, Most: 1})
	if p := r.Pools[0]; p.Held != 16 || math.Abs(p.SearchFailure-1.0/15) > 1e-9 || r.MaxUtilization != 30.0/240 {
		t.Errorf("reported %+v, want the pool with a full block", r)
	}
}

// TestFullBlocks infers blocks that the flag does not name, and nothing from ports that lie by chance.
func TestFullBlocks(t *testing.T) {
	blocks := mapE(0x34)
	every := func(step int) (ports []portset.Range) {
		for p := 32768; p < 61000; p += step {
			ports = append(ports, portset.Range{Low: uint16(p), High: uint16(p)})
		}
		return ports
	}
	one := portset.Range{Low: 50001, High: 50001}
	tests := []struct {
		name  string
		taken []portset.Range
		drops bool
		want  []portset.Range
	}{
		{"all blocks", blocks, true, blocks},
		{"all blocks without drops", blocks, false, nil},
		{"all blocks, and a flow of another rule", append(slices.Clip(blocks), one), true, blocks},
		{"some blocks, the others in part", append(slices.Clip(blocks[:14]), portset.Range{Low: blocks[14].Low, High: blocks[14].High - 2}), true, blocks[:14]},
		{"most blocks in part", append(slices.Clip(blocks[:4]), every(200)...), true, nil},
		{"blocks of 8", []portset.Range{{Low: 4096, High: 4103}, {Low: 8192, High: 8199}, {Low: 12288, High: 12295}}, true, []portset.Range{{Low: 4096, High: 4103}, {Low: 8192, High: 8199}, {Low: 12288, High: 12295}}},
		{"a block in the middle in part", append(slices.Concat(blocks[:7], blocks[8:]), portset.Range{Low: blocks[7].Low, High: blocks[7].High - 1}), true, slices.Concat(blocks[:7], blocks[8:])},
		{"blocks of several sizes", append(slices.Clip(blocks[:3]), portset.Range{Low: blocks[3].Low, High: blocks[3].Low + 7}), true, nil},
		{"blocks at several distances", []portset.Range{{Low: 4096, High: 4103}, {Low: 8192, High: 8199}, {Low: 65528, High: 65535}}, true, nil},
		{"two blocks", blocks[:2], true, nil},
		{"a client's ports in a row", []portset.Range{{Low: 32768, High: 33767}}, true, nil},
		{"several clients' ports in a row", []portset.Range{{Low: 10003, High: 10200}, {Low: 20480, High: 20680}, {Low: 30001, High: 30016}, {Low: 40000, High: 40007}}, true, nil},
		{"even ports", every(2), true, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			settings := settings
			settings.PortRanges, settings.Drops = []portset.Range{{Low: 1024, High: 65535}}, tt.drops
			table := NewTable(settings)
			fill(table, tt.taken...)
			r := table.Report(limit.Limits{MinPorts: 10, Most: 1})
			if diff := cmp.Diff(tt.want, r.Pools[0].FullBlocks); diff != "" {
				t.Errorf("blocks (-want +got):\n%s", diff)
			}
			if unknown := tt.want != nil; r.Pools[0].Known() == unknown || math.IsNaN(r.MaxUtilization) != unknown || (r.UnknownPools == 1) != unknown {
				t.Errorf("report %+v", r)
			}
		})
	}
}

// TestKeptPorts has clients choose ports that lie as the blocks of a rule do, in pools to more destinations than are
// reported. NAT keeps these ports, so they are no sign of a rule. The full pool of another client stays in the report.
func TestKeptPorts(t *testing.T) {
	settings := settings
	settings.PortRanges, settings.Drops = []portset.Range{{Low: 1024, High: 65535}}, true
	table := NewTable(settings)
	full := tcpFlow(Established, 1024)
	flows(table, settings.Ports(), full)
	keep := func(f Flow, ranges ...portset.Range) {
		for _, r := range ranges {
			for port := int(r.Low); port <= int(r.High); port++ {
				f.ClientPort, f.Translated = uint16(port), netip.AddrPortFrom(f.Translated.Addr(), uint16(port))
				table.Add(&f)
			}
		}
	}
	for n := range uint16(20) {
		f := tcpFlow(Established, 0)
		f.Client, f.Destination = netip.MustParseAddr("10.1.0.66"), netip.AddrPortFrom(full.Destination.Addr(), 1000+n)
		if n == 0 { // own sockets choose theirs, too
			f.Translated = netip.AddrPortFrom(f.Translated.Addr(), 50001)
			flows(table, 1, f)
			f.SNAT = false
		}
		keep(f, mapE(0x34)...)
	}
	// A few ports of blocks are those that the clients had.
	truly := tcpFlow(Established, 0)
	truly.Destination = netip.AddrPortFrom(full.Destination.Addr(), 2000)
	blocks := mapE(0x34)
	keep(truly, blocks[0])
	for _, r := range blocks[1:] {
		truly.ClientPort, truly.Translated = 20000, netip.AddrPortFrom(truly.Translated.Addr(), r.Low)
		flows(table, r.Size(), truly)
	}
	r := table.Report(limit.Limits{MinPorts: 10, Most: 2})
	if len(r.Pools) != 2 || r.Pools[0].Address != full.Destination || r.Pools[1].Address != truly.Destination {
		t.Fatalf("reported %+v, want the full pool and that of blocks", r.Pools)
	}
	if r.MaxUtilization != 1 || r.UnknownPools != 1 || r.UnreportedPools != 20 || !slices.Equal(r.Pools[1].FullBlocks, blocks) {
		t.Errorf("greatest utilization %v, %d unknown pools, %d unreported, want 1, 1, 20; blocks %v", r.MaxUtilization, r.UnknownPools, r.UnreportedPools, r.Pools[1].FullBlocks)
	}
}

// TestUnknownHidesNothing has many pools of a rule that the flag does not name, in one network namespace. The pool of it
// that is in danger stays in the report, as does that of another one.
func TestUnknownHidesNothing(t *testing.T) {
	var reports []*Report
	for range 2 {
		table := NewTable(settings)
		for n := range uint16(10) {
			f := tcpFlow(Established, 30000)
			f.Destination = netip.AddrPortFrom(f.Destination.Addr(), 1+n)
			flows(table, 90, f)
		}
		for n := range uint16(2) {
			f := tcpFlow(Established, 40000)
			f.Destination = netip.AddrPortFrom(f.Destination.Addr(), 1000+n)
			flows(table, 50+int(n), f)
		}
		r := table.Report(limit.Limits{MinPorts: 10, Most: 5})
		reports = append(reports, &r)
	}
	ShareLimit(reports, 4)
	for i, r := range reports {
		if len(r.Pools) != 2 || r.Pools[0].Utilization != 0.51 || r.Pools[1].Utilization != 0.5 || r.MaxUtilization != 0.51 || r.UnknownPools != 10 || r.UnreportedPools != 10 {
			t.Errorf("report %d is %+v, want the two pools in danger", i, r)
		}
	}
}

// TestOutside has pools of a rule that the flag does not name: those of some size are not known, whatever the limits
// leave out.
func TestOutside(t *testing.T) {
	to := func(n uint16, state State, port uint16) Flow {
		f := tcpFlow(state, port)
		f.Destination = netip.AddrPortFrom(f.Destination.Addr(), n)
		return f
	}
	table := NewTable(settings)
	flows(table, 50, to(1, Established, 40000))
	flows(table, 9, to(2, Established, 30000))
	if r := table.Report(limit.Limits{MinPorts: 10, Most: 1}); r.MaxUtilization != 0.5 || r.UnknownPools != 0 || r.Outside != 9 || r.Flows != 59 || r.UnreportedPools != 1 {
		t.Errorf("a few outside: %+v", r)
	}
	small := NewTable(settings)
	flows(small, 9, to(2, Established, 30000))
	if r := small.Report(limit.Limits{MinPorts: 10, Most: 1}); !math.IsNaN(r.MaxUtilization) {
		t.Errorf("only a few outside: utilization %v, want none", r.MaxUtilization)
	}
	flows(table, 10, to(3, Established, 30000))
	flows(table, 11, to(4, Established, 30000))
	r := table.Report(limit.Limits{MinPorts: 10, Most: 1})
	if r.MaxUtilization != 0.5 || r.UnknownPools != 2 || r.Outside != 30 || r.UnreportedPools != 3 || r.Pools[0].Address.Port() != 1 {
		t.Errorf("many outside: %+v", r)
	}
}

// TestTimeoutsHidden has no ceiling where the timeouts are not known, and no connection is taken over.
func TestTimeoutsHidden(t *testing.T) {
	table := NewTable(Settings{PortRanges: settings.PortRanges})
	flows(table, 20, tcpFlow(Established, 40000))
	if got := table.Report(limit.Limits{MinPorts: 1, Most: 1}).Pools[0].Ceiling; !math.IsNaN(got) {
		t.Errorf("ceiling %v, want none", got)
	}
}

// TestOwnMemory has own sockets with a destination for each flow, as anybody on the host can: only those that
// share a pool with source NAT are counted, in whatever order they come, and the others cost little.
func TestOwnMemory(t *testing.T) {
	const destinations = 100_000
	own := func(i int) Flow {
		f := tcpFlow(Established, 40000)
		f.SNAT = false
		f.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), uint16(1+i>>16))
		return f
	}
	table := NewTable(settings)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range destinations {
		f := own(i)
		table.Add(&f)
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / destinations; each > 256 {
		t.Errorf("%d bytes for each flow", each)
	}
	shared := own(destinations - 1)
	shared.SNAT = true
	for port := 40001; port <= 40019; port++ {
		shared.Translated = netip.AddrPortFrom(shared.Translated.Addr(), uint16(port))
		table.Add(&shared)
	}
	r := table.Report(limit.Limits{MinPorts: 1, Most: 10})
	if len(r.Pools) != 1 || r.Pools[0].Held != 20 || r.UnreportedPools != 0 || r.Flows != destinations+19 {
		t.Errorf("report %+v, want one pool of 20 ports", r)
	}
}

package pool

import (
	gocmp "cmp"
	"math"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var natSettings = NATSettings{
	PortRange: PortRange{Low: 40000, High: 40099}, TakesOver: true,
	TCPTimeWait: 120 * time.Second, UDP: 30 * time.Second,
}

// flows adds n flows like f, on ports from that of f on.
func flows(table *NATTable, n int, f NATFlow) {
	for i := range n {
		g := f
		g.Translated = netip.AddrPortFrom(f.Translated.Addr(), f.Translated.Port()+uint16(i))
		table.Add(&g)
	}
}

func tcpFlow(state NATState, port uint16) NATFlow {
	return NATFlow{
		Protocol: TCP, State: state, Client: netip.MustParseAddr("10.1.0.2"), SNAT: true,
		Translated:  netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port),
		Destination: netip.MustParseAddrPort("198.51.100.1:443"),
	}
}

func TestNATReport(t *testing.T) {
	established := tcpFlow(NATEstablished, 40000)
	pool := NATPool{
		Protocol: TCP, Source: established.Translated.Addr(), Address: established.Destination,
		Ports: [natStates]int{NATEstablished: 20}, Held: 20, Utilization: 0.2, Ceiling: math.Inf(1),
		Clients: []NATClient{{established.Client, 20}},
	}
	with := func(change func(p *NATPool)) []NATPool {
		p := pool
		change(&p)
		return []NATPool{p}
	}
	tests := []struct {
		name string
		add  func(table *NATTable)
		old  bool // Linux before 6.5
		want []NATPool
	}{
		{"nothing", func(*NATTable) {}, false, nil},
		{"open flows", func(table *NATTable) { flows(table, 20, established) }, false, []NATPool{pool}},
		{"ports outside of the range", func(table *NATTable) {
			flows(table, 20, established)
			flows(table, 20, tcpFlow(NATEstablished, 1000))
			flows(table, 20, tcpFlow(NATEstablished, 40100))
		}, false, []NATPool{pool}},
		{"own sockets take ports", func(table *NATTable) {
			own := established
			own.SNAT, own.Client = false, established.Translated.Addr()
			flows(table, 5, own)
			flows(table, 15, tcpFlow(NATEstablished, 40005))
		}, false, with(func(p *NATPool) {
			p.Clients = []NATClient{{established.Client, 15}, {established.Translated.Addr(), 5}}
		})},
		{"own sockets alone are no pool", func(table *NATTable) {
			own := established
			own.SNAT = false
			flows(table, 100, own)
		}, false, nil},
		{"two clients", func(table *NATTable) {
			flows(table, 15, established)
			other := tcpFlow(NATEstablished, 40015)
			other.Client = netip.MustParseAddr("10.1.0.3")
			flows(table, 5, other)
		}, false, with(func(p *NATPool) {
			p.Clients = []NATClient{{established.Client, 15}, {netip.MustParseAddr("10.1.0.3"), 5}}
		})},
		{"closed flows are taken over", func(table *NATTable) {
			flows(table, 10, established)
			flows(table, 5, tcpFlow(NATTimeWait, 40010))
			flows(table, 3, tcpFlow(NATClose, 40015))
			flows(table, 2, tcpFlow(NATSynSent2, 40018))
		}, false, with(func(p *NATPool) {
			p.Ports = [natStates]int{NATEstablished: 10, NATTimeWait: 5, NATClose: 3, NATSynSent2: 2}
			p.Reusable, p.Utilization = 10, 0.1
		})},
		{"closed flows before 6.5", func(table *NATTable) {
			flows(table, 10, established)
			flows(table, 10, tcpFlow(NATTimeWait, 40010))
		}, true, with(func(p *NATPool) {
			p.Ports = [natStates]int{NATEstablished: 10, NATTimeWait: 10}
			p.Ceiling = 90.0 / 120
		})},
		{"closed flows of own sockets", func(table *NATTable) {
			flows(table, 10, established)
			own := tcpFlow(NATTimeWait, 40010)
			own.SNAT = false
			flows(table, 10, own)
		}, false, with(func(p *NATPool) {
			p.Ports = [natStates]int{NATEstablished: 10, NATTimeWait: 10}
			p.Clients = []NATClient{{established.Client, 10}, {established.Translated.Addr(), 10}}
		})},
		{"full", func(table *NATTable) { flows(table, 100, established) }, false, with(func(p *NATPool) {
			p.Ports, p.Held, p.Utilization = [natStates]int{NATEstablished: 100}, 100, 1
			p.SearchFailure, p.Ceiling = 1, 0
			p.Clients = []NATClient{{established.Client, 100}}
		})},
		{"full, but one may be taken over", func(table *NATTable) {
			flows(table, 99, established)
			flows(table, 1, tcpFlow(NATTimeWait, 40099))
		}, false, with(func(p *NATPool) {
			p.Ports, p.Held, p.Reusable = [natStates]int{NATEstablished: 99, NATTimeWait: 1}, 100, 1
			// Every second search that has it among the last 32 of its 100 tries.
			p.Utilization, p.SearchFailure = 0.99, 1-0.32/2
			p.Clients = []NATClient{{established.Client, 100}}
		})},
		{"states without an end before 6.5", func(table *NATTable) {
			flows(table, 10, tcpFlow(NATSynSent2, 40000))
			flows(table, 10, tcpFlow(NATClose, 40010))
		}, true, with(func(p *NATPool) {
			p.Ports, p.Ceiling = [natStates]int{NATSynSent2: 10, NATClose: 10}, 90.0/120
		})},
		{"full of closed flows of own sockets", func(table *NATTable) {
			flows(table, 10, established)
			own := tcpFlow(NATTimeWait, 40010)
			own.SNAT = false
			flows(table, 90, own)
		}, false, with(func(p *NATPool) {
			p.Ports, p.Held, p.Utilization = [natStates]int{NATEstablished: 10, NATTimeWait: 90}, 100, 1
			p.SearchFailure, p.Ceiling = 1, 0
			p.Clients = []NATClient{{established.Translated.Addr(), 90}, {established.Client, 10}}
		})},
		{"UDP", func(table *NATTable) {
			udp := established
			for i, state := range []NATState{NATUnreplied, NATReplied, NATAssured} {
				udp.Protocol, udp.State = UDP, state
				udp.Translated = netip.AddrPortFrom(udp.Translated.Addr(), 40000+5*uint16(i))
				flows(table, 5*(1+i/2), udp)
			}
		}, false, with(func(p *NATPool) {
			p.Protocol, p.Ports, p.Ceiling = UDP, [natStates]int{NATUnreplied: 5, NATReplied: 5, NATAssured: 10}, 90.0/30
		})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			settings := natSettings
			settings.TakesOver = !tt.old
			table := NewNATTable(settings)
			tt.add(table)
			got := table.Report(Limits{MinPorts: 1, Most: 10})
			if diff := cmp.Diff(tt.want, got.Pools, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.EquateApprox(0, 1e-9)); diff != "" {
				t.Errorf("pools (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNATPools gives flows that differ in one thing, and says whether they share a pool.
func TestNATPools(t *testing.T) {
	tests := []struct {
		name   string
		change func(f *NATFlow)
		pools  int
	}{
		{"the client", func(f *NATFlow) { f.Client = netip.MustParseAddr("10.1.0.3") }, 1},
		{"the state", func(f *NATFlow) { f.State = NATTimeWait }, 1},
		{"the protocol", func(f *NATFlow) { f.Protocol, f.State = UDP, NATAssured }, 2},
		{"the translated address", func(f *NATFlow) { f.Translated = netip.MustParseAddrPort("192.0.2.2:40000") }, 2},
		{"the destination", func(f *NATFlow) { f.Destination = netip.MustParseAddrPort("198.51.100.2:443") }, 2},
		{"the destination's port", func(f *NATFlow) { f.Destination = netip.MustParseAddrPort("198.51.100.1:80") }, 2},
		{"the family", func(f *NATFlow) {
			f.Translated, f.Destination = netip.MustParseAddrPort("[2001:db8::1]:40000"), netip.MustParseAddrPort("[2001:db8::2]:443")
		}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := NewNATTable(natSettings)
			flows(table, 10, tcpFlow(NATEstablished, 40000))
			other := tcpFlow(NATEstablished, 40010)
			tt.change(&other)
			flows(table, 10, other)
			if got := table.Report(Limits{MinPorts: 1, Most: 10}); len(got.Pools) != tt.pools {
				t.Errorf("%d pools, want %d: %+v", len(got.Pools), tt.pools, got.Pools)
			}
		})
	}
}

// TestNATZones has pools that differ only in the zone, which is no label.
func TestNATZones(t *testing.T) {
	table := NewNATTable(natSettings)
	f := tcpFlow(NATEstablished, 40000)
	for zone, n := range []int{20, 50, 30} {
		f.Zone = uint16(zone)
		flows(table, n, f)
	}
	got := table.Report(Limits{MinPorts: 1, Most: 10})
	if len(got.Pools) != 1 || got.Pools[0].Held != 50 || got.UnreportedPools != 2 || got.UnreportedPorts != 50 || got.Flows != 100 {
		t.Errorf("report %+v, want the pool with 50 ports, and 2 unreported ones with 50, of 100 flows", got)
	}
}

func TestNATLimits(t *testing.T) {
	var reports []*NATReport
	for _, destinations := range []int{1, 4} {
		table := NewNATTable(natSettings)
		for i := range destinations {
			f := tcpFlow(NATEstablished, 40000)
			f.Destination = netip.AddrPortFrom(f.Destination.Addr(), uint16(1+i))
			flows(table, 10*(i+destinations), f)
		}
		f := tcpFlow(NATEstablished, 40000)
		flows(table, 5, f) // too few
		report := table.Report(Limits{MinPorts: 10, Most: 3})
		reports = append(reports, &report)
	}
	ShareNATLimit(reports, 2)
	type got struct {
		Held             []int
		MaxUtilization   float64
		Pools, LeftPorts int
	}
	var all []got
	for _, r := range reports {
		g := got{MaxUtilization: r.MaxUtilization, Pools: r.UnreportedPools, LeftPorts: r.UnreportedPorts}
		for _, p := range r.Pools {
			g.Held = append(g.Held, p.Held)
		}
		all = append(all, g)
	}
	want := []got{{[]int{10}, 0.1, 1, 5}, {[]int{70}, 0.7, 4, 5 + 40 + 50 + 60}}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("reports (-want +got):\n%s", diff)
	}
}

// TestNATDanger has a pool whose searches fail, as its ports lie together, before one with more ports.
func TestNATDanger(t *testing.T) {
	settings := natSettings
	settings.PortRange = PortRange{Low: 1024, High: 65535}
	table := NewNATTable(settings)
	together, apart := tcpFlow(NATEstablished, 1), tcpFlow(NATEstablished, 1)
	apart.Destination = netip.MustParseAddrPort("198.51.100.2:443")
	for port := 32768; port < 61000; port++ { // 44%
		together.Translated = netip.AddrPortFrom(together.Translated.Addr(), uint16(port))
		table.Add(&together)
	}
	for port := 1024; port < 65535; port += 2 { // 50%
		apart.Translated = netip.AddrPortFrom(apart.Translated.Addr(), uint16(port))
		table.Add(&apart)
	}
	r := table.Report(Limits{MinPorts: 1, Most: 1})
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

// TestNATByDanger has pools in the order in which they are reported.
func TestNATByDanger(t *testing.T) {
	pool := func(failure, utilization float64, held int, source, address string, protocol Protocol) NATPool {
		return NATPool{
			SearchFailure: failure, Utilization: utilization, Held: held, Protocol: protocol,
			Source: netip.MustParseAddr(source), Address: netip.MustParseAddrPort(address),
		}
	}
	want := []NATPool{
		pool(0.5, 0.4, 40, "192.0.2.1", "198.51.100.1:80", TCP),
		pool(0.021, 0.9, 90, "192.0.2.1", "198.51.100.1:80", TCP),
		pool(0.029, 0.8, 90, "192.0.2.1", "198.51.100.1:80", TCP), // as many failures in percent
		pool(0, 0.7, 70, "192.0.2.1", "198.51.100.1:80", TCP),
		pool(0, 0.6, 90, "192.0.2.9", "198.51.100.1:80", TCP),
		pool(0, 0.6, 80, "192.0.2.1", "198.51.100.1:81", TCP),
		pool(0, 0.6, 80, "192.0.2.2", "198.51.100.1:80", TCP),
		pool(0, 0.6, 80, "192.0.2.2", "198.51.100.1:80", UDP),
		pool(0, 0.6, 80, "192.0.2.2", "198.51.100.1:81", TCP),
	}
	for i, a := range want {
		for j, b := range want {
			if got, want := natByDanger(a, b), gocmp.Compare(i, j); got != want {
				t.Errorf("%+v and %+v: got %d, want %d", a, b, got, want)
			}
		}
	}
}

// TestNATSearched has a pool with few ports, but all in a row: some searches fail, and that is reported.
func TestNATSearched(t *testing.T) {
	settings := natSettings
	settings.PortRange = PortRange{Low: 40000, High: 40999}
	table := NewNATTable(settings)
	flows(table, 200, tcpFlow(NATEstablished, 40300))
	want := 1.0
	for _, tries := range []float64{128, 64, 32, 16, 8} {
		want *= (200 - tries + 1) / 1000 // of the ports to begin with
	}
	r := table.Report(Limits{MinPorts: 1, Most: 1})
	if got := r.Pools[0].SearchFailure; math.Abs(got-want) > 1e-9 {
		t.Errorf("share of searches that fail is %v, want %v", got, want)
	}
}

// TestNATTimeoutsHidden has no ceiling where the timeouts are not known, and no connection is taken over.
func TestNATTimeoutsHidden(t *testing.T) {
	table := NewNATTable(NATSettings{PortRange: natSettings.PortRange})
	flows(table, 20, tcpFlow(NATEstablished, 40000))
	if got := table.Report(Limits{MinPorts: 1, Most: 1}).Pools[0].Ceiling; !math.IsNaN(got) {
		t.Errorf("ceiling %v, want none", got)
	}
}

// TestNATOwnMemory has own sockets with a destination for each flow, as anybody on the host can: only those that
// share a pool with source NAT are counted, in whatever order they come, and the others cost little.
func TestNATOwnMemory(t *testing.T) {
	const destinations = 100_000
	own := func(i int) NATFlow {
		f := tcpFlow(NATEstablished, 40000)
		f.SNAT = false
		f.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), uint16(1+i>>16))
		return f
	}
	table := NewNATTable(natSettings)
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
	r := table.Report(Limits{MinPorts: 1, Most: 10})
	if len(r.Pools) != 1 || r.Pools[0].Held != 20 || r.UnreportedPools != 0 || r.Flows != destinations+19 {
		t.Errorf("report %+v, want one pool of 20 ports", r)
	}
}

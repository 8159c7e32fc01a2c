package history

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

// begin is when the first scan of a test ended.
var begin = time.Date(2026, 11, 21, 2, 30, 0, 0, time.UTC)

const capacity = 28232

// read is the Result of what was read.
var read = scan.Result{Outcome: scan.Collected}

// address returns the address of a destination.
func address(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 443)
}

// share returns a number of ports as a share of the capacity.
func share(ports int) float64 { return float64(ports) / capacity }

// holds returns a destination that uses so many ports, or up to possible ones.
func holds(i, ports, possible int) pool.Destination {
	return pool.Destination{
		Source: netip.MustParseAddr("10.0.0.1"), Address: address(i), Held: ports, MayBeBound: max(possible-ports, 0), Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1), Ceiling: 450,
		Utilization: share(ports), PossibleUtilization: share(possible),
	}
}

// host returns what a scan finds at a time after begin.
func host(after time.Duration, destinations ...pool.Destination) *scan.Snapshot {
	return &scan.Snapshot{Time: begin.Add(after), Namespaces: []scan.Namespace{namespace(scan.Self, destinations...)}}
}

func namespace(name string, destinations ...pool.Destination) scan.Namespace {
	return scan.Namespace{Name: name, TCP: scan.TCP{Result: read, Report: pool.Report{CapacityPorts: capacity, Destinations: destinations}}}
}

// of returns what is remembered of a destination of our own namespace.
func of(t *testing.T, h *History, i int, s *scan.Snapshot) Past {
	t.Helper()
	d := holds(i, 0, 0)
	p, ok := h.Of(OfTCP(&s.Namespaces[0], &d), s)
	if !ok {
		t.Fatalf("nothing is remembered of destination %d", i)
	}
	return p
}

// line draws readings: digits are tenths of the ports, "x" is all, "?" a scan that failed, "." no reading.
func line(p Past) string {
	var b []byte
	for _, r := range p.Readings() {
		switch {
		case r.Failed:
			b = append(b, '?')
		case !r.OK:
			b = append(b, '.')
		case r.Utilization == 1:
			b = append(b, 'x')
		default:
			b = append(b, '0'+byte(10*r.Utilization+1e-3))
		}
	}
	return string(b)
}

// TestReadings scans each second, each 15 s and each minute, and finds in each step the worst that was read in it, and nothing where
// nobody read.
func TestReadings(t *testing.T) {
	// A minute at 10%, then a spike of a second to 90%, then 20%.
	ports := func(at time.Duration) int {
		switch {
		case at < time.Minute:
			return capacity / 10
		case at == time.Minute+5*time.Second:
			return capacity * 9 / 10
		default:
			return capacity / 5
		}
	}
	for interval, want := range map[time.Duration]string{
		time.Second:      "11119222",
		15 * time.Second: "11112222",
		30 * time.Second: "1.1.2.2.",
		time.Minute:      "1...2...",
	} {
		var h History
		var last *scan.Snapshot
		for at := time.Duration(0); at < 2*time.Minute; at += interval {
			last = host(at, holds(1, ports(at), ports(at)))
			h.Record(last)
		}
		// The page is drawn later, of a scan at the end of the two minutes.
		end := host(2*time.Minute - 1)
		if got := line(of(t, &h, 1, end))[Steps-8:]; got != want {
			t.Errorf("each %v: %s, want %s", interval, got, want)
		}
		readings := func() [Steps]Reading { p := of(t, &h, 1, end); return p.Readings() }()
		if first := readings[Steps-8]; !first.Time.Equal(begin) || first.Ports != capacity/10 || math.Abs(first.Utilization-0.1) > 1e-4 {
			t.Errorf("each %v: first %+v", interval, first)
		}
	}
}

// TestWindow keeps 15 minutes, also if nobody scans for some time, and forgets a pool that was not listed for as long.
func TestWindow(t *testing.T) {
	var h History
	for i := range 100 {
		h.Record(host(time.Duration(i)*Step, holds(1, capacity*i/100, 0)))
	}
	s := host(99*Step, holds(1, 0, 0))
	if got, want := line(of(t, &h, 1, s)), "444444444455555555556666666666777777777788888888889999999999"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	s = host(109*Step, holds(1, capacity, 0))
	h.Record(s)
	if got, want := line(of(t, &h, 1, s)), "55555555556666666666777777777788888888889999999999.........x"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	h.Record(host(109*Step + Steps*Step - 1))
	if got := len(h.pools); got != 1 {
		t.Errorf("%d pools", got)
	}
	h.Record(host(109*Step + Steps*Step))
	if got := len(h.pools); got != 0 {
		t.Errorf("%d pools, want none", got)
	}
}

// TestUnlisted checks what a scan says of a pool that it does not list: that it holds no port if all are listed, nothing if limits leave some
// out, and never that if the namespace could not be read. Bound ports are missing to it too.
func TestUnlisted(t *testing.T) {
	full := holds(1, capacity, capacity)
	busy := holds(2, capacity*6/10, capacity*6/10)
	busy.Unreported = true
	failed := host(0)
	failed.Namespaces[0].TCP = scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: errors.New("no")}}
	idle := host(0)
	idle.Namespaces[0].TCP = scan.TCP{Result: scan.Result{Outcome: scan.Idle}}
	cut := host(0, busy)
	cut.Namespaces[0].TCP.Report.UnreportedDestinations = 2
	calm := host(0, holds(2, 30, 30))
	calm.Namespaces[0].TCP.Report.Destinations[0].Unreported = true
	calm.Namespaces[0].TCP.Report.UnreportedDestinations = 2
	bound := host(0)
	bound.Namespaces[0].TCP.Report.BoundPorts, bound.Namespaces[0].TCP.Report.BoundKnown = capacity/2, true
	doubt := host(0)
	doubt.Namespaces[0].TCP.Report.BoundUnknown = capacity
	for name, tt := range map[string]struct {
		s     *scan.Snapshot
		want  string
		since bool // it still is exhausted since the first scan
	}{
		"listed":             {host(0, full), "xxx", true},
		"no connection":      {host(0), "x0x", false},
		"idle":               {idle, "x.x", false},
		"not listed, calm":   {calm, "x.x", false},
		"left out":           {cut, "x.x", true},
		"failed":             {failed, "x?x", true},
		"bound":              {bound, "x5x", false},
		"may be bound":       {doubt, "x0x", true},
		"other namespace is": {&scan.Snapshot{Namespaces: []scan.Namespace{{Name: "other", Inode: 7, TCP: host(0).Namespaces[0].TCP}}}, "x?x", true},
	} {
		var h History
		h.Record(host(0, full))
		tt.s.Time = begin.Add(Step)
		h.Record(tt.s)
		end := host(2*Step, full)
		h.Record(end)
		p := of(t, &h, 1, end)
		if got := line(p)[Steps-3:]; got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
		since, ok := p.Since(advice.Exhausted)
		if got := since.Time.Equal(begin); !ok || got != tt.since {
			t.Errorf("%s: since %+v, want from the first scan on: %v", name, since, tt.since)
		}
	}
}

// TestSince checks since when a pool is on a level.
func TestSince(t *testing.T) {
	const full, critical, half, low = capacity, capacity * 9 / 10, capacity * 6 / 10, 100
	type look struct {
		at              time.Duration
		ports, possible int // -1: it is not listed, and others are not either
	}
	tests := []struct {
		name  string
		looks []look
		level advice.Level
		want  Since
		ok    bool
	}{
		{"calm", []look{{0, low, low}}, advice.Calm, Since{}, false},
		{"another level", []look{{0, half, half}}, advice.Critical, Since{}, false},
		{"from the start on", []look{{0, full, full}, {time.Minute, full, full}}, advice.Exhausted, Since{Time: begin, Earlier: true, Start: true}, true},
		{"it rose", []look{{0, low, low}, {time.Minute, half, half}, {2 * time.Minute, full, full}}, advice.Exhausted, Since{Time: begin.Add(2 * time.Minute)}, true},
		{"it rose, since it was not calm", []look{{0, low, low}, {time.Minute, half, half}, {2 * time.Minute, full, full}}, advice.Warning, Since{Time: begin.Add(time.Minute)}, true},
		{"it fell", []look{{0, low, low}, {time.Minute, full, full}, {2 * time.Minute, half, half}}, advice.Warning, Since{Time: begin.Add(time.Minute)}, true},
		{"it fell for a while", []look{{0, full, full}, {time.Minute, critical, critical}, {2 * time.Minute, full, full}}, advice.Exhausted, Since{Time: begin.Add(2 * time.Minute)}, true},
		{"new on the list", []look{{0, -1, 0}, {time.Minute, full, full}}, advice.Exhausted, Since{Time: begin.Add(time.Minute)}, true},
		{"new on the list after a gap", []look{{0, -1, 0}, {5 * time.Minute, full, full}}, advice.Exhausted, Since{Time: begin.Add(5 * time.Minute), Earlier: true}, true},
		{"it rose in a gap", []look{{0, low, low}, {5 * time.Minute, full, full}}, advice.Exhausted, Since{Time: begin.Add(5 * time.Minute), Earlier: true}, true},
		{"gap", []look{{0, low, low}, {time.Minute, full, full}, {5 * time.Minute, full, full}}, advice.Exhausted, Since{Time: begin.Add(time.Minute), Gaps: true}, true},
		{"long ago", []look{{0, low, low}, {time.Minute, full, full}, {2 * time.Minute, full, full}, {3 * time.Minute, full, full}, {4 * time.Minute, full, full}}, advice.Exhausted, Since{Time: begin.Add(time.Minute)}, true},
		{"doubt between", []look{{0, low, low}, {time.Minute, full, full}, {2 * time.Minute, half, full}, {3 * time.Minute, full, full}}, advice.Exhausted, Since{Time: begin.Add(time.Minute)}, true},
		{"doubt before", []look{{0, low, low}, {time.Minute, half, full}, {2 * time.Minute, full, full}}, advice.Exhausted, Since{Time: begin.Add(2 * time.Minute), Earlier: true}, true},
		{"doubt", []look{{0, low, low}, {time.Minute, half, full}, {2 * time.Minute, half, full}}, advice.Unknown, Since{Time: begin.Add(time.Minute)}, true},
	}
	for _, tt := range tests {
		var h History
		var s *scan.Snapshot
		for _, l := range tt.looks {
			if s = host(l.at, holds(1, l.ports, l.possible)); l.ports < 0 {
				s = host(l.at)
			}
			h.Record(s)
		}
		p := of(t, &h, 1, s)
		got, ok := p.Since(tt.level)
		if ok != tt.ok || ok && got != tt.want {
			t.Errorf("%s: %+v, %v, want %+v, %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

// TestDoubt keeps utilization and what it is at most apart, and the worst of each.
func TestDoubt(t *testing.T) {
	var h History
	h.Record(host(0, holds(1, 100, capacity)))
	s := host(time.Second, holds(1, 200, 300))
	h.Record(s)
	p := of(t, &h, 1, s)
	if r := p.Readings()[Steps-1]; r.Ports != 200 || math.Abs(r.Utilization-share(200)) > 1e-4 || r.Possible != 1 {
		t.Errorf("%+v", r)
	}
}

// TestKinds remembers all kinds of pools, of each namespace its own.
func TestKinds(t *testing.T) {
	s := host(0, holds(1, 100, 100))
	n := &s.Namespaces[0]
	bind := pool.Source{Address: netip.MustParseAddr("10.0.0.7"), Ports: 2000, Bound: 1900, Capacity: 4000, Utilization: 0.5}
	n.TCP.Report.Sources, n.TCP.Report.BoundKnown = []pool.Source{bind, {Address: netip.MustParseAddr("10.0.0.8"), Ports: 2000}}, true
	n.UDP.Result, n.UDP.Report.CapacityPorts = read, capacity
	for i, family := range pool.UDPFamilies {
		n.UDP.Report.Pools[i] = pool.UDPPool{Family: family, Ports: 3000, Utilization: 3000. / capacity}
	}
	nat := snat.Pool{Protocol: "tcp", Source: netip.MustParseAddr("192.0.2.1"), Address: address(1), Capacity: 6000, Held: 4000, Reusable: 1000, Utilization: math.NaN()}
	cilium := snat.Pool{Protocol: "udp", Source: nat.Source, Address: nat.Address, Cilium: true, Capacity: 4000, Held: 3000, Utilization: 0.75}
	n.NAT.Result, n.NAT.Report = read, snat.Report{CapacityPorts: 6000, Pools: []snat.Pool{nat, cilium}}
	other := namespace("other", holds(1, 400, 400))
	other.Inode = 7
	s.Namespaces = append(s.Namespaces, other)
	var h History
	h.Record(s)
	d := holds(1, 0, 0)
	for _, tt := range []struct {
		id              ID
		ports           int
		least, possible float64
	}{
		{OfTCP(n, &d), 100, share(100), share(100)},
		{OfTCP(&other, &d), 400, share(400), share(400)},
		{OfSource(n, &bind), 2000, 0.5, 0.5},
		{OfUDP(n, &n.UDP.Report.Pools[0]), 3000, share(3000), share(3000)},
		{OfNAT(n, &nat), 3000, 0.5, 1}, // of which it is not known what the rules allow
		{OfNAT(n, &cilium), 3000, 0.75, 0.75},
	} {
		p, ok := h.Of(tt.id, s)
		if r := p.Readings()[Steps-1]; !ok || r.Ports != tt.ports || math.Abs(r.Utilization-tt.least) > 1e-4 || math.Abs(r.Possible-tt.possible) > 1e-4 {
			t.Errorf("%+v: %v, %+v", tt.id, ok, r)
		}
	}
	if len(h.pools) != 6+2 { // and the other families of UDP
		t.Errorf("%d pools", len(h.pools))
	}
}

// TestFlood lists other pools at each scan, small ones that are full, as a tenant can. There is room for all that are listed, and the memory
// is bounded. A pool with more ports that is full stays, also if it is not listed at times.
func TestFlood(t *testing.T) {
	var h History
	full := holds(0, capacity, capacity)
	flood := func(at time.Duration, from, n int, others ...pool.Destination) *scan.Snapshot {
		for i := range n {
			d := holds(from+i, 32, capacity)
			others = append(others, d)
		}
		s := host(at, others...)
		s.Namespaces[0].TCP.Report.UnreportedDestinations = 1000 // that are not listed
		return s
	}
	h.Record(flood(0, 1, 256, full))
	var last *scan.Snapshot
	for i := range 40 {
		last = flood(time.Duration(i)*time.Second, 1000*(i+1), 256)
		h.Record(last)
		for _, d := range last.Namespaces[0].TCP.Report.Destinations {
			if _, ok := h.Of(OfTCP(&last.Namespaces[0], &d), last); !ok {
				t.Fatalf("scan %d: %v has no room", i, d.Address)
			}
		}
		if len(h.pools) > MaxPools {
			t.Fatalf("%d pools", len(h.pools))
		}
	}
	of(t, &h, 0, last)
	// More than there is room for: those in most danger.
	last = flood(time.Minute, 100_000, 2*MaxPools, holds(1, 50, 50), full)
	h.Record(last)
	if p := of(t, &h, 0, last); line(p)[Steps-5:] != "x...x" {
		t.Errorf("%q", line(p))
	}
	if len(h.pools) != MaxPools {
		t.Errorf("%d pools, want %d", len(h.pools), MaxPools)
	}
}

// TestConcurrent records and reads at once: the race detector finds what is wrong.
func TestConcurrent(*testing.T) {
	var h History
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := range 200 {
				s := host(time.Duration(i)*time.Second, holds(1, i, i))
				d := &s.Namespaces[0].TCP.Report.Destinations[0]
				if p, ok := h.Of(OfTCP(&s.Namespaces[0], d), s); ok {
					p.Readings()
				}
			}
		})
	}
	for i := range 200 {
		h.Record(host(time.Duration(i)*time.Second, holds(1, i, i)))
	}
	readers.Wait()
}

// many returns a Snapshot of so many destinations, a quarter of them in danger.
func many(at time.Duration, n int) *scan.Snapshot {
	var all []pool.Destination
	for i := range n {
		ports := capacity / 10
		if i%4 == 0 {
			ports = capacity * 9 / 10
		}
		all = append(all, holds(i, ports, ports))
	}
	return host(at, all...)
}

// TestMemory checks the bytes that cost.md names, with the most pools that there can be.
func TestMemory(t *testing.T) {
	var before, after runtime.MemStats
	var h History
	first, last := many(0, MaxPools), many(time.Hour, MaxPools)
	runtime.GC()
	runtime.GC() // what the first one has left of pools of objects
	runtime.ReadMemStats(&before)
	h.Record(first)
	h.Record(last)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if bytes := int(after.HeapAlloc) - int(before.HeapAlloc); bytes > 450_000 {
		t.Errorf("%d pools take %d bytes", MaxPools, bytes)
	} else {
		t.Logf("%d bytes for %d pools", bytes, MaxPools)
	}
	runtime.KeepAlive(&h)
	runtime.KeepAlive(first)
	runtime.KeepAlive(last)
}

// BenchmarkRecord records the same pools again and again.
func BenchmarkRecord(b *testing.B) {
	for _, n := range []int{20, 276, MaxPools} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var h History
			s := many(0, n)
			b.ReportAllocs()
			for b.Loop() {
				s.Time = s.Time.Add(time.Second)
				h.Record(s)
			}
		})
	}
}

package pool

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// A randomHost is a namespace whose settings, sockets and readers are random.
type randomHost struct {
	*rand.Rand
	settings            Settings
	limits              Limits
	exact               bool
	ports, destinations int
	sockets             []Socket
	now                 time.Duration
}

func newRandomHost(seed uint64) *randomHost {
	r := rand.New(rand.NewPCG(seed, 1))
	ports := []int{20, 100, 1000}[r.IntN(3)]
	return &randomHost{
		Rand: r,
		settings: Settings{
			PortRange: PortRange{Low: 40000, High: 40000 + uint16(ports) - 1}, AutobindReuse: r.IntN(4) == 0,
			TWReuse: r.IntN(3), TWReuseDelay: time.Duration(r.IntN(2)) * time.Second, ReuseFinWait2: Fact(r.IntN(3)), Timestamps: r.IntN(2),
			FinTimeout: time.Minute, TimeWaitLength: time.Minute,
		},
		limits: Limits{MinPorts: []int{0, 1, 10, 12}[r.IntN(4)], Most: []int{0, 1, 5, 256}[r.IntN(4)]},
		exact:  r.IntN(4) == 0, ports: ports, destinations: []int{1, 3, 30, 300}[r.IntN(4)],
		now: 1000 * time.Second,
	}
}

// change ends some sockets and opens others.
func (h *randomHost) change() {
	h.now += 15 * time.Second
	if h.IntN(6) == 0 {
		h.settings.Timestamps ^= 1
	}
	var left []Socket
	for _, s := range h.sockets {
		if s.Seen = h.now; h.IntN(3) > 0 {
			left = append(left, s)
		}
	}
	for range h.IntN(300) {
		left = append(left, h.socket())
	}
	h.sockets = left
}

// socket returns a socket in any state, of IPv4 or IPv6.
func (h *randomHost) socket() Socket {
	destination := h.IntN(h.destinations)
	local := netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + h.IntN(3))})
	remote := netip.AddrFrom4([4]byte{192, 0, byte(destination >> 8), byte(destination)})
	s := Socket{State: tcpstate.Established, Seen: h.now}
	switch h.IntN(20) {
	case 0:
		local = netip.MustParseAddr("127.0.0.1")
	case 1, 2:
		local, remote = netip.MustParseAddr("2001:db8::1"), netip.AddrFrom16([16]byte{0x20, 1, 15: byte(destination % 7)})
	case 3:
		local, remote, s.Interface = netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2"), uint32(1+h.IntN(12))
	case 4:
		s.Interface = uint32(h.IntN(3))
	}
	s.Local = netip.AddrPortFrom(local, uint16(40000+h.IntN(h.ports+10)))
	s.Remote = netip.AddrPortFrom(remote, uint16(80+h.IntN(2)))
	switch h.IntN(8) {
	case 0, 1:
		s.State = tcpstate.TimeWait
	case 2:
		s.State = States[h.IntN(len(States))]
	}
	if s.State == tcpstate.TimeWait || s.State == tcpstate.FinWait2 && h.IntN(2) == 0 {
		s.Mini, s.Expires = true, time.Duration(h.IntN(61))*time.Second
	} else {
		s.Cgroup = uint64(h.IntN(5))
	}
	if h.exact {
		s.Bound = []Fact{No, No, No, Yes}[h.IntN(4)]
		if s.Mini {
			s.Timestamps, s.LastTimestamp = []Fact{No, Yes}[h.IntN(2)], uint32(h.now/time.Second)-uint32(h.IntN(3))
		}
	}
	return s
}

// scan reports what an empty Table says of the host, and learns from it. seed decides what the peers answer.
func (h *randomHost) scan(t *Table, k *Knowledge, seed uint64) Report {
	r := rand.New(rand.NewPCG(seed, 2))
	if h.exact {
		t.KnowBound()
	}
	t.Recall(*k, h.now)
	for range r.IntN(3) {
		t.Block(Listener{Local: netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(40000+r.IntN(h.ports)))})
	}
	for i := range h.sockets {
		t.Add(&h.sockets[i])
	}
	for _, q := range t.Questions(h.limits) {
		switch r.IntN(4) {
		case 0, 1:
			k.Answer(q, r.IntN(3) > 0, h.now, 2*time.Minute)
		case 2:
			t.Doubt(q)
		}
	}
	t.Infer(k, h.limits)
	report := t.Report(h.limits)
	k.Keep(&report)
	return report
}

// TestReset compares a Table that was used and Reset with a new one, over scans of random hosts.
func TestReset(t *testing.T) {
	used := new(Table)
	for seed := range uint64(150) {
		h := newRandomHost(seed)
		var learned, again Knowledge
		for scan := range uint64(4) {
			h.change()
			want := h.scan(NewTable(h.settings), &learned, seed*4+scan)
			used.Reset(h.settings)
			got := h.scan(used, &again, seed*4+scan)
			// Printed, as a NaN differs from itself.
			if diff := cmp.Diff(fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got)); diff != "" {
				t.Fatalf("host %d, scan %d: (-new +used):\n%s", seed, scan, diff)
			}
			if h.IntN(3) == 0 {
				used.Release()
			}
		}
	}
}

// TestPoolSizes compares pools of any number of sockets with a plain count: a few are kept as they are, and more are counted.
func TestPoolSizes(t *testing.T) {
	table := NewTable(hundredPorts)
	const sizes = 3 * maxEntries
	for n := range sizes {
		for i := range n + 1 {
			s := socket([]tcpstate.State{tcpstate.Established, tcpstate.SynSent}[i%2], fmt.Sprintf("10.0.0.1:%d", 40000+i), fmt.Sprintf("10.0.1.%d:80", n))
			s.Cgroup = uint64(1 + i%2)
			table.Add(&s)
		}
	}
	type counted struct {
		Ports  [len(States)]int
		Owners []Owner
	}
	for _, d := range table.Report(Limits{MinPorts: 1, Most: 100}).Destinations {
		n := int(d.Address.Addr().As4()[3]) + 1
		want := counted{[len(States)]int{(n + 1) / 2, n / 2}, []Owner{{1, (n + 1) / 2}, {2, n / 2}}}
		if n == 1 {
			want.Owners = want.Owners[:1]
		}
		if diff := cmp.Diff(want, counted{d.Ports, d.Owners}); diff != "" || d.Held != n {
			t.Errorf("%d sockets: held %d, (-want +got):\n%s", n, d.Held, diff)
		}
	}
}

// TestRelease has a Table keep what it needs, so that the next scan allocates for what it returns only, and give back what one
// burst needed.
func TestRelease(t *testing.T) {
	table := new(Table)
	scan := func(pools int) {
		table.Reset(hundredPorts)
		for i := range pools {
			s := Socket{
				State: tcpstate.Established,
				Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 80),
			}
			for range 1 + i%12 {
				table.Add(&s)
			}
		}
		table.Report(Limits{Most: 10})
		table.Release()
	}
	allocations := func(pools int) int {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		scan(pools)
		runtime.ReadMemStats(&after)
		return int(after.Mallocs - before.Mallocs)
	}
	const many = 3000
	scan(many)
	few := allocations(100)
	if n := allocations(many); n > few+100 {
		t.Errorf("%d allocations for %d pools, %d for 100", n, many, few)
	}
	for range 60 {
		scan(100)
	}
	if n := allocations(many); n < few+2*many/entriesEach/256 {
		t.Errorf("%d allocations for %d pools after many scans of 100, %d for these: no memory was given back", n, many, few)
	}
}

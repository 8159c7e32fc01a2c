package pool

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// denies is the rule for one listener and bind(source, 0), without any index.
func denies(l Listener, source netip.Addr) bool {
	switch at := l.Local.Addr(); at {
	case netip.IPv4Unspecified():
		return source.Is4()
	case netip.IPv6Unspecified():
		return source.Is6() || !l.V6Only
	default:
		return at == source
	}
}

func TestBlockedPortsDeny(t *testing.T) {
	sources := []netip.Addr{
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"),
		netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"),
	}
	tests := []struct {
		listen string
		v6only bool
		want   string // for each of sources, whether it is denied
	}{
		{"10.0.0.1", false, "[true false false false]"},
		{"2001:db8::2", false, "[false false false true]"},
		{"0.0.0.0", false, "[true true false false]"},
		{"::", false, "[true true true true]"},
		{"::", true, "[false false true true]"},
	}
	for _, tt := range tests {
		b := newBlockedPorts()
		b.add(Listener{Local: netip.AddrPortFrom(netip.MustParseAddr(tt.listen), 40000), V6Only: tt.v6only})
		var got []bool
		for _, s := range sources {
			got = append(got, b.deny(s, 40000))
			if b.deny(s, 40001) || b.has(40001) {
				t.Errorf("listener on %s: another port is denied", tt.listen)
			}
		}
		if fmt.Sprint(got) != tt.want || !b.has(40000) {
			t.Errorf("listener on %s, v6only %v: got %v, want %v", tt.listen, tt.v6only, got, tt.want)
		}
	}
}

// TestBlockedPortsRandom compares the index with the rule, for many listeners on few ports.
func TestBlockedPortsRandom(t *testing.T) {
	addresses := []netip.Addr{
		netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"),
		netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("::1"),
	}
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(1, seed))
		b := newBlockedPorts()
		var listeners []Listener
		for range random.IntN(12) {
			l := Listener{
				Local:  netip.AddrPortFrom(addresses[random.IntN(len(addresses))], uint16(40000+random.IntN(6))),
				V6Only: random.IntN(2) == 0,
			}
			listeners = append(listeners, l)
			b.add(l)
		}
		denied := b.denied()
		for _, source := range addresses[2:] {
			ports := map[uint16]bool{}
			for _, l := range listeners {
				if denies(l, source) {
					ports[l.Local.Port()] = true
				}
			}
			for port := uint16(40000); port < 40006; port++ {
				if got := b.deny(source, port); got != ports[port] {
					t.Fatalf("%v: port %d denied to %v: got %v", listeners, port, source, got)
				}
			}
			if got := denied(source); got != len(ports) {
				t.Fatalf("%v: %d ports denied to %v, want %d", listeners, got, source, len(ports))
			}
		}
	}
}

// TestBlockedPortsFlood has 19,000 listeners on one address and port, which any user can open with
// SO_REUSEPORT: they cost what one costs.
func TestBlockedPortsFlood(t *testing.T) {
	s := tenPorts
	for _, listeners := range []int{1, 19000} {
		table := NewTable(s)
		for range listeners {
			table.Block(listener("127.0.0.1:40000"))
		}
		if n := len(table.blocked.addresses); n != 1 {
			t.Errorf("%d listeners: %d addresses to search, want 1", listeners, n)
		}
		inbound, other := socket(tcpstate.Established, "127.0.0.1:40000", "10.0.0.2:80"), socket(tcpstate.Established, "127.0.0.2:40000", "10.0.0.2:80")
		table.Add(&other)
		if n := testing.AllocsPerRun(100, func() {
			table.Add(&inbound)
			table.Add(&other)
		}); n != 0 {
			t.Errorf("%d listeners: %v allocations for a socket", listeners, n)
		}
		r := table.Report(everything)
		if r.BlockedPorts != 1 || r.CapacityPorts != 9 || len(r.Sources) != 1 || r.Sources[0].Ports != 1 {
			t.Errorf("%d listeners: got %+v", listeners, r)
		}
	}
}

// BenchmarkAddBlocked tells what a socket on a blocked port costs, by the number of listeners.
func BenchmarkAddBlocked(b *testing.B) {
	for _, listeners := range []int{1, 19000} {
		b.Run(fmt.Sprint(listeners), func(b *testing.B) {
			t := NewTable(tenPorts)
			for range listeners {
				t.Block(listener("127.0.0.1:40000"))
			}
			s := socket(tcpstate.Established, "127.0.0.2:40000", "10.0.0.2:80")
			for b.Loop() {
				t.Add(&s)
			}
		})
	}
}

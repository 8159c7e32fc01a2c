//go:build linux

package main

import (
	"net/netip"
	"slices"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestProgramsStarved lets programs that choose their ports by bind() take most ports. A program beside them, with
// another destination, gets the rest, and the exporter says so, with privileges and without. The ports in TIME_WAIT stay
// lost with tcp_tw_reuse.
func TestProgramsStarved(t *testing.T) {
	netnstest.LockTraces(t)
	for i, p := range programs {
		if p.ports == byConnect {
			continue
		}
		address := netip.AddrFrom4([4]byte{198, 51, 100, byte(150 + i)})
		t.Run(p.name, func(t *testing.T) {
			t.Run("keeps", func(t *testing.T) {
				t.Parallel()
				testStarved(t, p, netip.AddrPortFrom(address, 8001), "0", keeps, "time_wait")
			})
			t.Run("holds", func(t *testing.T) {
				t.Parallel()
				testStarved(t, p, netip.AddrPortFrom(address, 8003), "1", holds, "established")
			})
			t.Run("keeps exact", func(t *testing.T) {
				t.Parallel()
				testStarved(t, p, netip.AddrPortFrom(address, 8005), "0", keeps, "time_wait", "--exact")
			})
			t.Run("holds exact", func(t *testing.T) {
				t.Parallel()
				testStarved(t, p, netip.AddrPortFrom(address, 8007), "1", holds, "established", "--exact")
			})
		})
	}
}

func testStarved(t *testing.T, p program, destination netip.AddrPort, reuse string, kind originKind, state string, flags ...string) {
	const bound = 60
	h := newHost(t, poolSize, flags...)
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", reuse)
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse_delay", "1")
	binds := h.run(t, p, destination, keeps)
	for i := range bound {
		if i%5 == 0 {
			h.scrape(t) // without --exact, it takes several to see how ports are chosen
		}
		if !binds.request(t) {
			t.Fatalf("request %d of those that bind failed", i)
		}
	}
	plain := programs[slices.IndexFunc(programs, func(p program) bool { return p.name == "nginx" })]
	testExhausts(t, h, h.run(t, plain, netip.AddrPortFrom(destination.Addr(), destination.Port()+1), kind), bound, p.ports == byProgram && flags == nil, state)
}

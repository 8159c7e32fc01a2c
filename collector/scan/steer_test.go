//go:build linux

package scan

import (
	"fmt"
	"net/netip"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// TestSteer has two clients with the same source and destination: one binds, one uses plain connect(). What one does changes
// nothing of what was known of the ports of the other.
func TestSteer(t *testing.T) {
	const source, destination = "198.51.100.1", "198.51.100.7:80"
	first, plain := bindsTo(source, destination), plainFrom(source, destination).Client
	anyPort := clientTo(source, destination).bind(netnstest.BindReuseAddr).Client
	type steps struct {
		scan           func() pool.Report
		check          func(bound, unknown int) // scans; at least so many ports are known to be bound, and at most of so many more it is not known
		binding, plain *load
	}
	for name, run := range map[string]func(s steps){
		"plain connects beside bound ports": func(s steps) {
			for n := 100; n <= 500; n += 100 {
				s.binding.connect(first, 100)
				s.check(n, 0)
			}
			for range 10 {
				s.plain.connect(plain, 25)
				s.check(500, len(s.plain.open))
			}
			s.check(500, 250)
		},
		"bound ports beside plain connects": func(s steps) {
			s.plain.connect(plain, 425)
			s.scan()
			s.binding.connect(first, 220)
			s.check(220, 0)
			s.check(220, 0)
		},
		"a few bound ports beside many plain connects": func(s steps) {
			s.plain.connect(plain, 100)
			for range 5 {
				s.scan()
				s.binding.connect(first, 1)
			}
			for range 5 {
				s.plain.connect(plain, 100)
				s.check(3, 2*5+2)
			}
		},
		"both come and go": func(s steps) {
			for range 20 {
				s.plain.shuffle()
				s.plain.close(len(s.plain.open) / 3)
				s.plain.connect(plain, 60)
				s.binding.shuffle()
				s.binding.close(len(s.binding.open) / 3)
				s.binding.connect(first, 60)
				s.check(0, 2000)
			}
		},
		"any ports, beside plain connects that come and go": func(s steps) {
			s.plain.connect(plain, 50)
			s.scan()
			for step := range 20 {
				s.plain.shuffle()
				s.plain.close(len(s.plain.open) / 2)
				s.plain.connect(plain, 100)
				for i := range 10 {
					c := anyPort
					c.Source = netip.AddrPortFrom(c.Source.Addr(), uint16(40001+step*10+i))
					s.binding.connect(c, 1)
				}
				s.check(0, 2000)
			}
		},
		"plain connects after most of the ports that bind() takes first": func(s steps) {
			for n := 100; n <= 900; n += 100 {
				s.binding.connect(first, 100)
				s.check(n, 0)
			}
			s.plain.connect(plain, 60)
			s.check(900, 60)
			s.binding.connect(first, 60)
			s.check(960, 120)
		},
		"bound ports after most of those that plain connect() takes first": func(s steps) {
			for range 9 {
				s.plain.connect(plain, 100)
				s.check(0, 0)
			}
			s.binding.connect(first, 100)
			s.check(0, 100)
			s.plain.connect(plain, 10)
			s.binding.connect(first, 100)
			s.check(0, 210)
		},
	} {
		t.Run(name, func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 41999")
			newLoad(t).connect(plainFrom(source, "198.51.100.8:80").Client, 12) // so that the source is known
			scanner := newScanner(t, testConfig())
			s := steps{binding: newLoad(t), plain: newLoad(t), scan: func() pool.Report { return selfReport(t, scanner) }}
			s.check = func(bound, unknown int) {
				t.Helper()
				r := selfReport(t, scanner)
				checkPossible(t, &r, distinct(t, s.binding.open))
				if r.BoundPorts < bound || r.BoundUnknown > unknown {
					t.Errorf("%d of %d ports are known to be bound, and %d more may be, want at least %d, at most %d", r.BoundPorts, len(s.binding.open), r.BoundUnknown, bound, unknown)
				}
			}
			s.scan()
			s.scan()
			run(s)
			if t.Failed() && netnstest.IsHostRoot() {
				t.Logf("with the exact reader: %d ports are bound", collectExact(t).BoundPorts)
			}
		})
	}
}

// TestSteerRandom has clients of all kinds come and go, on two sources and to some destinations, and compares each of 40 scans with the
// exact reader.
func TestSteerRandom(t *testing.T) {
	netnstest.HostRoot(t)
	for round := range 3 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			netnstest.New(t)
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40999")
			cfg := testConfig()
			if round == 0 { // of most pools and sources, nothing is remembered by itself
				cfg.Limits.Most = 1
			}
			s, exact := newScanner(t, cfg), newExactScanner(t, testConfig())
			selfReport(t, s)
			random := newRandom(t)
			destinations, most := 1+random.IntN(4), 100+random.IntN(900)
			kinds := []struct {
				source string
				bind   netnstest.Bind
				*load
				rate int
			}{
				{"198.51.100.1", netnstest.BindNoPort, newLoad(t), random.IntN(50)},
				{"198.51.100.1", netnstest.BindFirst, newLoad(t), random.IntN(50)},
				{"198.51.100.1", netnstest.BindReuseAddr, newLoad(t), random.IntN(50)},
				{"198.51.100.2", netnstest.BindNoPort, newLoad(t), random.IntN(50)},
			}
			for scan := range 40 {
				held := 0
				for _, k := range kinds {
					k.shuffle()
					k.close(random.IntN(1 + len(k.open)/6))
					held += len(k.open)
				}
				for range 50 {
					for _, k := range kinds {
						if held < most && random.IntN(50) < k.rate {
							held += k.connect(clientTo(k.source, fmt.Sprintf("198.51.100.%d:80", 20+random.IntN(destinations))).bind(k.bind).Client, 1)
						}
					}
				}
				truth, r := selfReport(t, exact).BoundPorts, selfReport(t, s)
				if r.BoundPorts > truth || r.BoundPorts+r.BoundUnknown < truth {
					t.Errorf("scan %d: %d ports are bound, the report has %d, and %d that may be", scan, truth, r.BoundPorts, r.BoundUnknown)
				}
			}
		})
	}
}

package pool

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// hundredPorts has 50 ports of each parity.
var hundredPorts = Settings{PortRange: PortRange{Low: 40000, High: 40099}, TimeWaitLength: time.Minute}

// A host chooses ports as the kernel does, and is scanned.
type host struct {
	t        *testing.T
	settings Settings
	limits   Limits
	sockets  []Socket // the oldest first
	bound    map[uint16]bool
	known    Knowledge
	scans    int
}

func newHost(t *testing.T) *host {
	return &host{t: t, settings: hundredPorts, limits: Limits{MinPorts: 1, Most: 100}, bound: map[uint16]bool{}}
}

// choose returns the first free port of one parity, or else of the other.
func (h *host) choose(parity int, free func(port uint16) bool) uint16 {
	r := h.settings.PortRange
	for _, parity := range []int{parity, 1 - parity} {
		for port := int(r.Low) + parity; port <= int(r.High); port += 2 {
			if free(uint16(port)) {
				return uint16(port)
			}
		}
	}
	h.t.Helper()
	h.t.Fatal("no port is free")
	return 0
}

// add adds a socket from a port.
func (h *host) add(source string, port uint16, destination string) {
	h.sockets = append(h.sockets, socket(tcpstate.Established, fmt.Sprintf("%s:%d", source, port), destination))
}

// connect opens n connections to a destination with plain connect().
func (h *host) connect(source, destination string, n int) {
	h.t.Helper()
	from, to := netip.MustParseAddr(source), netip.MustParseAddrPort(destination)
	for range n {
		port := h.choose(connectParity, func(port uint16) bool {
			return !h.bound[port] && !slices.ContainsFunc(h.sockets, func(s Socket) bool {
				return s.Local == netip.AddrPortFrom(from, port) && s.Remote == to
			})
		})
		h.add(source, port, destination)
	}
}

// bind opens n connections with bind(source, 0) before connect().
func (h *host) bind(source, destination string, n int) {
	h.t.Helper()
	from := netip.MustParseAddr(source)
	for range n {
		port := h.choose(bindParity, func(port uint16) bool {
			return !slices.ContainsFunc(h.sockets, func(s Socket) bool { return s.Local == netip.AddrPortFrom(from, port) })
		})
		h.bound[port] = true
		h.add(source, port, destination)
	}
}

// close closes the n oldest connections.
func (h *host) close(n int) {
	for _, s := range h.sockets[:n] {
		delete(h.bound, s.Local.Port())
	}
	h.sockets = slices.Clone(h.sockets[n:])
}

// forget starts the exporter again.
func (h *host) forget() { h.known = Knowledge{} }

// scan returns a report, and keeps what is learned.
func (h *host) scan() Report {
	h.scans++
	table := NewTable(h.settings)
	table.Recall(h.known, 0)
	for i := range h.sockets {
		table.Add(&h.sockets[i])
	}
	table.Infer(&h.known, h.limits)
	r := table.Report(h.limits)
	h.known.Keep(&r)
	return r
}

// want scans, and checks how many ports are bound, and of how many it is not known.
func (h *host) want(bound, unknown int) {
	h.t.Helper()
	if r := h.scan(); r.BoundPorts != bound || r.BoundUnknown != unknown || r.BoundKnown != (h.scans > 1) {
		h.t.Errorf("scan %d: %d bound ports, %d unknown, known %v, want %d, %d, %v", h.scans, r.BoundPorts, r.BoundUnknown, r.BoundKnown, bound, unknown, h.scans > 1)
	}
}

// TestInfer has clients of each kind over several scans.
func TestInfer(t *testing.T) {
	const source, other, a, b = "10.0.0.1", "10.0.0.2", "10.0.1.1:80", "10.0.1.2:80"
	for name, run := range map[string]func(h *host){
		"plain, fills": func(h *host) {
			for range 10 {
				h.connect(source, a, 10)
				h.want(0, 0)
			}
		},
		"plain, drains": func(h *host) {
			h.connect(source, a, 90)
			h.want(0, 90) // 40 have the other parity: not known why
			for range 8 {
				h.close(10)
				h.scan()
				if r := h.scan(); r.BoundPorts != 0 {
					h.t.Errorf("%d bound ports of a client that does not bind", r.BoundPorts)
				}
			}
		},
		"plain, churns": func(h *host) {
			h.want(0, 0)
			h.connect(source, a, 40)
			for range 10 {
				h.want(0, 0)
				h.close(15)
				h.connect(source, a, 15)
			}
		},
		"plain, full and emptied between scans": func(h *host) {
			h.want(0, 0)
			h.connect(source, b, 10)
			for range 4 {
				h.want(0, 0)
				h.connect(source, a, 95)
				h.close(0)
				if r := h.scan(); r.BoundPorts != 0 {
					h.t.Errorf("%d bound ports of a client that does not bind", r.BoundPorts)
				}
				h.sockets = h.sockets[:10]
			}
		},
		"binds first": func(h *host) {
			h.want(0, 0)
			h.connect(source, b, 12) // so that the source is known
			h.want(0, 0)
			for n := 10; n <= 80; n += 10 {
				h.bind(source, a, 10)
				h.want(n, 0)
			}
		},
		"binds first, in one port a scan": func(h *host) {
			h.connect(source, b, 12)
			h.want(0, 0)
			for n := 1; n <= 5; n++ {
				h.bind(source, a, 1)
				if n < certain {
					h.want(0, n)
				} else {
					h.want(n, 0)
				}
			}
		},
		"binds first, new source": func(h *host) {
			h.bind(source, a, 20) // nothing to compare with
			h.want(0, 20)
			h.bind(other, a, 20) // it had no ports
			h.want(20, 0)        // the same ports
			h.bind(source, a, 10)
			h.want(30, 0)
		},
		"binds first, on one of two sources": func(h *host) {
			h.connect(source, b, 20)
			h.connect(other, a, 20)
			h.want(0, 0)
			h.bind(source, a, 10)
			h.want(10, 0)
			h.connect(other, a, 10)
			h.want(10, 0)
		},
		"binds first, then not any more": func(h *host) {
			h.connect(source, b, 12)
			h.want(0, 0)
			h.bind(source, a, 10)
			h.want(10, 0)
			h.connect(source, a, 12) // ports that its source holds for others do not tell, and are not bound
			h.want(10, 0)
			h.connect(source, a, 15)
			h.want(10, 15) // may be those of a list
			h.connect(source, a, 4)
			h.want(10, 19)
			h.connect(source, a, 1)
			h.want(10, 19) // until now
			h.sockets = slices.Delete(h.sockets, 12, 12+5)
			h.want(5, 10) // at most twice as many
			h.close(12 + 5)
			h.want(0, 0)
		},
		"both, in one pool": func(h *host) {
			h.connect(source, a, 30)
			h.want(0, 0)
			h.bind(source, a, 4)
			h.want(0, 4)
			h.bind(source, a, 6)
			h.want(10, 0)
			h.bind(source, a, 1)
			h.want(11, 0)
			h.connect(source, a, 5)
			h.bind(source, a, 2)
			h.want(13, 5)
		},
		"both, in one pool, as many of each": func(h *host) {
			h.connect(source, a, 10)
			h.want(0, 0)
			h.bind(source, a, 8)
			h.want(8, 0)
			h.bind(source, a, 5)
			h.want(13, 0)
		},
		"both, with a pool each": func(h *host) {
			h.connect(source, b, 20)
			h.want(0, 0)
			h.bind(source, a, 10)
			h.want(10, 0)
			for i := range 5 {
				h.connect(source, b, 4)
				h.bind(source, a, 2)
				h.want(12+2*i, 0)
			}
		},
		"the range changes": func(h *host) {
			h.connect(source, a, 20)
			h.want(0, 0)
			h.settings.PortRange = PortRange{Low: 40001, High: 40100}
			h.connect(source, a, 20)
			h.want(0, 0)
			h.connect(source, a, 10)
			h.want(0, 0)
		},
		"the range changes, binds first": func(h *host) {
			h.connect(source, b, 12)
			h.want(0, 0)
			h.bind(source, a, 10)
			h.want(10, 0)
			h.settings.PortRange = PortRange{Low: 40002, High: 40101}
			h.want(10-1, 0) // 40001 is out of the range
			h.bind(source, a, 5)
			h.want(15-1, 0)
		},
		"the exporter starts again": func(h *host) {
			h.connect(source, b, 12)
			h.want(0, 0)
			h.bind(source, a, 10)
			h.want(10, 0)
			h.forget()
			if r := h.scan(); r.BoundPorts != 0 || r.BoundUnknown != 10 || r.BoundKnown {
				h.t.Errorf("%d bound ports, %d unknown, known %v", r.BoundPorts, r.BoundUnknown, r.BoundKnown)
			}
			h.bind(source, a, 5)
			h.want(5, 10)
		},
		"a pool that Keep forgets": func(h *host) {
			h.limits.Most = 1
			h.connect(source, b, 30)
			h.want(0, 0)
			h.bind(source, a, 12)
			h.want(12, 0)
			h.bind(source, a, 12) // one of the others from now on
			h.want(24, 0)
			h.connect(source, b, 10) // it is known, and plain
			h.want(24, 0)
		},
		"a source that Keep forgets": func(h *host) {
			h.limits.Most = 1
			h.connect(source, b, 30)
			h.want(0, 0)
			h.bind(other, a, 10)
			h.want(10, 0)
			h.bind(other, a, 10) // together with all others that were forgotten
			h.want(20, 0)
		},
		"many small destinations of one source": func(h *host) {
			h.connect(source, b, 12)
			h.want(0, 0)
			for i := range 20 {
				h.bind(source, fmt.Sprintf("10.0.2.%d:80", i), 2)
				if i >= 2 {
					h.want(2*i+2, 0)
				} else {
					h.scan()
				}
			}
		},
		"many small destinations, plain": func(h *host) {
			for i := range 30 {
				h.connect(source, fmt.Sprintf("10.0.2.%d:80", i), 9)
				h.want(0, 0)
			}
		},
		"a small destination that grows": func(h *host) {
			h.connect(source, b, 12)
			h.want(0, 0)
			h.bind(source, a, 8)
			h.want(8, 0)
			h.bind(source, a, 2) // from now on a pool of its own
			h.want(10, 0)
			h.bind(source, a, 1)
			h.want(11, 0)
		},
		"all ports, by several pools": func(h *host) { // the last ones have no port of bind parity
			for i := range 10 {
				h.bind(source, fmt.Sprintf("10.0.2.%d:80", i), 10)
			}
			h.want(0, 100)
			h.close(50)
			h.want(0, 50)
			h.connect(other, a, 10) // no port of connect parity is left for it
			h.want(0, 60)
		},
		"a pool that binds becomes small": func(h *host) {
			h.limits.MinPorts = 15
			h.connect(source, b, 5)
			h.want(0, 0)
			h.bind(source, a, 20)
			h.want(20, 0)
			h.bind(source, a, 5)
			h.want(25, 0)
			h.sockets = h.sockets[:5+14]
			h.want(14, 0)
			for i := range 21 { // these are listed in its place
				h.connect(other, fmt.Sprintf("10.0.2.%d:80", i), 15)
			}
			h.limits.Most = 1
			h.want(14, 0) // and is forgotten, but not its ports
			h.sockets = h.sockets[:5+14]
			h.want(14, 0)
			h.connect(source, b, 5)
			h.want(14, 0)
			h.close(5)
			h.want(14, 0)
		},
		"few sockets of each source": func(h *host) {
			h.connect(other, a, 10)
			h.want(0, 0)
			for i := range 4 {
				h.bind(fmt.Sprintf("10.0.3.%d", i), a, 1) // the kernel chooses at random
				h.sockets[len(h.sockets)-1].Local = netip.AddrPortFrom(h.sockets[len(h.sockets)-1].Local.Addr(), uint16(40051+2*i))
			}
			h.want(0, 4)
			h.bind("10.0.3.9", a, 1)
			h.want(0, 5)
			h.bind("10.0.3.10", a, 2)
			h.want(6, 0) // both have the first
		},
		"a plain connect to a destination of clients that bind": func(h *host) {
			for i := range 34 { // in both halves of the range
				port := uint16(40001 + i%2*50 + i/2*2)
				h.add(source, port, a)
				h.bound[port] = true
			}
			h.want(0, 34)
			h.connect(source, a, 1)
			h.want(0, 34)
			h.connect(source, a, 40) // so many that the ports of bind parity could be what is left of a full pool
			h.want(0, 34)
			h.want(0, 34)
			h.close(34)
			h.want(0, 0)
		},
		"a plain connect to each destination of clients that bind ports of both parities": func(h *host) {
			for i := range 60 { // with SO_REUSEADDR: the lower half, then the upper one
				port := 40000 + i/50*50 + (2*i+1)%50 - i/25%2
				h.add(source, uint16(port), fmt.Sprintf("10.0.2.%d:80", i/10))
				h.bound[uint16(port)] = true
			}
			h.want(0, 60)
			for i := range 6 {
				h.connect(source, fmt.Sprintf("10.0.2.%d:80", i), 1)
			}
			h.want(0, 60)
			h.connect(source, b, 40) // one is held for others, of plain connect()
			h.want(0, 99)
		},
		"a plain connect to one of many small destinations": func(h *host) {
			for i := range 24 {
				port := 40000 + (2*i+1)%25 // both parities
				h.add(source, uint16(port), fmt.Sprintf("10.0.2.%d:80", i/6))
				h.bound[uint16(port)] = true
			}
			h.want(0, 24)
			h.connect(source, "10.0.2.0:80", 1)
			h.want(0, 24)
			h.connect(source, "10.0.2.0:80", 3) // it is told apart now
			h.want(0, 24)
		},
		"bound ports of clients that were seen to connect before": func(h *host) {
			h.connect(source, a, 20)
			h.want(0, 0)
			h.connect(source, a, 5)
			h.bind(source, a, 10)
			h.want(0, 10+5)
			h.connect(source, a, 10)
			h.want(0, 10+15)
			h.connect(source, a, 10) // no evidence is left
			h.want(0, 10+15)
			h.close(20 + 5)
			h.want(0, 10+10)
		},
		"the low end changes parity under clients of both kinds": func(h *host) {
			h.connect(source, a, 30)
			h.want(0, 0)
			h.bind(source, a, 10)
			h.want(10, 0)
			h.settings.PortRange = PortRange{Low: 40001, High: 40100}
			h.want(10, 0)
			h.want(10, 0)
		},
		"few ports of connect parity are free": func(h *host) {
			h.connect(source, a, 38)
			h.want(0, 0)
			h.bind(source, b, 10)
			h.want(10, 0)            // to this destination, all are free
			h.connect(source, b, 11) // the same ports
			h.want(10, 0)
		},
		"plain connects to a destination of clients that bind": func(h *host) {
			h.want(0, 0)
			h.bind(source, a, 15)
			h.want(15, 0)
			for n := 10; n <= 40; n += 10 {
				h.connect(source, a, 10)
				h.want(15, min(n, contraryPorts-1)/10*10) // so many in a row are not those of a list
			}
			h.sockets = h.sockets[:15]
			h.want(15, 0)
			h.bind(source, a, 5)
			h.want(20, 0)
		},
		"few bound ports beside many of plain connects": func(h *host) {
			h.want(0, 0)
			h.connect(source, a, 12)
			h.want(0, 0)
			for n := 1; n < certain; n++ {
				h.bind(source, a, 1)
				h.want(0, n)
			}
			h.bind(source, a, 1)
			h.want(3, 0)
			h.connect(source, a, 15)
			h.want(3, 2*3)
		},
		"bound ports, in a pool with most ports of connect parity": func(h *host) {
			for n := 12; n <= 48; n += 12 {
				h.connect(source, a, 12)
				h.want(0, 0)
			}
			h.bind(source, a, 5) // connect() could have taken these, if others were given back meanwhile
			h.want(0, 5)
			h.connect(source, a, 2) // the last ones
			h.want(0, 5)
			h.connect(source, a, 5) // of bind parity: of which call does not show
			h.want(0, 5)
		},
		"plain connects, where most ports of bind parity are held": func(h *host) {
			h.want(0, 0)
			for n := 12; n <= 48; n += 12 {
				h.bind(source, a, 12)
				h.want(n, 0)
			}
			for i := range 5 { // bind() could have taken these
				h.add(source, uint16(40050+2*i), a)
			}
			h.want(48, 5)
			h.bind(source, a, 2) // the last ones
			h.want(50, 5)
			h.bind(source, a, 5) // of connect parity: of which call does not show
			h.want(55, 5)
		},
		"a bound port goes from one pool to another": func(h *host) {
			h.want(0, 0)
			h.connect(source, b, 20)
			h.want(0, 0)
			h.bind(source, a, 20)
			h.want(20, 0)
			h.sockets = h.sockets[:30] // 10 ports are bound again at once
			h.bind(source, b, 10)
			h.want(10, 10)
		},
		"ports of a full pool of plain connect() that Keep forgets": func(h *host) {
			for n := 12; n <= 60; n += 12 {
				h.connect(source, a, 12)
				h.want(0, 0)
			}
			h.connect(other, b, 70)
			h.limits.Most = 1
			for range 3 {
				h.scan()
			}
			h.sockets = h.sockets[:60]
			h.want(0, 0)
		},
		"ports of a source that Keep forgets stay known": func(h *host) {
			h.want(0, 0)
			h.bind(source, a, 12)
			h.want(12, 0)
			h.limits.Most = 1
			h.connect(other, b, 30)
			h.want(12, 0)
			h.want(12, 0)
			h.limits.Most = 2
			h.want(12, 0)
			h.want(12, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			run(h)
		})
	}
}

// portSetOf returns a set of ports.
func portSetOf(ports ...uint16) *portset.Set {
	set := new(portset.Set)
	for _, port := range ports {
		set.Add(port)
	}
	return set
}

// TestCountPorts checks what the ports of a unit show. Those from 40000 to 40049 are the lower half.
func TestCountPorts(t *testing.T) {
	type pool struct{ open, reusable []uint16 }
	both := [2]bool{true, true}
	for _, tt := range []struct {
		name       string
		old        *portset.Set
		bindChoice [2]bool
		pools      []pool
		want       evidence
	}{
		{"no pool", portSetOf(), both, nil, evidence{}},
		{"nothing to compare with", nil, both, []pool{{open: []uint16{40000, 40001, 40003}}},
			evidence{held: [2]int{1, 2}, taken: 1, unforced: 1}},
		{"new ports", portSetOf(), both, []pool{{open: []uint16{40000, 40002, 40003}}},
			evidence{held: [2]int{2, 1}, taken: 2, newConnectParity: 2, newBindParity: 1}},
		{"held by another pool of the source before", portSetOf(40000, 40003), both, []pool{{open: []uint16{40000, 40002, 40003}}},
			evidence{held: [2]int{2, 1}, taken: 2, newConnectParity: 1}},
		{"no choice for bind() in the lower half", portSetOf(), [2]bool{false, true}, []pool{{open: []uint16{40000, 40048, 40050, 40001}}},
			evidence{held: [2]int{3, 1}, taken: 3, newConnectParity: 1, newBindParity: 1}},
		{"no choice for bind() in the upper half", portSetOf(), [2]bool{true, false}, []pool{{open: []uint16{40000, 40048, 40050, 40051}}},
			evidence{held: [2]int{3, 1}, taken: 3, newConnectParity: 2, newBindParity: 1}},
		{"ports that connect() may take over", portSetOf(), both, []pool{{open: []uint16{40000, 40001}, reusable: []uint16{40002, 40003}}},
			evidence{held: [2]int{2, 2}, taken: 3, newConnectParity: 2, newBindParity: 2}},
		{"several pools", portSetOf(), both, []pool{{open: []uint16{40000, 40002}}, {open: []uint16{40000, 40002, 40004}}, {open: []uint16{40001}}},
			evidence{held: [2]int{5, 1}, taken: 3, newConnectParity: 5, newBindParity: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := NewTable(reusing(hundredPorts, time.Second))
			u := &unit{old: tt.old, bindChoice: tt.bindChoice}
			for i, p := range tt.pools {
				add := func(state tcpstate.State, port uint16) {
					s := socket(state, fmt.Sprintf("10.0.0.1:%d", port), fmt.Sprintf("10.0.1.%d:80", i))
					table.Add(&s)
				}
				for _, port := range p.open {
					add(tcpstate.Established, port)
				}
				for _, port := range p.reusable {
					add(tcpstate.TimeWait, port)
				}
				u.pools = append(u.pools, int32(i))
			}
			tt.want.bindShows = tt.bindChoice == both
			if diff := cmp.Diff(tt.want, table.countPorts(u), cmp.AllowUnexported(evidence{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestSeveralPools checks which ports two or more pools of a source hold, and that the sockets are looked at once for all sources.
func TestSeveralPools(t *testing.T) {
	table := NewTable(reusing(hundredPorts, time.Second))
	for _, s := range []Socket{
		socket(tcpstate.Established, "10.0.0.1:40001", "10.0.1.1:80"),
		socket(tcpstate.Established, "10.0.0.1:40001", "10.0.1.2:80"),
		socket(tcpstate.TimeWait, "10.0.0.1:40003", "10.0.1.1:80"),
		socket(tcpstate.Established, "10.0.0.1:40003", "10.0.1.3:80"),
		socket(tcpstate.Established, "10.0.0.1:40005", "10.0.1.1:80"), // twice, as in a dump
		socket(tcpstate.Established, "10.0.0.1:40005", "10.0.1.1:80"),
		socket(tcpstate.Established, "10.0.0.1:40007", "10.0.1.1:80"),
		socket(tcpstate.Established, "10.0.0.2:40007", "10.0.1.1:80"), // another source
	} {
		table.Add(&s)
	}
	for address, want := range map[string][]uint16{"10.0.0.1": {40001, 40003}, "10.0.0.2": nil} {
		i, _ := table.sources.Find(sourceKey{address: netip.MustParseAddr(address).As16()})
		source := int32(i)
		if got := table.severalPools(source).All(); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", address, got, want)
		}
		if n := testing.AllocsPerRun(1, func() { table.severalPools(source) }); n != 0 {
			t.Errorf("%s: %v allocations for what was known", address, n)
		}
	}
}

// TestUnits checks which pools are told apart, and what is recalled of each.
func TestUnits(t *testing.T) {
	const minPorts = 10
	large, small := "10.0.1.1:80", "10.0.1.2:80"
	ofPool, ofOthers := clients{score: 1, contrary: 4, connectChoice: true}, clients{score: 2}
	key := poolKey{
		source: netip.MustParseAddr("10.0.0.1").As16(), destination: netip.MustParseAddr("10.0.1.1").As16(), port: 80,
	}
	known := func(complete bool, pools map[poolKey]*clients) *knownSource {
		return &knownSource{ports: portSetOf(40099), bindChoice: [2]bool{true, false}, complete: complete, pools: pools, others: ofOthers, binds: true}
	}
	with := func(c clients) clients { c.connectChoice = true; return c }
	type found struct {
		Clients, Others clients
		Pools           int
		Old             bool
		BindChoice      [2]bool
	}
	for _, tt := range []struct {
		name   string
		source *knownSource // before
		want   map[string]found
	}{
		{"first scan", nil, map[string]found{"large": {Pools: 1, BindChoice: [2]bool{true, true}}, "others": {Pools: 1, BindChoice: [2]bool{true, true}}}},
		{"known pool", known(false, map[poolKey]*clients{key: &ofPool}), map[string]found{
			"large":  {Clients: ofPool, Pools: 1, Old: true, BindChoice: [2]bool{true, false}},
			"others": {Clients: with(ofOthers), Pools: 1, Old: true, BindChoice: [2]bool{true, false}},
		}},
		{"new pool", known(true, nil), map[string]found{
			"large":  {Clients: clients{connectChoice: true}, Others: ofOthers, Pools: 1, Old: true, BindChoice: [2]bool{true, false}},
			"others": {Clients: with(ofOthers), Pools: 1, Old: true, BindChoice: [2]bool{true, false}},
		}},
		{"a pool that is new or forgotten", known(false, nil), map[string]found{
			"others": {Clients: with(ofOthers), Pools: 2, Old: true, BindChoice: [2]bool{true, false}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := NewTable(hundredPorts)
			before := Knowledge{portRange: hundredPorts.PortRange, connectChoice: true}
			if tt.source != nil {
				before.sources = map[sourceKey]*knownSource{key.sourceKey(): tt.source}
			}
			table.Recall(before, 0)
			for i := range minPorts {
				s := socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", 40001+2*i), large)
				table.Add(&s)
				if s.Remote = netip.MustParseAddrPort(small); i > 0 {
					table.Add(&s)
				}
			}
			plain := socket(tcpstate.Established, "10.0.0.2:40000", large) // has no unit
			table.Add(&plain)
			got := map[string]found{}
			for k, u := range table.units(table.surveySources(), minPorts) {
				name := "others"
				if k.pool == key {
					name = "large"
				}
				got[name] = found{u.clients, u.others, len(u.pools), u.old != nil, u.bindChoice}
			}
			if diff := cmp.Diff(tt.want, got, compareClients); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestSurveySources has sources on each side of each limit: bind() has a choice while a fourth of the
// 25 ports of its parity in a half are free.
func TestSurveySources(t *testing.T) {
	for _, tt := range []struct {
		name         string
		before       *knownSource
		lower, upper int // ports of bind parity
		plain        bool
		bindChoice   [2]bool
	}{
		{"ports of connect parity only", nil, 0, 0, true, [2]bool{true, true}},
		{"they may have been bound before", &knownSource{binds: true}, 0, 0, false, [2]bool{true, true}},
		{"they were plain before", &knownSource{}, 0, 0, true, [2]bool{true, true}},
		{"one of bind parity", nil, 1, 0, false, [2]bool{true, true}},
		{"one in the upper half", nil, 0, 1, false, [2]bool{true, true}},
		{"a fourth of the lower half is free", nil, 18, 0, false, [2]bool{true, true}},
		{"less than a fourth, lower half", nil, 19, 0, false, [2]bool{false, true}},
		{"a fourth of the upper half is free", nil, 0, 18, false, [2]bool{true, true}},
		{"less than a fourth, upper half", nil, 0, 19, false, [2]bool{true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := NewTable(hundredPorts)
			key := sourceKey{address: netip.MustParseAddr("10.0.0.1").As16()}
			if tt.before != nil {
				table.before.sources = map[sourceKey]*knownSource{key: tt.before}
			}
			add := func(port int) {
				s := socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", port), "10.0.1.1:80")
				table.Add(&s)
			}
			for i := range 25 {
				add(40000 + 2*i)
			}
			for i := range tt.lower {
				add(40001 + 2*i)
			}
			for i := range tt.upper {
				add(40099 - 2*i)
			}
			got := table.surveySources()[key]
			if got.plain != tt.plain || got.bindChoice != tt.bindChoice {
				t.Errorf("plain %v, bind() had a choice %v, want %v, %v", got.plain, got.bindChoice, tt.plain, tt.bindChoice)
			}
		})
	}
}

// TestHasChoice checks the limit.
func TestHasChoice(t *testing.T) {
	for _, tt := range []struct {
		free, usable int
		want         bool
	}{
		{0, 0, false}, {-1, 0, false}, {1, 1, true}, {24, 100, false}, {25, 100, true}, {1, 5, false}, {1, 4, true},
	} {
		if got := hasChoice(tt.free, tt.usable); got != tt.want {
			t.Errorf("%d of %d free: got %v", tt.free, tt.usable, got)
		}
	}
}

// TestHalfOf compares with the kernel, which halves the number of ports and rounds it down to an even one.
func TestHalfOf(t *testing.T) {
	for _, tt := range []struct{ low, high, first uint16 }{
		{40000, 40099, 40050}, {40000, 40101, 40050}, {40001, 40101, 40051}, {40000, 40102, 40050}, {1, 65535, 32767},
	} {
		table := NewTable(Settings{PortRange: PortRange{Low: tt.low, High: tt.high}})
		if below, first := table.halfOf(tt.first-1), table.halfOf(tt.first); below != 0 || first != 1 {
			t.Errorf("%d to %d: port %d is in half %d, port %d in half %d", tt.low, tt.high, tt.first-1, below, tt.first, first)
		}
	}
}

// TestInferTimeWait has bound ports in TIME_WAIT: connect() never takes them over, and they are held for
// the full length.
func TestInferTimeWait(t *testing.T) {
	h := newHost(t)
	h.settings = reusing(hundredPorts, time.Second)
	closed := func() {
		for i := range h.sockets {
			if s := &h.sockets[i]; s.Remote.Port() == 443 {
				s.State, s.Mini, s.Expires = tcpstate.TimeWait, true, 55*time.Second
			}
		}
	}
	h.connect("10.0.0.1", "10.0.1.1:80", 12)
	h.scan()
	for n := range 3 {
		h.bind("10.0.0.1", "10.0.1.2:443", 10)
		closed()
		r := h.scan()
		for _, d := range r.Destinations {
			hold := 60.
			switch {
			case d.Address.Port() == 443 && n == 0: // first seen as plain clients, and set right by what was found
				continue
			case d.Address.Port() == 80:
				hold = 1
			}
			if want := float64(10*(n+1)) / 10; d.Address.Port() == 443 && !near(d.CloseRate, want, 1e-9) {
				t.Errorf("scan %d: %v closes per second, want %v", n, d.CloseRate, want)
			}
			if d.Hold != hold || d.Reusable != 0 {
				t.Errorf("scan %d: %v: hold %v, %d reusable, want %v and 0", n, d.Address, d.Hold, d.Reusable, hold)
			}
		}
		if want := 10 * (n + 1); r.BoundPorts != want || r.MaxUtilization != float64(want+12)/100 {
			t.Errorf("scan %d: %d bound ports, utilization %v, want %d, %v", n, r.BoundPorts, r.MaxUtilization, want, float64(want+12)/100)
		}
	}
}

// TestInferTimeWaitPlain has ports of bind parity in TIME_WAIT of plain connect(), to a destination of clients that bind: connect()
// takes them over, as far as that is known.
func TestInferTimeWaitPlain(t *testing.T) {
	h := newHost(t)
	h.settings = reusing(hundredPorts, time.Second)
	h.scan()
	const source, destination = "10.0.0.1", "10.0.1.1:80"
	h.bind(source, destination, 10)
	h.want(10, 0)
	h.connect(source, destination, 50) // all of the others, and some that bind() takes first
	for i := range h.sockets[10:] {
		s := &h.sockets[10+i]
		s.State, s.Mini, s.Expires = tcpstate.TimeWait, true, 55*time.Second
	}
	r := h.scan()
	d := r.Destinations[0]
	if r.BoundPorts != 10 || d.Held != 60 || d.Reusable != 50 || d.Utilization != 0.1 || d.PossibleUtilization < 0.3 {
		t.Errorf("%d bound ports, %d of %d reusable, utilization %v, possibly %v, want 10, 50 of 60, 0.1, 0.3", r.BoundPorts, d.Reusable, d.Held, d.Utilization, d.PossibleUtilization)
	}
}

// TestInferHold has open connections only. Those of a client that binds first hold their ports for the full
// length once they are closed.
func TestInferHold(t *testing.T) {
	h := newHost(t)
	h.settings = reusing(hundredPorts, time.Second)
	h.connect("10.0.0.1", "10.0.1.1:80", 12)
	h.scan()
	for range 2 {
		h.bind("10.0.0.1", "10.0.1.2:443", 10)
		h.scan()
	}
	got := map[uint16]float64{}
	for _, d := range h.scan().Destinations {
		got[d.Address.Port()] = d.Hold
	}
	if diff := cmp.Diff(map[uint16]float64{80: 1, 443: 60}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestInferKnown infers nothing where the reader knows which ports are bound.
func TestInferKnown(t *testing.T) {
	table := NewTable(hundredPorts)
	table.KnowBound()
	s := socket(tcpstate.Established, "10.0.0.1:40001", "10.0.1.1:80")
	table.Add(&s)
	var k Knowledge
	table.Infer(&k, everything)
	if r := table.Report(everything); k.sources != nil || r.BoundUnknown != 0 || !r.BoundKnown {
		t.Errorf("learned of %d sources; %d ports unknown, known %v", len(k.sources), r.BoundUnknown, r.BoundKnown)
	}
}

// TestConnectSupply checks which ports of connect parity, of 50, count as free for a new destination.
func TestConnectSupply(t *testing.T) {
	plain := clients{connects: true}
	for _, tt := range []struct {
		name  string
		units map[unitKey]*unit
		want  supply
	}{
		{"no unit", nil, supply{50, 50}},
		{"plain", map[unitKey]*unit{{}: {clients: plain, evidence: evidence{taken: 9}, pools: []int32{0, 1}}}, supply{50, 50}},
		{"doubtful", map[unitKey]*unit{{}: {evidence: evidence{taken: 9}, pools: []int32{0, 1}}}, supply{50, 50 - 3}},
		{"some doubtful", map[unitKey]*unit{{}: {clients: plain, pools: []int32{0}}, {pool: poolKey{port: 1}}: {pools: []int32{1}}}, supply{50, 50 - 2}},
	} {
		table := NewTable(hundredPorts)
		for i, ports := range [][]uint16{{40000, 40002, 40003}, {40002, 40004, 40001}} {
			for _, port := range ports {
				s := socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", port), fmt.Sprintf("10.0.1.%d:80", i))
				table.Add(&s)
			}
		}
		if got := table.connectSupply(tt.units); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// TestCountBound has ports that were found to be bound: of those that connect() was to take over, only these are
// held.
func TestCountBound(t *testing.T) {
	table := NewTable(reusing(hundredPorts, time.Second))
	for _, port := range []uint16{40000, 40001, 40002, 40003} {
		open := socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", port), "10.0.1.1:80")
		closed := socket(tcpstate.TimeWait, fmt.Sprintf("10.0.0.1:%d", port), "10.0.1.2:80")
		table.Add(&open)
		table.Add(&closed)
	}
	for _, port := range []uint16{40001, 40002, 40009} {
		table.bound.Add(port)
	}
	table.countBound()
	for _, d := range table.Report(everything).Destinations {
		reusable := 0
		if d.Address.Addr() == netip.MustParseAddr("10.0.1.2") {
			reusable = 2
		}
		if d.BoundByOthers != 1 || d.Reusable != reusable {
			t.Errorf("%v: %d bound by others, %d reusable, want 1 and %d", d.Address, d.BoundByOthers, d.Reusable, reusable)
		}
	}
}

// TestLearnFew learns of pools from minOwn ports on.
func TestLearnFew(t *testing.T) {
	h := newHost(t)
	h.connect("10.0.0.1", "10.0.1.1:80", minOwn)
	h.connect("10.0.0.1", "10.0.1.2:80", minOwn-1)
	h.scan()
	for _, source := range h.known.sources {
		if len(source.pools) != 1 {
			t.Errorf("%d pools are known, want 1", len(source.pools))
		}
	}
}

// TestClientsOf checks what is known of the clients of a pool.
func TestClientsOf(t *testing.T) {
	pool, other, binding := poolKey{port: 80}, poolKey{port: 443}, clients{score: certain}
	for _, tt := range []struct {
		name   string
		source *knownSource
		want   clients
	}{
		{"unknown source", nil, clients{contrary: 7}},
		{"few ports", &knownSource{few: true, others: binding}, clients{contrary: 7}},
		{"told apart", &knownSource{pools: map[poolKey]*clients{pool: &binding}}, binding},
		{"one of the others", &knownSource{pools: map[poolKey]*clients{other: {}}, others: binding}, binding},
	} {
		k := Knowledge{few: clients{contrary: 7}}
		if tt.source != nil {
			k.sources = map[sourceKey]*knownSource{{}: tt.source}
		}
		if diff := cmp.Diff(tt.want, *k.clientsOf(pool), compareClients); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestKeep forgets what a report does not contain.
func TestKeep(t *testing.T) {
	h := newHost(t)
	for _, source := range []string{"10.0.0.1", "10.0.0.2"} {
		for i, n := range []int{30, 20} {
			h.connect(source, fmt.Sprintf("10.0.1.%d:80", i), n)
		}
	}
	h.scan()
	kept, left := netip.MustParseAddrPort("10.0.1.0:80"), netip.MustParseAddrPort("10.0.1.1:80")
	said := peer{answers: answers{with: 1}}
	h.known.peers = map[netip.AddrPort]peer{kept: said, left: said}
	one := netip.MustParseAddr("10.0.0.1")
	h.known.Keep(&Report{
		Sources:      []Source{{Address: one}},
		Destinations: []Destination{{Source: one, Address: kept}},
	})
	if len(h.known.peers) != 1 || h.known.peers[kept] != said {
		t.Errorf("timestamps: got %v, want those of %v", h.known.peers, kept)
	}
	source := h.known.sources[sourceKey{address: one.As16()}]
	if len(h.known.sources) != 1 || source == nil {
		t.Fatalf("%d sources are known", len(h.known.sources))
	}
	_, ok := source.pools[poolKey{source: one.As16(), destination: kept.Addr().As16(), port: 80}]
	if len(source.pools) != 1 || !ok || source.complete {
		t.Errorf("%d pools are known, all %v", len(source.pools), source.complete)
	}
}

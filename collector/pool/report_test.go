package pool

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	compareAddrs = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})

	everything = Limits{MinPorts: 1, Most: 1 << 20}

	// tenPorts is an ordinary range.
	tenPorts = Settings{PortRange: PortRange{Low: 40000, High: 40009}, TimeWaitLength: time.Minute}
)

// socket returns a socket in a state, between two addresses.
func socket(state tcpstate.State, local, remote string) Socket {
	return Socket{State: state, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
}

// listener returns a listener on an address.
func listener(local string) Listener { return Listener{Local: netip.MustParseAddrPort(local)} }

// tableOf returns a Table with these listeners and sockets.
func tableOf(s Settings, listeners []Listener, sockets ...Socket) *Table {
	t := NewTable(s)
	for _, l := range listeners {
		t.Block(l)
	}
	for _, s := range sockets {
		t.Add(&s)
	}
	return t
}

// TestReportNothing reports an idle host.
func TestReportNothing(t *testing.T) {
	r := NewTable(tenPorts).Report(everything)
	want := Report{Settings: tenPorts, CapacityPorts: 10}
	if diff := cmp.Diff(want, r, compareAddrs, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestReportNoPorts reports a host on which every port is reserved or has a listener.
func TestReportNoPorts(t *testing.T) {
	s := tenPorts
	s.ReservedPorts = []PortRange{{Low: 1, High: 40008}}
	r := tableOf(s, []Listener{listener("0.0.0.0:40009")}).Report(everything)
	if r.CapacityPorts != 0 || r.MaxUtilization != 1 {
		t.Errorf("got capacity %d, greatest utilization %v, want 0 and 1", r.CapacityPorts, r.MaxUtilization)
	}
}

// TestReportStates checks that every state that holds a port counts, and no other state.
func TestReportStates(t *testing.T) {
	const local, remote = "10.0.0.1:40000", "10.0.0.2:80"
	var sockets []Socket
	for i, state := range States {
		for range i + 1 {
			sockets = append(sockets, socket(state, local, remote))
		}
	}
	sockets = append(sockets, socket(tcpstate.State(200), local, remote))
	r := tableOf(tenPorts, nil, sockets...).Report(everything)
	if len(r.Destinations) != 1 {
		t.Fatalf("got %+v, want one destination", r.Destinations)
	}
	d := r.Destinations[0]
	if want := [...]int{1, 2, 3, 4, 5, 6, 7, 8, 9}; d.Ports != want || d.Held != 45 {
		t.Errorf("got %v, sum %d, want %v, sum 45", d.Ports, d.Held, want)
	}
	if d.Utilization != 1 {
		t.Errorf("utilization %v of more sockets than ports, want 1", d.Utilization)
	}
	if r.Sources[0].Ports != 1 {
		t.Errorf("one port, %d times on the source", r.Sources[0].Ports)
	}
}

// TestAddState adds a socket in each state that a kernel can name: none panics, and one that is not known
// holds no port.
func TestAddState(t *testing.T) {
	for state := range 256 {
		r := tableOf(tenPorts, nil, socket(tcpstate.State(state), "10.0.0.1:40000", "10.0.0.2:80")).Report(everything)
		if held := r.Destinations[0].Held; state > int(tcpstate.Closing) && held != 0 || tcpstate.State(state).String() != "unknown" && held != 1 {
			t.Errorf("state %d: %d ports held", state, held)
		}
	}
}

// TestReportOutside checks that sockets outside of all pools do not count.
func TestReportOutside(t *testing.T) {
	s := tenPorts
	s.ReservedPorts = []PortRange{{Low: 40001, High: 40001}}
	listeners := []Listener{
		listener("10.0.0.1:40002"),
		listener("10.0.0.9:40002"),
		listener("10.0.0.9:40003"),
		listener("0.0.0.0:40001"), // counts as reserved, not as blocked
	}
	r := tableOf(s, listeners,
		socket(tcpstate.Established, "10.0.0.1:39999", "10.0.0.2:80"), // out of range
		socket(tcpstate.Established, "10.0.0.1:40001", "10.0.0.2:80"), // reserved
		socket(tcpstate.Established, "10.0.0.1:40002", "10.0.0.2:80"), // inbound
		socket(tcpstate.Established, "10.0.0.1:40003", "10.0.0.2:80"), // bound beside a listener on another address
		socket(tcpstate.Established, "10.0.0.1:40004", "10.0.0.2:80"),
	).Report(everything)

	want := Report{
		Settings: s, ReservedPorts: 1, BlockedPorts: 2, CapacityPorts: 7, ListenerPorts: []uint16{40001, 40002, 40003}, Sockets: 5, MaxUtilization: 1. / 7, MaxPossibleUtilization: 1. / 7, MaxSourceUtilization: 2. / 8,
		Destinations: []Destination{{
			Source: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddrPort("10.0.0.2:80"),
			Ports: [9]int{1}, Held: 1, Utilization: 1. / 7, PossibleUtilization: 1. / 7, Ceiling: 6. / 60, Open: 1, Hold: 60, Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1),
		}},
		// bind() may also choose 40003.
		Sources: []Source{{Address: netip.MustParseAddr("10.0.0.1"), Ports: 2, Capacity: 8, Utilization: 2. / 8}},
	}
	if diff := cmp.Diff(want, r, compareAddrs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := Capacity(s); got != r.CapacityPorts+r.BlockedPorts {
		t.Errorf("Capacity: got %d, want %d", got, r.CapacityPorts+r.BlockedPorts)
	}
}

// TestReportZones checks that a link-local address on two interfaces makes two pools. Any
// other address makes one.
func TestReportZones(t *testing.T) {
	on := func(ifindex uint32, local, remote string) Socket {
		s := socket(tcpstate.Established, local, remote)
		s.Interface = ifindex
		return s
	}
	r := tableOf(tenPorts, nil,
		on(2, "[fe80::1]:40000", "[fe80::2]:80"),
		on(3, "[fe80::1]:40000", "[fe80::2]:80"),
		on(3, "[fe80::1]:40001", "[fe80::2]:80"),
		on(2, "[2001:db8::1]:40000", "[2001:db8::2]:80"), // SO_BINDTODEVICE
		on(0, "[2001:db8::1]:40001", "[2001:db8::2]:80"),
		on(2, "[2001:db8::1]:40002", "[fe80::2]:80"),
	).Report(everything)
	var got []string
	for _, d := range r.Destinations {
		got = append(got, fmt.Sprintf("%v %v %d", d.Source, d.Address, d.Held))
	}
	for _, s := range r.Sources {
		got = append(got, fmt.Sprintf("%v %d", s.Address, s.Ports))
	}
	want := []string{
		"2001:db8::1 [2001:db8::2]:80 2", "fe80::1%3 [fe80::2%3]:80 2", "2001:db8::1 [fe80::2%2]:80 1", "fe80::1%2 [fe80::2%2]:80 1",
		"2001:db8::1 3", "fe80::1%3 2", "fe80::1%2 1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestReportCloseRate checks that closes count over 10 s, or over the reuse delay if ports may
// be reused after it.
func TestReportCloseRate(t *testing.T) {
	for _, tt := range []struct {
		reuse    int
		want     float64
		reusable int
	}{{0, 0.3, 0}, {1, 1, 4}} {
		s := tenPorts
		s.TWReuse, s.Timestamps, s.TWReuseDelay = tt.reuse, 1, time.Second
		var sockets []Socket
		for i, age := range []time.Duration{0, time.Second, 1001 * time.Millisecond, 10 * time.Second, 10001 * time.Millisecond, time.Minute} {
			socket := socket(tcpstate.TimeWait, fmt.Sprintf("10.0.0.1:%d", 40000+i), "10.0.0.2:80")
			socket.Expires = time.Minute - age
			sockets = append(sockets, socket)
		}
		// A socket that a process still has has another timer.
		sockets = append(sockets, socket(tcpstate.FinWait2, "10.0.0.1:40009", "10.0.0.2:80"))
		d := tableOf(s, nil, sockets...).Report(everything).Destinations[0]
		if d.CloseRate != tt.want || d.Reusable != tt.reusable || d.Held != 7 {
			t.Errorf("tcp_tw_reuse %d: got rate %v, reusable %d, held %d, want %v, %d, 7", tt.reuse, d.CloseRate, d.Reusable, d.Held, tt.want, tt.reusable)
		}
	}
}

// TestReportLimits checks that the limits keep the destinations with most ports, and that all
// others are counted as unreported.
func TestReportLimits(t *testing.T) {
	s := tenPorts
	s.PortRange = PortRange{Low: 32768, High: 60999}
	const destinations = 5_000
	var sockets []Socket
	add := func(source string, i, ports int) {
		remote := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 443)
		for p := range ports {
			sockets = append(sockets, Socket{
				State: tcpstate.Established,
				Local: netip.AddrPortFrom(netip.MustParseAddr(source), uint16(32768+p)), Remote: remote,
			})
		}
	}
	for i := range destinations {
		add("192.0.2.1", i, 1+i%3)
	}
	for i := range 300 { // from 20 to 319 ports
		add("192.0.2.2", i, 20+i)
	}
	for i := range 1000 {
		add(fmt.Sprintf("198.51.%d.%d", i/250, i%250), 7, 1)
	}
	slices.SortFunc(sockets, func(a, b Socket) int { return int(a.Local.Port()) - int(b.Local.Port()) })

	r := tableOf(s, nil, sockets...).Report(Limits{MinPorts: 10, Most: 256})
	if len(r.reported()) != 256 || len(r.Sources) != 256 || len(r.unreported()) != 20 {
		t.Errorf("got %d destinations, %d more that are listed, %d sources, want 256, 20 and 256", len(r.reported()), len(r.unreported()), len(r.Sources))
	}
	sum := r.AllUnreported()
	for i, d := range r.Destinations {
		if !d.Unreported {
			sum += d.Held
		}
		if want := 319 - i; d.Held != want {
			t.Errorf("destination %d holds %d ports, want %d", i, d.Held, want)
		}
	}
	if sum != len(sockets) || r.Sockets != len(sockets) {
		t.Errorf("%d ports reported and unreported, %d sockets, want %d", sum, r.Sockets, len(sockets))
	}
	if want := destinations + 300 + 1000 - 256; r.UnreportedDestinations != want {
		t.Errorf("%d destinations unreported, want %d", r.UnreportedDestinations, want)
	}
	if want := 319. / 28232; r.MaxUtilization != want {
		t.Errorf("greatest utilization %v, want %v", r.MaxUtilization, want)
	}
	if r.Sources[0].Ports != 319 || r.Sources[1].Ports != 3 {
		t.Errorf("sources with most ports: got %+v", r.Sources[:2])
	}

	// MaxUtilization includes destinations that are not reported.
	none := tableOf(s, nil, sockets...).Report(Limits{MinPorts: 1, Most: 0})
	if len(none.reported()) != 0 || none.AllUnreported() != len(sockets) || none.MaxUtilization != r.MaxUtilization {
		t.Errorf("limit 0: got %d destinations, %d ports unreported, utilization %v", len(none.Destinations), none.AllUnreported(), none.MaxUtilization)
	}
}

// TestReportListed checks which destinations are listed without being reported: those from 10 ports on, and whatever the limits are
// the 20 in most danger.
func TestReportListed(t *testing.T) {
	s := tenPorts
	s.PortRange = PortRange{Low: 32768, High: 60999} // 0.5% are 142 ports
	report := func(limits Limits, held ...int) (got string, r Report) {
		var sockets []Socket
		for i, n := range held {
			for p := range n {
				sockets = append(sockets, Socket{
					State: tcpstate.Established,
					Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(32768+p)), Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80),
				})
			}
		}
		r = tableOf(s, nil, sockets...).Report(limits)
		for _, d := range r.Destinations {
			if d.Unreported {
				got += "-"
			}
			got += fmt.Sprint(d.Held, " ")
		}
		return strings.TrimSpace(got), r
	}
	for _, tt := range []struct {
		name   string
		limits Limits
		held   []int
		want   string
	}{
		{"few ports", Limits{Most: 256}, []int{3, 1, 2}, "-3 -2 -1"},
		{"0.5%", Limits{Most: 256}, []int{141, 142, 9}, "142 -141 -9"},
		{"a number", Limits{MinPorts: 3, Most: 256}, []int{141, 3, 2}, "141 3 -2"},
		{"a high number", Limits{MinPorts: 2000, Most: 256}, []int{141, 3, 2}, "-141 -3 -2"},
		{"no series", Limits{}, []int{300, 3}, "-300 -3"},
		{"one with series", Limits{Most: 1}, []int{300, 400, 3}, "400 -300 -3"},
	} {
		if got, _ := report(tt.limits, tt.held...); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}

	// The alert about connections without an answer needs 100 of them.
	for limits, want := range map[Limits]bool{{Most: 256}: false, {MinPorts: 200, Most: 256}: true} {
		var sockets []Socket
		for p := range ManySynSent {
			sockets = append(sockets, Socket{
				State: tcpstate.SynSent, Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(32768+p)), Remote: netip.MustParseAddrPort("10.1.0.1:80"),
			})
		}
		if r := tableOf(s, nil, sockets...).Report(limits); r.Destinations[0].Unreported != want {
			t.Errorf("%+v: unanswered connections have no series: %v", limits, !want)
		}
	}

	// Of many that are small, the same 20 are listed whatever the order of a map is.
	held := slices.Repeat([]int{1}, 2000)
	held[1500] = 9
	got, r := report(Limits{Most: 256}, held...)
	if want := "-9" + strings.Repeat(" -1", 19); got != want || r.UnreportedDestinations != 2000 || r.AllUnreported() != 2008 {
		t.Errorf("got %s, %d unreported with %d ports, want %s, all", got, r.UnreportedDestinations, r.AllUnreported(), want)
	}
	for range 5 {
		if _, again := report(Limits{Most: 256}, held...); !slices.EqualFunc(r.Destinations, again.Destinations, func(a, b Destination) bool { return a.Address == b.Address }) {
			t.Fatalf("now %v, then %v", r.Destinations, again.Destinations)
		}
	}
}

// TestReportTies checks that addresses break ties, so that the same series stay.
func TestReportTies(t *testing.T) {
	var sockets []Socket
	for _, remote := range []string{"10.0.0.10:80", "10.0.0.9:443", "10.0.0.9:80"} {
		sockets = append(sockets, socket(tcpstate.Established, "10.0.0.1:40000", remote))
	}
	for range 20 {
		r := tableOf(tenPorts, nil, sockets...).Report(Limits{MinPorts: 1, Most: 2})
		got := fmt.Sprint(r.Destinations[0].Address, r.Destinations[1].Address)
		if want := "10.0.0.9:80 10.0.0.9:443"; got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
}

// TestReportDanger puts a pool that is nearly full before others that hold more ports: ports that
// connect() may take over do not count.
func TestReportDanger(t *testing.T) {
	s := tenPorts
	s.TWReuse, s.Timestamps, s.TWReuseDelay = 1, 1, time.Second
	var sockets []Socket
	for port := range 9 {
		old := socket(tcpstate.TimeWait, fmt.Sprintf("10.0.0.1:%d", 40000+port), "10.0.0.2:80")
		old.Expires = time.Second
		sockets = append(sockets, old)
	}
	for port := range 5 {
		sockets = append(sockets, socket(tcpstate.Established, fmt.Sprintf("10.0.0.1:%d", 40000+port), "10.0.0.3:80"))
	}
	r := tableOf(s, nil, sockets...).Report(Limits{MinPorts: 1, Most: 1})
	if len(r.reported()) != 1 || r.Destinations[0].Address.String() != "10.0.0.3:80" || r.UnreportedPorts[slices.Index(States[:], tcpstate.TimeWait)] != 9 {
		t.Errorf("got %+v, unreported %v, want the destination at 50%%", r.Destinations, r.UnreportedPorts)
	}
}

// TestReportSources counts those that are left out, and knows their maximum.
func TestReportSources(t *testing.T) {
	var sockets []Socket
	for i := range 3 {
		for port := range 3 - i {
			sockets = append(sockets, socket(tcpstate.Established, fmt.Sprintf("10.0.0.%d:%d", i+1, 40000+port), "10.0.0.9:80"))
		}
	}
	r := tableOf(tenPorts, nil, sockets...).Report(Limits{Most: 1})
	if len(r.Sources) != 1 || r.Sources[0].Ports != 3 || r.UnreportedSources != 2 || r.MaxSourceUtilization != 0.3 {
		t.Errorf("got %+v, unreported %d, greatest %v", r.Sources, r.UnreportedSources, r.MaxSourceUtilization)
	}
	if none := tableOf(tenPorts, nil, sockets...).Report(Limits{}); none.UnreportedSources != 3 || none.MaxSourceUtilization != 0.3 {
		t.Errorf("without any: unreported %d, greatest %v", none.UnreportedSources, none.MaxSourceUtilization)
	}
}

// TestHalfClosed tells connections in FIN_WAIT2 that a process holds from those of which only a mini-socket is left.
func TestHalfClosed(t *testing.T) {
	orphan := socket(tcpstate.FinWait2, "10.0.0.1:40000", "10.0.0.2:80")
	orphan.Mini = true
	d := tableOf(tenPorts, nil, orphan, socket(tcpstate.FinWait2, "10.0.0.1:40001", "10.0.0.2:80"), socket(tcpstate.FinWait2, "10.0.0.1:40002", "10.0.0.2:80")).Report(everything).Destinations[0]
	if d.HalfClosed != 2 || d.Held != 3 {
		t.Errorf("%d of %d are half-closed", d.HalfClosed, d.Held)
	}
}

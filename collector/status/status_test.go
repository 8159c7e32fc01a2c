package status

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

var updateGolden = flag.Bool("update-golden", false, "write the golden files in testdata anew")

// draw returns a snapshot as a view shows it.
func draw(t testing.TB, s scan.Snapshot, v View) string {
	t.Helper()
	var b strings.Builder
	if err := New(testInfo).Write(&b, &s, v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// drawPast is draw with what would be remembered of the last 15 minutes.
func drawPast(t testing.TB, s scan.Snapshot, v View) string {
	t.Helper()
	info := testInfo
	info.History, info.Modes = remembered(s), Modes{Namespaces: scan.ScopeAll, SNAT: true, Trace: true}
	var b strings.Builder
	if err := New(info).Write(&b, &s, v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// said returns the sentences of the findings.
func said(p *page) (sentences []string) {
	for _, f := range p.Findings {
		sentences = append(sentences, f.Sentence)
	}
	return sentences
}

// TestGolden compares all formats of a host where nearly everything goes wrong with files in testdata. These were
// written by
//
//	go test ./collector/status -run TestGolden -update-golden
func TestGolden(t *testing.T) {
	for _, format := range []Format{HTML, Text, JSON} {
		got := drawPast(t, trouble(), View{Format: format})
		// The stylesheet and the script are files themselves.
		got = strings.Replace(strings.Replace(got, style, "", 1), script, "", 1)
		file := filepath.Join("testdata", "trouble."+string(format))
		if *updateGolden {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}

// TestLacksBound has destinations that hold few ports and have no series, where bound ports are missing to all: the page says that of the
// ports, and does not count the destinations as in danger. It is never calm.
func TestLacksBound(t *testing.T) {
	host := func(change func(*pool.Report, *pool.Destination)) scan.Snapshot {
		r := defaults()
		d := connections("10.0.0.1", "10.0.0.2:443", map[tcpstate.State]int{tcpstate.Established: 3})
		d.Unreported = true
		change(&r, &d)
		r.Destinations, r.UnreportedDestinations = []pool.Destination{d}, 1
		return hostOf(r)
	}
	for name, s := range map[string]scan.Snapshot{
		"bound": host(func(r *pool.Report, d *pool.Destination) {
			r.BoundPorts, r.MaxUtilization, r.MaxPossibleUtilization = 28000, 0.99, 0.99
			d.BoundByOthers, d.Utilization, d.PossibleUtilization = 28000, 0.99, 0.99
		}),
		"may be bound": host(func(r *pool.Report, d *pool.Destination) {
			r.BoundUnknown, r.MaxPossibleUtilization = 28000, 0.99
			d.MayBeBound, d.PossibleUtilization = 28000, 0.99
		}),
	} {
		p := newPage(&s, testInfo, View{}, visible)
		if p.Level() <= calm || strings.Contains(fmt.Sprint(said(p)), "in danger") || p.Destinations[0].Level <= calm {
			t.Errorf("%s: %v: %s, row %v", name, p.Level(), said(p), p.Destinations[0].Level)
		}
	}
	unanswered := host(func(_ *pool.Report, d *pool.Destination) {
		d.Ports = ports(map[tcpstate.State]int{tcpstate.SynSent: 120})
		d.Held = 120
	})
	if p := newPage(&unanswered, testInfo, View{}, visible); p.Level() <= calm || !strings.Contains(fmt.Sprint(said(p)), "1 destination in danger: 10.0.0.2:443") {
		t.Errorf("no answers: %v: %s", p.Level(), said(p))
	}
	failing := host(func(*pool.Report, *pool.Destination) {})
	failing.Trace = &scan.Trace{Pools: []scan.FailedPool{{Netns: scan.Self, Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.2:443"), Failures: 2}}}
	if p := newPage(&failing, testInfo, View{}, visible); p.Level() <= calm || !strings.Contains(fmt.Sprint(said(p)), "1 destination in danger: 10.0.0.2:443 had 2 connects that failed") {
		t.Errorf("failing connects: %v: %s", p.Level(), said(p))
	}
}

// TestTables checks which tables a page has, and how many rows, and whether it has settings.
func TestTables(t *testing.T) {
	small := hostOf(defaults())
	r := &small.Namespaces[0].TCP.Report
	r.UnreportedDestinations, r.UnreportedPorts = 12, ports(map[tcpstate.State]int{tcpstate.Established: 48})
	listed := hostOf(defaults())
	l := &listed.Namespaces[0].TCP.Report
	for _, to := range []string{"10.0.0.2:443", "10.0.0.3:443"} {
		d := connections("10.0.0.1", to, map[tcpstate.State]int{tcpstate.Established: 3})
		d.Unreported = true
		l.Destinations = append(l.Destinations, d)
	}
	l.UnreportedDestinations, l.UnreportedPorts = 3, ports(map[tcpstate.State]int{tcpstate.Established: 7})
	for _, tt := range []struct {
		name     string
		snapshot scan.Snapshot
		want     string
		settings bool
	}{
		{"calm", quiet(), "destinations 2 ", true},
		{"failed", failedHost(), "", false},
		{"nothing", hostOf(defaults()), "", true},
		{"small destinations", small, "destinations 0 12 destinations have no series and hold 48 ports in all. They are not listed. See --destination.min-ports and --destination.limit.", true},
		{"without series", listed, "destinations 2 3 destinations have no series and hold 7 ports in all. 1 of them is not listed. See --destination.min-ports and --destination.limit.", true},
		{"trouble", trouble(), "destinations 6 12 destinations have no series and hold 48 ports in all. They are not listed. See --destination.min-ports and --destination.limit." +
			"snat 5 1 pool has no series and holds 9 ports. See --destination.min-ports and --destination.limit." +
			"conntrack 1 failed 1 The pools of 17 connects that failed are not listed: see --destination.limit. See EphemeralPortsConnectFailingUnattributed." +
			"bind-failures 2 The addresses of 5 binds that failed are not listed: see --destination.limit.sources 1 1 more address is not listed: see --destination.limit.udp 5 time_wait 2 " +
			"namespaces 3 ", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPage(&tt.snapshot, testInfo, View{}, visible)
			got := ""
			for _, table := range p.Tables {
				got += fmt.Sprintf("%s %d ", table.ID, len(table.Rows))
				for _, more := range table.More {
					got += more.String()
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(p.Settings) > 0 != tt.settings {
				t.Errorf("settings %v", p.Settings)
			}
			for _, f := range []Format{HTML, Text} {
				if text := draw(t, tt.snapshot, View{Format: f}); strings.Contains(text, "not listed") != strings.Contains(tt.want, "not listed") {
					t.Errorf("%s:\n%s", f, text)
				}
			}
		})
	}
}

// TestText checks that no line passes the columns of the view, but commands that cannot be broken, and that all
// is plain ASCII.
func TestText(t *testing.T) {
	for name, s := range snapshots() {
		for _, columns := range []int{textWidth, 80, 60} {
			for line := range strings.Lines(draw(t, s, View{Format: Text, Columns: columns})) {
				line = strings.TrimSuffix(line, "\n")
				isCommand := strings.Contains(line, "nsenter") || columns < textWidth && (strings.Contains(line, "net.ipv4.") || strings.Contains(line, "grep ") || strings.Contains(line, "--reply-") || strings.Contains(line, " | "))
				if len(line) > columns && !isCommand {
					t.Errorf("%s: %d columns, want %d: %s", name, len(line), columns, line)
				}
				if strings.Trim(escape(line, ascii.safe), " ") != strings.Trim(line, " ") {
					t.Errorf("%s: not plain text: %q", name, line)
				}
			}
		}
	}
}

// TestNarrowestText draws texts of 40 columns, which have settings too: their names take a whole line.
func TestNarrowestText(t *testing.T) {
	got := draw(t, quiet(), View{Format: Text, Columns: 1})
	if want := "\nip_local_port_range       32768 60999\n    28232 ports\n"; !strings.Contains(got, want) {
		t.Errorf("no %q in\n%s", want, got)
	}
}

// TestNarrowText checks tables in 80 columns: a row is a line, unless an address is long.
func TestNarrowText(t *testing.T) {
	inPod := trouble()
	inPod.Trace = nil
	for _, tt := range []struct {
		name     string
		snapshot scan.Snapshot
		want     string
	}{
		{"own namespace only", quiet(), `
DESTINATION    SOURCE    USED  BY STATE  CLOSES/S  CEILING/S  FULL IN
10.0.0.2:443   10.0.0.1   11%  otb.......    48.2        450        -
10.0.0.3:5432  10.0.0.1   <1%  ob........     0.0        450        -
`},
		{"others, and a long address", inPod, `
DESTINATION    SOURCE    NETNS     USED  BY STATE  CLOSES/S  CEILING/S  FULL IN
10.0.0.9:8080  10.0.0.1  self      100%  oswwwwwwww     0.0        0.0      now
10.0.0.2:443   10.0.0.1  self       81%  octtttttb.     560        450     40 s
10.0.0.2:443   10.1.0.7  cni-1f2e   81%  ttttttttb.     380        450        -
[2001:db8:1234:5678:9abc:def0:1234:9999]:65535
               2001:db8:1234:5678:9abc:def0:1234:5678
                         self       53%  sssssb....     0.0        450        -
`},
		{"settings", quiet(), `
listeners                 2             further ports withheld, whatever the
                                        address
`},
	} {
		if got := draw(t, tt.snapshot, View{Format: Text, Columns: 80}); !strings.Contains(got, tt.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
}

// TestMany checks that pages at the limits have all that there is.
func TestMany(t *testing.T) {
	for name, s := range map[string]scan.Snapshot{"destinations": manyDestinations(), "namespaces": manyNamespaces()} {
		for _, format := range []Format{HTML, Text, JSON} {
			got := draw(t, s, View{Format: format})
			for _, n := range s.Namespaces {
				if left := format == Text && n.TCP.Outcome == scan.Idle; s.OthersRead && !left && !strings.Contains(got, n.Name) {
					t.Errorf("%s: %s: no namespace %s", name, format, n.Name)
				}
				for _, d := range n.TCP.Report.Destinations {
					address := d.Address.String()
					if format == JSON {
						address = `"destination_ip": "` + d.Address.Addr().String() + `"`
					}
					if !strings.Contains(got, address) {
						t.Errorf("%s: %s: no destination %s", name, format, address)
					}
				}
			}
		}
	}
}

// TestHostile checks that no name leaves its place, in no format.
func TestHostile(t *testing.T) {
	for _, format := range []Format{HTML, Text, JSON} {
		got := draw(t, hostile(), View{Format: format})
		for _, bad := range []string{"\x1b", "\x9b", "\x07", "\u202e", "\u2066", "\u200b", "\u2028", "\u0301", "\xff", "line\nbreak"} {
			if strings.Contains(got, bad) {
				t.Errorf("%s contains %q", format, bad)
			}
		}
		if format != Text && strings.Contains(got, "<script>alert") {
			t.Errorf("%s contains a script", format)
		}
	}
	var d struct {
		Namespaces []struct{ Netns, Command string }
	}
	if err := json.Unmarshal([]byte(draw(t, hostile(), View{Format: JSON})), &d); err != nil {
		t.Fatal(err)
	}
	// What other programs compare is whole.
	if got := d.Namespaces[1].Netns; got != hostileHTML {
		t.Errorf("JSON has the name %q", got)
	}
	if got := d.Namespaces[3].Command; got != hostileANSI[:strings.Index(hostileANSI, "\x9b")]+"\ufffd31m" {
		t.Errorf("JSON has the command %q", got)
	}
}

// TestHeadline checks the sentence that says how things stand, and that what is not known is never
// calm.
func TestHeadline(t *testing.T) {
	failure := func(s scan.Snapshot, pools ...scan.FailedPool) scan.Snapshot {
		s.Trace = &scan.Trace{Pools: pools}
		return s
	}
	with := func(change func(*pool.Report)) scan.Snapshot {
		s := quiet()
		change(&s.Namespaces[0].TCP.Report)
		return s
	}
	first := func(change func(*pool.Destination)) scan.Snapshot {
		return with(func(r *pool.Report) { change(&r.Destinations[0]) })
	}
	other := func(n scan.Namespace) scan.Snapshot {
		s := quiet()
		s.OthersRead = true
		s.Namespaces = append(s.Namespaces, n)
		return s
	}
	broken := quiet()
	broken.Trace = &scan.Trace{Err: errors.New("bpf: gone")}
	searched := quiet()
	searched.DiscoveryFailures, searched.DiscoveryErr = 2, errors.New("netns: open /run/netns: permission denied")
	uncounted, uncountedElsewhere := quiet(), other(scan.Namespace{Name: "pod", TCP: scan.TCP{Result: read, Report: pool.Report{CapacityPorts: 100}}})
	uncounted.Namespaces[0].TimeWait = scan.TimeWait{Result: scan.Result{Outcome: scan.Failed, Err: errors.New("sockstat: gone")}}
	uncountedElsewhere.Namespaces[1].TimeWait = uncounted.Namespaces[0].TimeWait
	rising := connections("10.0.0.1", "10.0.0.3:5432", map[tcpstate.State]int{tcpstate.Established: 9800})
	halfRead := failedHost()
	halfRead.OthersRead = true
	halfRead.Namespaces = append(halfRead.Namespaces, scan.Namespace{Name: "pod", TCP: scan.TCP{Result: read, Report: trouble().Namespaces[1].TCP.Report}})
	fullElsewhere := failedHost()
	fullElsewhere.OthersRead = true
	fullElsewhere.Namespaces = append(fullElsewhere.Namespaces, scan.Namespace{Name: "pod", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}, NAT: natOf(natFlows{snat.Established, false, "198.51.100.7:443", 1024, 64512})})
	wrongRange := func(utilization float64) scan.Snapshot {
		s := first(func(d *pool.Destination) { d.Utilization = utilization })
		s.Namespaces[0].NAT = natWith(snat.Settings{PortRanges: []pool.PortRange{{Low: 1024, High: 1123}}}, natFlows{snat.Established, false, "198.51.100.7:443", 30000, 40})
		return s
	}
	boundElsewhere := other(scan.Namespace{Name: "pod", TCP: scan.TCP{Result: read, Report: allBound().Namespaces[0].TCP.Report}})
	boundElsewhere.Namespaces[1].TCP.Report.Destinations = nil
	tests := []struct {
		name, destination string
		snapshot          scan.Snapshot
		level             level
		want              []string // headline and problems
	}{
		{"calm", "", quiet(), calm, []string{"No destination is in danger: the worst, 10.0.0.2:443, has 11% of its ports in use."}},
		{"no destination", "", hostOf(defaults()), calm, []string{"No destination is in danger: none that was read holds a port."}},
		{"failed", "", failedHost(), unknown, []string{"The ports of this host could not be read: nothing is known about them. sockdiag: dump tcp"}},
		{"failed, one", "10.0.0.2:443", failedHost(), unknown, []string{"The ports of this host could not be read"}},
		{"failed, danger elsewhere", "", halfRead, unknown, []string{"The ports of this host could not be read", "1 destination in danger: 10.0.0.2:443 has 81% of its ports in use."}},
		{"failed, source NAT full elsewhere", "", fullElsewhere, unknown, []string{"The ports of this host could not be read", "1 pool of source NAT in danger: tcp to 198.51.100.7:443"}},
		{"not known of source NAT, exhausted", "", wrongRange(1), exhausted, []string{"1 destination in danger: 10.0.0.2:443 is out of ports.", "1 pool of source NAT may be full"}},
		{"not known of source NAT, critical", "", wrongRange(0.9), critical, []string{"1 destination in danger: 10.0.0.2:443 has 90%", "1 pool of source NAT may be full"}},
		{"not known of source NAT, half", "", wrongRange(0.5), unknown, []string{"1 pool of source NAT may be full", "1 destination in danger: 10.0.0.2:443 has 50%"}},
		{"exhausted", "", first(func(d *pool.Destination) { d.Utilization, d.Exhaustion, d.SureExhaustion = 1, 0, 0 }), exhausted, []string{"1 destination in danger: 10.0.0.2:443 is out of ports."}},
		{"nearly, and soon", "", first(func(d *pool.Destination) { d.Utilization, d.Exhaustion, d.SureExhaustion = 0.99, 1, 1 }), exhausted, []string{"1 destination in danger: 10.0.0.2:443 has 99% of its ports in use: connect() can fail at any moment."}},
		{"nearly", "", first(func(d *pool.Destination) { d.Utilization = 0.99 }), exhausted, []string{"1 destination in danger: 10.0.0.2:443 has 99% of its ports in use: connect() can fail at any moment."}},
		{"forecast", "", first(func(d *pool.Destination) { d.Exhaustion, d.SureExhaustion = 40.9, 40.9 }), critical, []string{"1 destination in danger: 10.0.0.2:443 runs out of ports in 40 s."}},
		{"forecast that is not sure", "", first(func(d *pool.Destination) { d.Exhaustion = 14.9 }), warning, []string{"1 destination in danger: 10.0.0.2:443 has 11% of its ports in use, and may run out in 14 s: this is a burst of closes, or the start of a rise."}},
		{"two forecasts", "", first(func(d *pool.Destination) { d.Exhaustion, d.SureExhaustion = 14.9, 31 }), critical, []string{"1 destination in danger: 10.0.0.2:443 runs out of ports in 31 s."}},
		{"forecast of minutes", "", first(func(d *pool.Destination) { d.Exhaustion, d.SureExhaustion = 300, 300 }), critical, []string{"1 destination in danger: 10.0.0.2:443 runs out of ports in 5 min."}},
		{"load", "", first(func(d *pool.Destination) { d.CloseRate = 400 }), warning, []string{"1 destination in danger: 10.0.0.2:443 closes at 88% of its ceiling."}},
		{"failures", "", failure(quiet(), scan.FailedPool{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.3:5432"), Failures: 2, Cgroup: cgroup.Group{Path: "/a"}}),
			warning, []string{"1 destination in danger: 10.0.0.3:5432 had 2 connects that failed, the last within 15 minutes; connects of /a failed."}},
		{"failures elsewhere", "", failure(quiet(), scan.FailedPool{Source: netip.MustParseAddr("10.0.0.9"), Destination: netip.MustParseAddrPort("10.0.0.3:5432"), Failures: 2}),
			warning, []string{"1 pool that holds few ports now had failed connects within 15 minutes."}},
		{"failures not counted", "", broken, warning, []string{"Failed connects and closes could not be counted: bpf: gone", "No destination is in danger"}},
		{"TIME_WAIT not counted", "", uncounted, warning, []string{"The counters of TIME_WAIT could not be read: sockstat: gone", "No destination is in danger"}},
		{"TIME_WAIT not counted elsewhere", "", uncountedElsewhere, warning, []string{"The counters of TIME_WAIT could not be read in 1 network namespace.", "No destination is in danger"}},
		{"no port", "", with(func(r *pool.Report) { r.CapacityPorts, r.MaxUtilization, r.Destinations = 0, 1, nil }), exhausted, []string{"No port is left for outgoing connections: connect() fails"}},
		{"unreported", "", with(func(r *pool.Report) { r.MaxUtilization = 0.9 }), critical, []string{"A destination without series has 90% of its ports in use"}},
		{"bound, all destinations listed", "", with(func(r *pool.Report) { r.BoundPorts, r.MaxUtilization = 25000, 25000./28220 }), critical, []string{"88% of the ports of this namespace are lost to every plain connect(), whatever its destination: 25000 of 28220 ports are bound."}},
		{"bound, where nothing is listed", "", other(scan.Namespace{Name: "pod", TCP: scan.TCP{Result: read, Report: pool.Report{CapacityPorts: 100, BoundPorts: 80, BoundKnown: true, BoundExact: true, MaxUtilization: 0.85}}}), critical,
			[]string{"80% of the ports of pod are lost to every plain connect(), whatever its destination: 80 of 100 ports are bound."}},
		{"all bound, and a destination at once", "", allBound(), exhausted, []string{"Every plain connect() of this namespace fails: 28220 of 28220 ports are bound.", "1 destination in danger: 10.0.0.2:443 is out of ports."}},
		{"nearly all bound", "", with(func(r *pool.Report) { r.BoundPorts, r.MaxUtilization = 28000, 28000./28220 }), exhausted, []string{"Every plain connect() of this namespace fails, or can fail at any moment: 28000 of 28220 ports are bound."}},
		{"all bound, one without sockets", "10.0.0.9:80", allBound(), exhausted, []string{"Every plain connect() of this namespace fails: 28220 of 28220 ports are bound.", "10.0.0.9:80 is not among the destinations here"}},
		{"all bound, one that failed", "10.0.0.9:80", failure(allBound(), scan.FailedPool{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.9:80"), Failures: 7}),
			exhausted, []string{"Every plain connect() of this namespace fails: 28220 of 28220 ports are bound.", "10.0.0.9:80 holds few ports now or none, but had 7 connects that failed"}},
		{"all bound, one elsewhere", "10.0.0.2:443", boundElsewhere, calm, []string{"10.0.0.2:443 is not in danger: 11% of its ports are in use."}},
		{"unreported, and some ports are bound", "", with(func(r *pool.Report) { r.BoundPorts, r.MaxUtilization = 22000, 0.9 }), critical, []string{"A destination without series has 90% of its ports in use", "77% of the ports of this namespace are lost"}},
		{"unreported, and it is not known which ports are bound", "", with(func(r *pool.Report) { r.BoundPorts, r.BoundKnown, r.MaxUtilization = 28000, false, 0.9 }), critical, []string{"A destination without series has 90% of its ports in use"}},
		{"possibly exhausted", "", first(func(d *pool.Destination) { d.PossibleUtilization, d.MayBeBound = 1, 25000 }), unknown,
			[]string{"1 destination in danger: 10.0.0.2:443 has 11% or 100% of its ports in use: which clients bind before they connect is not known yet; --exact tells now."}},
		{"possibly half used, one", "10.0.0.2:443", first(func(d *pool.Destination) { d.PossibleUtilization, d.MayBeBound, d.MayBeHeld = 0.5, 10, 11000 }), warning,
			[]string{"10.0.0.2:443 has 11% or 50% of its ports in use: whether closed connections used TCP timestamps is not known, as some may have begun while tcp_timestamps was off; a minute after the last of these is closed, it is known; --exact tells now."}},
		{"possibly half used, one, of servers that differ", "10.0.0.2:443", first(func(d *pool.Destination) {
			d.PossibleUtilization, d.MayBeHeld, d.Timestamps, d.TimestampsShare = 0.5, 11000, pool.Unknown, 0.25
		}), warning,
			[]string{"10.0.0.2:443 has 11% or 50% of its ports in use: some connections use TCP timestamps and some do not, as to unlike servers behind one address, and which of the closed ones did is not known; --exact tells."}},
		{"possibly worse, but not by a level", "", first(func(d *pool.Destination) { d.Utilization, d.PossibleUtilization = 0.8, 1 }), critical, []string{"1 destination in danger: 10.0.0.2:443 has 80% of its ports in use."}},
		{"out of ports, and others possibly", "", with(func(r *pool.Report) {
			r.Destinations[0].Utilization, r.MaxUtilization, r.MaxPossibleUtilization, r.BoundUnknown = 1, 1, 1, 28000
		}), exhausted,
			[]string{"1 destination in danger: 10.0.0.2:443 is out of ports.", "Every other destination may lack 28120 of 28220 ports too: which clients bind before they connect is not known yet; --exact tells now."}},
		{"possibly exhausted, unreported", "", with(func(r *pool.Report) { r.MaxPossibleUtilization, r.BoundUnknown = 0.9, 20000 }), unknown,
			[]string{"The worst destination has 11% or 90% of its ports in use: which clients bind before they connect is not known yet; --exact tells now."}},
		{"source", "", with(func(r *pool.Report) { r.Sources = trouble().Namespaces[0].TCP.Report.Sources }), critical, []string{"Clients that bind to 10.0.0.77 before they connect use 88% of its ports"}},
		{"listeners in the range", "", with(func(r *pool.Report) {
			r.ListenerPorts, r.Settings.ReservedPorts = []uint16{22, 40003, 50051}, []pool.PortRange{{Low: 32768, High: 32777}}
		}), calm, []string{"No destination is in danger", "In the range, these ports have listeners and are not reserved: 40003, 50051. While such a service is down, a connection can take its port, and it cannot start. Reserve them, see the runbook."}},
		{"source that may share ports", "", with(func(r *pool.Report) {
			r.Sources, r.Settings.AutobindReuse = trouble().Namespaces[0].TCP.Report.Sources, true
		}), warning, []string{"Clients that bind to 10.0.0.77 before they connect use 88% of its ports: at 100% the bind() of those without SO_REUSEADDR fails."}},
		{"namespace failed", "", other(scan.Namespace{Name: "pod", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: errors.New("no")}}}), unknown, []string{"1 network namespace could not be read", "No destination is in danger"}},
		{"namespace not read yet", "", other(scan.Namespace{TCP: scan.TCP{Result: scan.Result{Outcome: scan.Skipped}}}), unknown, []string{"The turn of 1 network namespace comes in a later collection, see --namespaces.limit: nothing is known", "No destination is in danger"}},
		{"place not searched", "", searched, unknown, []string{"2 places could not be searched for network namespaces: some may be missing. netns: open /run/netns: permission denied", "No destination is in danger"}},
		{"place not searched, one", "10.0.0.2:443", searched, unknown, []string{"2 places could not be searched", "10.0.0.2:443 is not in danger"}},
		{"TIME_WAIT not counted, one", "10.0.0.2:443", uncounted, calm, []string{"10.0.0.2:443 is not in danger"}},
		{"no port, one", "10.0.0.9:80", with(func(r *pool.Report) { r.CapacityPorts, r.BoundPorts, r.MaxUtilization, r.Destinations = 0, 0, 1, nil }), exhausted, []string{"No port is left for outgoing connections: connect() fails", "10.0.0.9:80 is not among"}},
		{"unreported, maybe this one", "10.0.0.9:80", with(func(r *pool.Report) { r.MaxUtilization = 0.9 }), unknown, []string{"A destination that limits leave out has 90% of its ports in use, and may be this one: lower", "10.0.0.9:80 is not among"}},
		{"unreported elsewhere", "10.0.0.2:443", other(scan.Namespace{Name: "pod", TCP: scan.TCP{Result: read, Report: pool.Report{CapacityPorts: 100, MaxUtilization: 0.9}}}), calm, []string{"10.0.0.2:443 is not in danger"}},
		{"one", "10.0.0.3:5432", quiet(), calm, []string{"10.0.0.3:5432 is not in danger: <1% of its ports are in use."}},
		{"one, open connections may rise", "10.0.0.3:5432", with(func(r *pool.Report) { r.Destinations[1] = rising }), calm, []string{"35% of the ports to 10.0.0.3:5432 are in use, many by open connections. One collection"}},
		{"one of two sources where they may rise", "10.0.0.3:5432", with(func(r *pool.Report) {
			closing := connections("10.0.0.2", "10.0.0.3:5432", map[tcpstate.State]int{tcpstate.TimeWait: 13000})
			r.Destinations = append(r.Destinations[:1:1], rising, closing)
		}), calm, []string{"35% of the ports from 10.0.0.1 to 10.0.0.3:5432 are in use, many by open connections. One collection"}},
		{"two sources", "10.0.0.3:5432", with(func(r *pool.Report) {
			r.Destinations = append(r.Destinations, connections("10.0.0.2", "10.0.0.3:5432", map[tcpstate.State]int{tcpstate.TimeWait: 9000}))
		}), calm, []string{"No pool of 10.0.0.3:5432 is in danger: the worst, from 10.0.0.2 to 10.0.0.3:5432, has 32% of its ports in use."}},
		{"one of two", "10.0.0.2:443", trouble(), critical, []string{"10.0.0.2:443 runs out of ports in 40 s; /system.slice/report-job.service closed 97% of its connections.", "1 network namespace could not be read", "The turn of 1 network namespace"}},
		{"absent, while most ports may be bound", "[2001:db8::1]:1", with(func(r *pool.Report) { r.BoundUnknown = 27000 }), unknown,
			[]string{"[2001:db8::1]:1 holds few ports now or none, but all destinations lack the ports that clients bind: 120 of 28220, and up to 27000 more; --exact tells how many."}},
		{"absent", "[2001:db8::1]:1", quiet(), calm, []string{"[2001:db8::1]:1 is not among the destinations here"}},
		{"only failures", "10.0.0.55:9", trouble(), unknown, []string{"1 network namespace could not be read", "The turn of 1 network namespace", "10.0.0.55:9 holds few ports now or none, but had 3 connects that failed"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := View{Format: Text}
			if tt.destination != "" {
				v.Destination = netip.MustParseAddrPort(tt.destination)
			}
			p := newPage(&tt.snapshot, testInfo, v, visible)
			got := said(p)
			if p.Level() != tt.level || len(got) != len(tt.want) {
				t.Fatalf("%v: %q, want %v: %q", p.Level(), got, tt.level, tt.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tt.want[i]) {
					t.Errorf("said %q, want %q", got[i], tt.want[i])
				}
			}
			for _, f := range []Format{HTML, Text, JSON} {
				v.Format = f
				if text := draw(t, tt.snapshot, v); !strings.Contains(html.UnescapeString(strings.ReplaceAll(text, "\n", " ")), strings.SplitN(tt.want[0], ":", 2)[0]) && f != JSON {
					t.Errorf("%s does not say %q:\n%s", f, tt.want[0], text)
				}
			}
		})
	}
}

// TestNarrow checks that one destination is shown alone, with all its sources and namespaces.
func TestNarrow(t *testing.T) {
	v := View{Destination: netip.MustParseAddrPort("10.0.0.2:443")}
	s := trouble()
	p := newPage(&s, testInfo, v, visible)
	if len(p.Destinations) != 2 || p.Destinations[0].Netns != "self" || p.Destinations[1].Netns != "cni-1f2e" || len(p.Sources)+len(p.Failed) != 0 {
		t.Errorf("%d destinations, %d sources, %d failed", len(p.Destinations), len(p.Sources), len(p.Failed))
	}
	// Of the namespaces, those that have it, and those that may have it.
	p = newPage(&s, testInfo, View{Destination: netip.MustParseAddrPort("10.0.0.3:5432")}, visible)
	if len(p.Namespaces) != 2 || p.Namespaces[0].Name != "self" || p.Namespaces[1].Name != "netns-78" {
		t.Errorf("namespaces %+v", p.Namespaces)
	}
	for _, f := range []Format{HTML, Text, JSON} {
		v.Format = f
		if got := draw(t, s, v); strings.Contains(got, "10.0.0.9") || strings.Contains(got, "10.0.0.55") || strings.Contains(got, "10.0.0.77") || !strings.Contains(got, "10.1.0.7") {
			t.Errorf("%s:\n%s", f, got)
		}
	}
}

// TestNarrowAddress checks that an address alone shows all ports of it, and no other address.
func TestNarrowAddress(t *testing.T) {
	s := quiet()
	r := &s.Namespaces[0].TCP.Report
	r.Destinations = append(r.Destinations, connections("10.0.0.1", "10.0.0.2:80", map[tcpstate.State]int{tcpstate.Established: 60}))
	s.Namespaces[0].NAT = natOf(natFlows{snat.Established, false, "10.0.0.2:53", 1024, 100}, natFlows{snat.Established, false, "10.0.0.20:53", 1024, 100})
	s.Trace = &scan.Trace{Pools: []scan.FailedPool{
		{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.2:9")},
		{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.20:9")},
	}}
	v := View{Destination: netip.MustParseAddrPort("10.0.0.2:0")}
	p := newPage(&s, testInfo, v, visible)
	if len(p.Destinations) != 2 || len(p.NAT) != 1 || len(p.Failed) != 1 || !v.shows(&s.Namespaces[0]) {
		t.Errorf("%d destinations, %d pools of source NAT, %d failed", len(p.Destinations), len(p.NAT), len(p.Failed))
	}
	if want := "No pool of 10.0.0.2 is in danger: the worst, from 10.0.0.1 to 10.0.0.2:443, has 11% of its ports in use."; p.Headline().Sentence != want {
		t.Errorf("%q, want %q", p.Headline().Sentence, want)
	}
	v.Destination = netip.MustParseAddrPort("10.0.0.5:0")
	if p := newPage(&s, testInfo, v, visible); p.Headline().Sentence != "10.0.0.5 is not among the destinations here: it holds few ports now, or none." {
		t.Errorf("%q", p.Headline().Sentence)
	}
}

// TestOneScan checks that what one scan cannot know is said only where it matters.
func TestOneScan(t *testing.T) {
	s := quiet()
	r := &s.Namespaces[0].TCP.Report
	r.BoundKnown = false
	const note = "up to 900 ports may be bound besides those counted"
	if got := draw(t, s, View{Format: Text}); strings.Contains(got, "may be bound") || strings.Contains(got, "bound ports") {
		t.Errorf("without such clients:\n%s", got)
	}
	r.BoundUnknown = 900
	r.Sources = []pool.Source{{Address: netip.MustParseAddr("10.0.0.1"), Ports: 100, MayBound: 90, Capacity: 28222, Utilization: 0.01}}
	if got := draw(t, s, View{Format: Text}); !strings.Contains(got, note) || !strings.Contains(got, "unknown") {
		t.Errorf("with such clients:\n%s", got)
	}
}

// TestOwners checks that the page shows who holds the ports of a destination, where that is known.
func TestOwners(t *testing.T) {
	s := quiet()
	s.Namespaces[0].TCP.Report.Destinations[0].Owners = []pool.Owner{{Cgroup: 7, Ports: 150}}
	for _, f := range []Format{HTML, Text, JSON} {
		if got := draw(t, s, View{Format: f, Destination: netip.MustParseAddrPort("10.0.0.2:443")}); strings.Contains(got, `"owners"`) || strings.Contains(got, "Held by") || strings.Contains(got, `class="owner"`) {
			t.Errorf("%s: an owner without a path:\n%s", f, got)
		}
	}
	s.Cgroups = map[uint64]cgroup.Group{7: {Path: "/system.slice/haproxy.service", Workload: cgroup.Workload{ContainerID: "2"}}}
	for _, f := range []Format{HTML, Text} {
		if got := draw(t, s, View{Format: f, Destination: netip.MustParseAddrPort("10.0.0.2:443")}); !strings.Contains(got, "/system.slice/haproxy.service (150)") {
			t.Errorf("%s: no owner:\n%s", f, got)
		}
	}
	var d struct{ Destinations []documentDestination }
	if err := json.Unmarshal([]byte(draw(t, s, View{Format: JSON})), &d); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]documentOwner{{"/system.slice/haproxy.service", "", "", "2", 150}}, d.Destinations[0].Owners); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}

	pod := cgroup.Workload{PodUID: "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", ContainerID: strings.Repeat("9b1c7a0d", 8)}
	for name, want := range map[string]string{"": "pod 3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b container 9b1c7a0d9b1c (150)", "shop/cart-0": "pod shop/cart-0 container 9b1c7a0d9b1c (150)"} {
		pod.Pod = name
		s.Cgroups[7] = cgroup.Group{Path: "/kubepods.slice/a/b/c", Workload: pod}
		for _, f := range []Format{HTML, Text} {
			if got := draw(t, s, View{Format: f, Destination: netip.MustParseAddrPort("10.0.0.2:443"), Columns: 80}); !strings.Contains(strings.Join(strings.Fields(got), " "), want) {
				t.Errorf("%s: no %s:\n%s", f, want, got)
			}
		}
	}
}

// TestFailuresByPool checks that failures count in the row of their namespace, of all control groups.
func TestFailuresByPool(t *testing.T) {
	s := trouble()
	source, address := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("10.0.0.2:443")
	s.Trace.Pools = []scan.FailedPool{
		{Netns: scan.Self, Cgroup: cgroup.Group{Path: "/a"}, Source: source, Destination: address, Failures: 1},
		{Netns: scan.Self, Cgroup: cgroup.Group{Path: "/b"}, Source: source, Destination: address, Failures: 2},
		{Source: source, Destination: address, Failures: 4},
		{Netns: "elsewhere", Cgroup: cgroup.Group{Path: "/c"}, Source: source, Destination: address, Failures: 8},
	}
	p := newPage(&s, testInfo, View{Destination: address}, visible)
	if p.Destinations[0].traced.failures != 7 || p.Destinations[1].traced.failures != 0 || len(p.Failed) != 1 || p.Failed[0].Netns+p.Failed[0].Owner != "elsewhere/c" {
		t.Errorf("%d and %d failures, others %+v", p.Destinations[0].traced.failures, p.Destinations[1].traced.failures, p.Failed)
	}
}

// cpuTime returns the CPU time of this process.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkWrite draws the pages at the limits, with the last 15 minutes of all pools.
func BenchmarkWrite(b *testing.B) {
	s := manyNamespaces()
	info := testInfo
	info.History = remembered(s)
	status := New(info)
	for _, f := range []Format{HTML, Text, JSON} {
		b.Run(string(f), func(b *testing.B) {
			before := cpuTime(b)
			for b.Loop() {
				if err := status.Write(io.Discard, &s, View{Format: f}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpuTime(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// TestOlderKernel checks what all formats say of a kernel without tcp_tw_reuse_delay, of which it is not known
// whether connect() takes over ports in FIN_WAIT2.
func TestOlderKernel(t *testing.T) {
	s := quiet()
	r := &s.Namespaces[0].TCP.Report
	r.Settings.TWReuseDelay, r.Settings.TWReuse = 0, 2
	r.Destinations[0].ReusableUnknown = 30
	const note = "30 ports in FIN_WAIT2 may be free, but count as used"
	for format, want := range map[Format][]string{
		Text: {note, "ports are reused from the next second on"},
		HTML: {note, "ports are reused from the next second on"},
		JSON: {`"reusable_unknown_ports": 30`},
	} {
		got := draw(t, s, View{Format: format})
		for _, want := range want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", format, want, got)
			}
		}
		if strings.Contains(got, "tcp_tw_reuse_delay_seconds") {
			t.Errorf("%s: a delay that the kernel does not have", format)
		}
	}
}

// TestFreePorts checks that the page does not call ports free that may be bound or held.
func TestFreePorts(t *testing.T) {
	var n scan.Namespace
	n.TCP.Report.CapacityPorts = 200
	for want, d := range map[string]pool.Destination{
		"Of 200 ports, connections to this destination hold 50. 150 are free.":                                                                                               {Held: 50},
		"Of 200 ports, connections to this destination hold 50. 0 to 150 are free.":                                                                                          {Held: 50, MayBeBound: 150},
		"Of 200 ports, connections to this destination hold 50, of which connect() may take over 20. Other clients have bound 10 more. 130 to 160 are free, those included.": {Held: 50, Reusable: 20, BoundByOthers: 10, MayBeBound: 10, MayBeHeld: 20},
	} {
		if got := (&destination{pool: &d, namespace: &n}).sentences()[0]; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestServersDiffer checks that page and JSON say how many connections use timestamps, if some do not.
func TestServersDiffer(t *testing.T) {
	s := quiet()
	d := &s.Namespaces[0].TCP.Report.Destinations[0]
	d.Timestamps, d.TimestampsShare = pool.Unknown, 0.25
	for format, want := range map[Format]string{HTML: "Of the connections that were asked lately, 25% use TCP timestamps", JSON: `"timestamps_share_ratio": 0.25`} {
		if got := draw(t, s, View{Format: format, Destination: d.Address}); !strings.Contains(got, want) || strings.Contains(got, `"timestamps":`) {
			t.Errorf("%s: no %q in\n%s", format, want, got)
		}
	}
}

// TestUncertain checks that the page says what it infers, and between which values utilization is.
func TestUncertain(t *testing.T) {
	inferred, failing := quiet(), allBound()
	r := &inferred.Namespaces[0].TCP.Report
	r.BoundPorts, r.BoundExact = r.CapacityPorts, false
	r.Destinations[0].PossibleUtilization, r.Destinations[0].MayBeBound = 1, 25000
	failing.Trace = &scan.Trace{Pools: []scan.FailedPool{{
		Netns: scan.Self, Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.9:80"), Failures: 7,
	}}}
	for want, s := range map[string]scan.Snapshot{
		"of 28220 ports are bound, to judge by how they were taken; --exact is sure.": inferred,
		"11-100%": inferred,
		"Others have bound the ports: what helps then stands above": failing,
	} {
		if text := draw(t, s, View{Format: Text}); !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
			t.Errorf("the page does not say %q:\n%s", want, text)
		}
	}
}

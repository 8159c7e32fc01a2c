package status

import (
	"encoding/json"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

// natFlows are flows to a destination from one translated address, on ports from one on, for many clients.
type natFlows struct {
	state       snat.State
	udp         bool
	destination string
	first       uint16
	ports       int
}

// natOf returns what a scan learned of flows, on Linux 6.5 or later, with the default range.
func natOf(flows ...natFlows) scan.NAT {
	return natWith(snat.Settings{
		PortRanges: []pool.PortRange{{Low: 1024, High: 65535}}, TakesOver: true, TCPTimeWait: 2 * time.Minute, UDP: 30 * time.Second,
	}, flows...)
}

func natWith(s snat.Settings, flows ...natFlows) scan.NAT {
	table := snat.NewTable(s)
	for _, f := range flows {
		to := netip.MustParseAddrPort(f.destination)
		row := snat.Flow{Protocol: snat.TCP, State: f.state, Destination: to, SNAT: true}
		if f.udp {
			row.Protocol = snat.UDP
		}
		translated, client := "10.2.0.1", [16]byte{10: 0xff, 11: 0xff, 12: 10, 13: 1}
		if to.Addr().Is6() {
			translated, client = "2001:db8::1", [16]byte{0xfd}
		}
		for i := range f.ports {
			client[15] = byte(i % 7)
			row.Client = netip.AddrFrom16(client).Unmap()
			row.Translated = netip.AddrPortFrom(netip.MustParseAddr(translated), f.first+uint16(i))
			table.Add(&row)
		}
	}
	return scan.NAT{Result: read, Report: table.Report(pool.Limits{MinPorts: 10, Most: 256}), Duration: time.Millisecond}
}

// troubledNAT is source NAT where nearly everything goes wrong.
func troubledNAT() (scan.NAT, scan.Conntrack) {
	nat := natOf(
		natFlows{snat.Established, false, "198.51.100.7:443", 32768, 28000},
		natFlows{snat.TimeWait, false, "198.51.100.7:443", 60768, 2000},
		natFlows{snat.FinWait, false, "198.51.100.7:443", 1024, 17000},
		natFlows{snat.Replied, true, "10.96.0.10:53", 1024, 64512},
		natFlows{snat.SynSent, false, "[2001:db8:1234:5678:9abc:def0:1234:9999]:65535", 1024, 35000},
		natFlows{snat.Established, false, "10.0.0.2:443", 40000, 900},
		natFlows{snat.Established, false, "10.0.0.3:443", 40000, 9},
	)
	return nat, scan.Conntrack{Result: read, Entries: 240000, Limit: 262144, Counted: true, InsertFailed: 120345, Dropped: 120350, EarlyDropped: 7}
}

// TestNATHeadline checks what the page says of source NAT, and that what is not known is never calm.
func TestNATHeadline(t *testing.T) {
	const calmSentence = "No destination is in danger: the worst, 10.0.0.2:443, has 11% of its ports in use."
	to := func(ports int) scan.NAT {
		return natOf(natFlows{snat.Established, false, "198.51.100.7:443", 1024, ports})
	}
	named := snat.Settings{PortRanges: []pool.PortRange{{Low: 1024, High: 1123}}}
	drops := snat.Settings{PortRanges: []pool.PortRange{{Low: 1024, High: 65535}}, Drops: true}
	var none scan.NAT
	var untracked scan.Conntrack
	failed := errors.New("conntrack: list flows: i/o timeout")
	tests := []struct {
		name      string
		nat       scan.NAT
		conntrack scan.Conntrack
		elsewhere bool
		level     level
		want      []string // headline and problems
		rows      []string
	}{
		{"none", none, untracked, false, calm, []string{calmSentence}, nil},
		{"tracked, but not translated", none, scan.Conntrack{Result: read, Entries: 4, Limit: 100, Counted: true}, false, calm, []string{calmSentence}, nil},
		{"calm", to(20000), untracked, false, calm, []string{calmSentence}, []string{"tcp 198.51.100.7:443 10.2.0.1 self 31% <1% -"}},
		{
			"half", natWith(snat.Settings{PortRanges: []pool.PortRange{{Low: 1024, High: 1123}}}, natFlows{snat.Established, false, "198.51.100.7:443", 1024, 50}), untracked, false, warning,
			[]string{"1 pool of source NAT in danger: tcp to 198.51.100.7:443 from 10.2.0.1 has 50% of its ports in use."},
			[]string{"tcp 198.51.100.7:443 10.2.0.1 self 50% 0% ?"},
		},
		{
			"searches fail", to(28000), untracked, false, critical,
			[]string{"1 pool of source NAT in danger: tcp to 198.51.100.7:443 from 10.2.0.1 has 43% of its ports in use, and 1% of the searches for one fail: packets are dropped."},
			[]string{"tcp 198.51.100.7:443 10.2.0.1 self 43% 1% -"},
		},
		{
			"full", to(64512), untracked, false, exhausted,
			[]string{"1 pool of source NAT in danger: tcp to 198.51.100.7:443 from 10.2.0.1 has 100% of its ports in use, and 100% of the searches for one fail: packets are dropped."},
			[]string{"tcp 198.51.100.7:443 10.2.0.1 self 100% 100% 0.0"},
		},
		{
			"another range, and a pool in danger",
			natWith(named, natFlows{snat.Established, false, "198.51.100.7:443", 30000, 40}, natFlows{snat.Established, false, "198.51.100.7:443", 1024, 10}, natFlows{snat.Established, false, "198.51.100.8:443", 1024, 50}), untracked, false, unknown,
			[]string{
				"1 pool of source NAT may be full, as --snat.port-range does not say what the rules do: tcp to 198.51.100.7:443 from 10.2.0.1 has 40 of 50 flows on ports outside it.",
				"1 pool of source NAT in danger: tcp to 198.51.100.8:443 from 10.2.0.1 has 50% of its ports in use.",
			},
			[]string{"tcp 198.51.100.7:443 10.2.0.1 self ? ? ?", "tcp 198.51.100.8:443 10.2.0.1 self 50% 0% ?"},
		},
		{
			"another range, and a full pool",
			natWith(named, natFlows{snat.Established, false, "198.51.100.7:443", 30000, 40}, natFlows{snat.Established, false, "198.51.100.8:443", 1024, 100}), untracked, false, exhausted,
			[]string{
				"1 pool of source NAT in danger: tcp to 198.51.100.8:443 from 10.2.0.1 has 100% of its ports in use",
				"1 pool of source NAT may be full, as --snat.port-range does not say what the rules do: tcp to 198.51.100.7:443 from 10.2.0.1 has 40 of 40 flows on ports outside it.",
			},
			[]string{"tcp 198.51.100.8:443 10.2.0.1 self 100% 100% 0.0", "tcp 198.51.100.7:443 10.2.0.1 self ? ? ?"},
		},
		{
			"full blocks",
			natWith(drops, natFlows{snat.Established, false, "198.51.100.7:443", 4096, 16}, natFlows{snat.Established, false, "198.51.100.7:443", 8192, 16}, natFlows{snat.Established, false, "198.51.100.7:443", 12288, 16}), untracked, false, unknown,
			[]string{"1 pool of source NAT may be full, as --snat.port-range does not say what the rules do: tcp to 198.51.100.7:443 from 10.2.0.1 looks full within 3 blocks of ports, all of which are taken."},
			[]string{"tcp 198.51.100.7:443 10.2.0.1 self ? ? ?"},
		},
		{
			"elsewhere", to(64000), untracked, true, exhausted,
			[]string{"1 pool of source NAT in danger: tcp to 198.51.100.7:443 from 10.2.0.1 has 99% of its ports in use, and "},
			[]string{"tcp 198.51.100.7:443 10.2.0.1 pod 99% 95% -"},
		},
		{
			"left out", scan.NAT{Result: read, Report: snat.Report{UnreportedPools: 1, UnreportedMaxUtilization: 1}}, untracked, true, exhausted,
			[]string{"A pool of source NAT in pod without series has 100% of its ports in use: raise --destination.limit to have alerts name it."}, nil,
		},
		{
			"table full", none, scan.Conntrack{Result: read, Entries: 90, Limit: 100}, false, critical,
			[]string{"Connection tracking has 90% of the flows that it may have: at 100%, packets of new connections are dropped."}, nil,
		},
		{
			"table full elsewhere", none, scan.Conntrack{Result: read, Entries: 90, Limit: 100}, true, critical,
			[]string{"Connection tracking in pod has 90% of the flows that it may have: at 100%, packets of new connections are dropped."}, nil,
		},
		{"no limit", none, scan.Conntrack{Result: read, Entries: 90}, false, calm, []string{calmSentence}, nil},
		{"failed", scan.NAT{Result: scan.Result{Outcome: scan.Failed, Err: failed}}, untracked, false, unknown, []string{"The flows of connection tracking could not be read: " + failed.Error(), calmSentence}, nil},
		{"failed without --snat", none, scan.Conntrack{Result: scan.Result{Outcome: scan.Failed, Err: failed}}, false, unknown, []string{"The counters of connection tracking could not be read: " + failed.Error(), calmSentence}, nil},
		{"failed elsewhere", scan.NAT{Result: scan.Result{Outcome: scan.Failed, Err: failed}}, untracked, true, unknown, []string{"The flows of connection tracking could not be read in 1 network namespace.", calmSentence}, nil},
		{"failed elsewhere without --snat", none, scan.Conntrack{Result: scan.Result{Outcome: scan.Failed, Err: failed}}, true, unknown, []string{"The counters of connection tracking could not be read in 1 network namespace.", calmSentence}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := quiet()
			n := &s.Namespaces[0]
			if tt.elsewhere {
				s.OthersRead = true
				s.Namespaces = append(s.Namespaces, scan.Namespace{Name: "pod", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}})
				n = &s.Namespaces[1]
			}
			n.NAT, n.Conntrack = tt.nat, tt.conntrack
			p := newPage(&s, testInfo, View{Format: Text}, visible)
			got := said(p)
			if p.Level() != tt.level || len(got) != len(tt.want) {
				t.Fatalf("%v: %q, want %v: %q", p.Level(), got, tt.level, tt.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tt.want[i]) {
					t.Errorf("said %q, want %q", got[i], tt.want[i])
				}
			}
			alert := slices.ContainsFunc(p.Findings, func(f finding) bool { return slices.Contains(f.Alerts, "EphemeralPortsSNATCollectFailing") })
			if alert != (tt.nat.Err != nil) {
				t.Errorf("links to the alert about --snat: %v", alert)
			}
			var rows []string
			for _, r := range p.NAT {
				rows = append(rows, strings.Join([]string{r.Protocol, r.Address, r.Source, r.Netns, r.Used, natPercent(r.pool.SearchFailure), natRate(r.pool.Ceiling)}, " "))
			}
			if diff := cmp.Diff(tt.rows, rows); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNATAbsent checks that nothing is shown of source NAT where there is none.
func TestNATAbsent(t *testing.T) {
	s := quiet()
	s.Namespaces[0].Conntrack = scan.Conntrack{Result: read, Entries: 40, Limit: 100, Counted: true}
	for _, f := range []Format{HTML, Text, JSON} {
		got := draw(t, s, View{Format: f})
		for _, bad := range []string{"Source NAT", "Connection tracking", `id="snat"`, `"snat"`} {
			if strings.Contains(got, bad) {
				t.Errorf("%s has %q", f, bad)
			}
		}
	}
}

// TestNATNote checks that the page says what dropped packets can mean where no pool shows it.
func TestNATNote(t *testing.T) {
	var none scan.NAT
	var untracked scan.Conntrack
	dropped := scan.Conntrack{Result: read, Entries: 40, Counted: true, InsertFailed: 7}
	for _, tt := range []struct {
		name      string
		nat       scan.NAT
		conntrack scan.Conntrack
		want      string // empty if there is no note
	}{
		{"no connection tracking", none, untracked, ""},
		{"no drops", none, scan.Conntrack{Result: read, Entries: 40, Counted: true}, ""},
		{"drops, but no flows now", none, scan.Conntrack{Result: read, Counted: true, InsertFailed: 7}, ""},
		{"drops", none, dropped, "connection tracking dropped 7 packets so far, which happens when no port is free. --snat shows"},
		{"drops without a pool that is short of ports", natOf(), dropped, "source NAT dropped 7 packets so far: no pool is short of ports now."},
		{"drops and full blocks", natWith(
			snat.Settings{PortRanges: []pool.PortRange{{Low: 1024, High: 65535}}, Drops: true},
			natFlows{snat.Established, false, "198.51.100.7:443", 4096, 8}, natFlows{snat.Established, false, "198.51.100.7:443", 8192, 8}, natFlows{snat.Established, false, "198.51.100.7:443", 12288, 8},
		), dropped, ""},
		{"drops and such a pool", natOf(natFlows{snat.Established, false, "198.51.100.7:443", 1024, 40000}), dropped, ""},
		{"drops with --snat that failed", scan.NAT{Result: scan.Result{Outcome: scan.Failed, Err: errors.New("i/o timeout")}}, dropped, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := quiet()
			s.Namespaces[0].NAT, s.Namespaces[0].Conntrack = tt.nat, tt.conntrack
			p := newPage(&s, testInfo, View{Format: Text}, visible)
			notes := strings.Join(p.Notes, "\n")
			if !strings.Contains(notes, tt.want) || tt.want == "" && strings.Contains(notes, "packets") {
				t.Errorf("notes %q, want %q", p.Notes, tt.want)
			}
		})
	}
}

// TestNATDetails checks clients, cures and commands in all formats.
func TestNATDetails(t *testing.T) {
	s := quiet()
	s.Namespaces[0].NAT, s.Namespaces[0].Conntrack = troubledNAT()
	for _, f := range []Format{HTML, Text, JSON} {
		got := draw(t, s, View{Format: f})
		client := "10.1.0.0 (9216)"
		if f == JSON {
			client = `"client_ip": "10.1.0.0",`
		}
		for _, want := range []string{client, "Choose the ports fully at random", "Do not translate inside the network", "sysctl -w net.netfilter.nf_conntrack_udp_timeout=10", "120345"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q", f, want)
			}
		}
		if want := "conntrack -L -p udp --reply-dst 10.2.0.1 --reply-src 10.96.0.10 --reply-port-src 53"; f != JSON && !strings.Contains(got, want) {
			t.Errorf("%s: no %q:\n%s", f, want, got)
		}
	}
	html := draw(t, s, View{Format: HTML})
	for _, want := range []string{`href="/runbook#ephemeralportssnatexhausted"`, `href="/runbook#choose-the-ports-fully-at-random"`, `href="/?destination=198.51.100.7%3A443"`} {
		if !strings.Contains(html, want) {
			t.Errorf("no %s", want)
		}
	}
}

// TestNATView checks the view of one destination, to which the alerts link.
func TestNATView(t *testing.T) {
	s := quiet()
	s.Namespaces[0].NAT, s.Namespaces[0].Conntrack = troubledNAT()
	for address, want := range map[string]struct {
		level level
		text  string
		rows  int
	}{
		"198.51.100.7:443": {exhausted, "Source NAT: tcp to 198.51.100.7:443 from 10.2.0.1 has ", 1},
		"10.96.0.10:53":    {exhausted, "Source NAT: udp to 10.96.0.10:53 from 10.2.0.1 has 100% of its ports in use", 1},
		"10.0.0.2:443":     {calm, "10.0.0.2:443 is not in danger: 11% of its ports are in use.", 1}, // a destination too
		"10.0.0.9:443":     {calm, "10.0.0.9:443 is not among the destinations here", 0},
	} {
		v := View{Format: Text, Destination: netip.MustParseAddrPort(address)}
		p := newPage(&s, testInfo, v, visible)
		if p.Level() != want.level || !strings.HasPrefix(p.Headline().Sentence, want.text) || len(p.NAT) != want.rows || len(p.Conntrack) != 0 {
			t.Errorf("%s: %v, %q, %d pools, want %+v", address, p.Level(), p.Headline().Sentence, len(p.NAT), want)
		}
		if got := strings.Contains(draw(t, s, v), "Held for 10.1.0."); got != (want.rows > 0) {
			t.Errorf("%s: details %v", address, got)
		}
		if v.shows(&s.Namespaces[0]) != (want.rows > 0) {
			t.Errorf("%s: namespaces", address)
		}
	}
	s.Namespaces[0].NAT = natOf(natFlows{snat.Established, false, "10.0.0.2:443", 1024, 64512})
	p := newPage(&s, testInfo, View{Format: Text, Destination: netip.MustParseAddrPort("10.0.0.2:443")}, visible)
	if p.Level() != exhausted || len(p.Findings) != 2 || !strings.HasPrefix(p.Headline().Sentence, "Source NAT: tcp to 10.0.0.2:443") {
		t.Errorf("both: %v, %q", p.Level(), p.Problems())
	}
}

// TestNATJSON checks values whose absence has a meaning.
func TestNATJSON(t *testing.T) {
	var none scan.NAT
	var untracked scan.Conntrack
	old := snat.Settings{PortRanges: []pool.PortRange{{Low: 1024, High: 1123}}}
	hidden := natWith(old, natFlows{snat.TimeWait, false, "10.0.0.2:443", 1024, 90})
	old.TCPTimeWait = time.Minute
	for _, tt := range []struct {
		name             string
		nat              scan.NAT
		conntrack        scan.Conntrack
		pools            int
		ceiling, entries any
		failed, most     any
		err              any
	}{
		{"nothing", none, untracked, 0, nil, nil, nil, nil, nil},
		{"no limit on closed flows", natOf(natFlows{snat.Established, false, "10.0.0.2:443", 1024, 64000}), untracked, 1, nil, nil, nil, 64000. / 64512, nil},
		{"hidden timeouts", hidden, untracked, 1, nil, nil, nil, 0.9, nil},
		{"Linux before 6.5", natWith(old, natFlows{snat.Established, false, "10.0.0.2:443", 1024, 40}), scan.Conntrack{Result: read, Entries: 40}, 1, 1., 40., nil, 0.4, nil},
		{"counters", none, scan.Conntrack{Result: read, Counted: true}, 0, nil, 0., 0., nil, nil},
		{"failed", scan.NAT{Result: scan.Result{Outcome: scan.Failed, Err: errors.New("failed")}}, untracked, 0, nil, nil, nil, nil, "failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := quiet()
			s.Namespaces[0].NAT, s.Namespaces[0].Conntrack = tt.nat, tt.conntrack
			var d struct{ SNAT, Namespaces []map[string]any }
			if err := json.Unmarshal([]byte(draw(t, s, View{Format: JSON})), &d); err != nil {
				t.Fatal(err)
			}
			if len(d.SNAT) != tt.pools {
				t.Fatalf("%d pools, want %d", len(d.SNAT), tt.pools)
			}
			var ceiling any
			if tt.pools > 0 {
				ceiling = d.SNAT[0]["ceiling_connections_per_second"]
			}
			n := d.Namespaces[0]
			got := []any{ceiling, n["conntrack_entries"], n["conntrack_insert_failed_total"], n["snat_max_utilization_ratio"], n["snat_error"]}
			if diff := cmp.Diff([]any{tt.ceiling, tt.entries, tt.failed, tt.most, tt.err}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if finite(math.NaN()) != nil || finite(math.Inf(1)) != nil || *finite(0) != 0 {
		t.Error("finite")
	}
}

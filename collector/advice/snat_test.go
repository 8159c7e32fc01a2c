package advice

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
)

var snatSettings = snat.Settings{
	PortRanges: []pool.PortRange{{Low: 40000, High: 40099}}, TakesOver: true,
	TCPTimeWait: 120 * time.Second, UDP: 30 * time.Second,
}

// flows adds n flows like f, on ports from that of f on.
func flows(table *snat.Table, n int, f snat.Flow) {
	for i := range n {
		g := f
		g.Translated = netip.AddrPortFrom(f.Translated.Addr(), f.Translated.Port()+uint16(i))
		table.Add(&g)
	}
}

func tcpFlow(state snat.State, port uint16) snat.Flow {
	return snat.Flow{
		Protocol: snat.TCP, State: state, Client: netip.MustParseAddr("10.1.0.2"), SNAT: true,
		Translated:  netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port),
		Destination: netip.MustParseAddrPort("198.51.100.1:443"),
	}
}

// snatAdvice returns the advice for the first pool of a table, as lines.
func snatAdvice(t *testing.T, s snat.Settings, add func(table *snat.Table)) []string {
	t.Helper()
	table := snat.NewTable(s)
	add(table)
	r := table.Report(pool.Limits{MinPorts: 1, Most: 10})
	a := SNAT(&r, &r.Pools[0])
	if a == nil {
		return nil
	}
	lines := []string{a.Diagnosis}
	for _, c := range a.Cures {
		line := fmt.Sprintf("%s: %d, %.3g to %d, %.3g", c.Title, c.Now.Ports, c.Now.Ceiling, c.Then.Ports, c.Then.Ceiling)
		if c.Now.SearchFailure > 0 {
			line += fmt.Sprintf(", failure %.2f to %.2f", c.Now.SearchFailure, c.Then.SearchFailure)
		}
		if c.Command != "" {
			line += ", " + c.Command
		}
		lines = append(lines, line)
	}
	return lines
}

// manyClients adds flows like f, each of another client.
func manyClients(table *snat.Table, n int, f snat.Flow) {
	for i := range n {
		f.Client = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		flows(table, 1, f)
		f.Translated = netip.AddrPortFrom(f.Translated.Addr(), f.Translated.Port()+1)
	}
}

func TestSNAT(t *testing.T) {
	with := func(change func(s *snat.Settings)) snat.Settings {
		s := snatSettings
		change(&s)
		return s
	}
	old := with(func(s *snat.Settings) { s.TakesOver = false })
	hidden := with(func(s *snat.Settings) { s.TakesOver, s.TCPTimeWait, s.UDP = false, 0, 0 })
	thousand := with(func(s *snat.Settings) { s.PortRanges = []pool.PortRange{{Low: 40000, High: 40999}} })
	all := with(func(s *snat.Settings) { s.PortRanges = []pool.PortRange{{Low: 1024, High: 65535}} })
	udp := func(state snat.State) snat.Flow {
		f := tcpFlow(state, 40000)
		f.Protocol = snat.UDP
		return f
	}
	private := func(address string) snat.Flow {
		f := tcpFlow(snat.Established, 40000)
		f.Destination = netip.MustParseAddrPort(address)
		return f
	}
	const (
		established = "Open connections hold most ports, or connections whose ends are gone: connection tracking keeps these for days. They hold "
		alone       = " are held for 10.1.0.2 alone."
		exchanges   = "Single exchanges over UDP hold most ports, until they expire. They hold "
	)
	tests := []struct {
		name     string
		settings snat.Settings
		add      func(table *snat.Table)
		want     []string
	}{
		{"no danger", snatSettings, func(table *snat.Table) { manyClients(table, 49, tcpFlow(snat.Established, 40000)) }, nil},
		{"one client", snatSettings, func(table *snat.Table) { flows(table, 80, tcpFlow(snat.Established, 40000)) }, []string{
			established + "80 of the 80 ports in use; the pool has 100. 80" + alone,
			"Let NAT use all ports: 100, +Inf to 64512, +Inf",
			"More destination addresses or ports: 100, +Inf to 200, +Inf",
		}},
		{"two clients with half of the ports each", snatSettings, func(table *snat.Table) {
			flows(table, 40, tcpFlow(snat.Established, 40000))
			second := tcpFlow(snat.Established, 40040)
			second.Client = netip.MustParseAddr("10.1.0.3")
			flows(table, 40, second)
		}, []string{
			established + "80 of the 80 ports in use; the pool has 100.",
			"Let NAT use all ports: 100, +Inf to 64512, +Inf",
			"More translated addresses: 100, +Inf to 200, +Inf",
			"More destination addresses or ports: 100, +Inf to 200, +Inf",
		}},
		{"many clients", snatSettings, func(table *snat.Table) { manyClients(table, 100, tcpFlow(snat.Established, 40000)) }, []string{
			established + "100 of the 100 ports in use; the pool has 100.",
			"Let NAT use all ports: 100, 0 to 64512, +Inf",
			"More translated addresses: 100, 0 to 300, +Inf",
			"More destination addresses or ports: 100, 0 to 300, +Inf",
		}},
		{"no answer", snatSettings, func(table *snat.Table) { flows(table, 50, tcpFlow(snat.SynSent, 40000)) }, []string{
			"Flows without an answer hold most ports: the destination does not answer. They hold 50 of the 50 ports in use; the pool has 100. 50" + alone,
			"Let NAT use all ports: 100, +Inf to 64512, +Inf",
			"More destination addresses or ports: 100, +Inf to 200, +Inf",
		}},
		{"closed ones that are taken over are none of the ports in use", snatSettings, func(table *snat.Table) {
			flows(table, 30, tcpFlow(snat.Established, 40000))
			flows(table, 25, tcpFlow(snat.SynSent, 40030))
			flows(table, 45, tcpFlow(snat.TimeWait, 40055))
		}, []string{
			established + "30 of the 55 ports in use; the pool has 100. 100" + alone,
			"Let NAT use all ports: 100, +Inf to 64512, +Inf",
			"More destination addresses or ports: 100, +Inf to 200, +Inf",
		}},
		{"closed ones of own sockets are not taken over", snatSettings, func(table *snat.Table) {
			flows(table, 20, tcpFlow(snat.TimeWait, 40000)) // taken over
			own := tcpFlow(snat.TimeWait, 40020)
			own.SNAT = false
			flows(table, 60, own)
		}, []string{
			"Closed connections hold most ports. They hold 60 of the 60 ports in use; the pool has 100. 60 are held for 192.0.2.1 alone.",
			"Let NAT use all ports: 100, +Inf to 64512, +Inf",
			"More destination addresses or ports: 100, +Inf to 200, +Inf",
		}},
		{"TIME_WAIT before 6.5", old, func(table *snat.Table) { manyClients(table, 90, tcpFlow(snat.TimeWait, 40000)) }, []string{
			"Closed connections hold most ports. They hold 90 of the 90 ports in use; the pool has 100.",
			"Let NAT use all ports: 100, 0.833 to 64512, 538",
			"More translated addresses: 100, 0.833 to 200, 1.67",
			"Shorter timeouts of connection tracking: 100, 0.833 to 100, 1.67, sysctl -w net.netfilter.nf_conntrack_tcp_timeout_time_wait=60",
			"A kernel that takes over closed flows: 100, 0.833 to 100, +Inf",
			"Keep connections alive: 100, 0.833 to 100, 8.33",
			"More destination addresses or ports: 100, 0.833 to 200, 1.67",
		}},
		{"hidden timeouts", hidden, func(table *snat.Table) { manyClients(table, 90, tcpFlow(snat.TimeWait, 40000)) }, []string{
			"Closed connections hold most ports. They hold 90 of the 90 ports in use; the pool has 100.",
			"Let NAT use all ports: 100, NaN to 64512, NaN",
			"More translated addresses: 100, NaN to 200, NaN",
			"More destination addresses or ports: 100, NaN to 200, NaN",
		}},
		{"few closed", old, func(table *snat.Table) {
			flows(table, 81, tcpFlow(snat.Established, 40000))
			flows(table, 19, tcpFlow(snat.TimeWait, 40081))
		}, []string{
			established + "81 of the 100 ports in use; the pool has 100. 100" + alone,
			"Let NAT use all ports: 100, 0.158 to 64512, 537",
			"More destination addresses or ports: 100, 0.158 to 300, 1.82",
		}},
		{"UDP", snatSettings, func(table *snat.Table) { manyClients(table, 90, udp(snat.Replied)) }, []string{
			exchanges + "90 of the 90 ports in use; the pool has 100.",
			"Let NAT use all ports: 100, 3.33 to 64512, 2.15e+03",
			"More translated addresses: 100, 3.33 to 200, 6.67",
			"Shorter timeouts of connection tracking: 100, 3.33 to 100, 10, sysctl -w net.netfilter.nf_conntrack_udp_timeout=10",
			"More destination addresses or ports: 100, 3.33 to 200, 6.67",
		}},
		{"UDP with a short timeout", with(func(s *snat.Settings) { s.UDP = shortUDP }), func(table *snat.Table) { flows(table, 90, udp(snat.Replied)) }, []string{
			exchanges + "90 of the 90 ports in use; the pool has 100. 90" + alone,
			"Let NAT use all ports: 100, 10 to 64512, 6.45e+03",
			"More destination addresses or ports: 100, 10 to 200, 20",
		}},
		{"all of 128 ports are tried", snatSettings, func(table *snat.Table) { flows(table, 99, tcpFlow(snat.Established, 40000)) }, []string{
			established + "99 of the 99 ports in use; the pool has 100. 99" + alone,
			"Let NAT use all ports: 100, +Inf to 64512, +Inf",
			"More destination addresses or ports: 100, +Inf to 200, +Inf",
		}},
		{"a block", thousand, func(table *snat.Table) { flows(table, 800, tcpFlow(snat.Established, 40000)) }, []string{
			established + "800 of the 800 ports in use; the pool has 1000. 23% of the kernel's searches for a port fail although 200 are free, because it does not try all. 800" + alone,
			"Choose the ports fully at random: 1000, +Inf to 1000, +Inf, failure 0.24 to 0.00",
			"Let NAT use all ports: 1000, +Inf to 64512, +Inf",
			"More destination addresses or ports: 1000, +Inf to 2000, +Inf",
		}},
		{"nearly all taken, however they lie", thousand, func(table *snat.Table) { flows(table, 995, tcpFlow(snat.Established, 40000)) }, []string{
			established + "995 of the 995 ports in use; the pool has 1000. 75% of the kernel's searches for a port fail although 5 are free, because it does not try all. 995" + alone,
			"Let NAT use all ports: 1000, +Inf to 64512, +Inf",
			"More destination addresses or ports: 1000, +Inf to 2000, +Inf",
		}},
		{"all ports already", all, func(table *snat.Table) { flows(table, 20000, tcpFlow(snat.Established, 30000)) }, nil},
		{"all ports already, in danger", all, func(table *snat.Table) { flows(table, 50000, tcpFlow(snat.Established, 10000)) }, []string{
			established + "50000 of the 50000 ports in use; the pool has 64512. 27% of the kernel's searches for a port fail although 14512 are free, because it does not try all. 50000" + alone,
			"Choose the ports fully at random: 64512, +Inf to 64512, +Inf, failure 0.28 to 0.00",
			"More destination addresses or ports: 64512, +Inf to 129024, +Inf",
		}},
		{"private destination", snatSettings, func(table *snat.Table) { flows(table, 80, private("10.96.0.10:53")) }, []string{
			established + "80 of the 80 ports in use; the pool has 100. 80" + alone,
			"Let NAT use all ports: 100, +Inf to 64512, +Inf",
			"More destination addresses or ports: 100, +Inf to 200, +Inf",
			"Do not translate inside the network: 100, +Inf to 100, +Inf",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, snatAdvice(t, tt.settings, tt.add)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestSNATDiagnosis has flows in one state hold most ports, where none is taken over.
func TestSNATDiagnosis(t *testing.T) {
	const (
		closed  = "Closed connections hold most ports. They hold 60 of"
		closing = "Connections that are being closed hold most ports. They hold 60 of"
		silent  = "Flows without an answer hold most ports: the destination does not answer. They hold 60 of"
	)
	s := snatSettings
	s.TakesOver = false
	for state, want := range map[snat.State]string{
		snat.SynSent:     silent,
		snat.SynRecv:     closing,
		snat.Established: "Open connections hold most ports, or connections whose ends are gone: connection tracking keeps these for days. They hold 60 of",
		snat.FinWait:     closing,
		snat.CloseWait:   closing,
		snat.LastAck:     closing,
		snat.TimeWait:    closed,
		snat.Close:       closed,
		snat.SynSent2:    closed,
		snat.Unreplied:   silent,
		snat.Replied:     "Single exchanges over UDP hold most ports, until they expire. They hold 60 of",
		snat.Assured:     "Longer exchanges over UDP hold most ports. They hold 60 of",
	} {
		got := snatAdvice(t, s, func(table *snat.Table) {
			f := tcpFlow(state, 40000)
			if state >= snat.Unreplied {
				f.Protocol = snat.UDP
			}
			manyClients(table, 60, f)
		})
		if len(got) == 0 || !strings.HasPrefix(got[0], want) {
			t.Errorf("%v: got %q, want %q", state, got, want)
		}
	}
}

// TestSNATRanges checks what is said of a pool with blocks of ports of which one is full, and of pools that the ranges
// do not fit, for which no cure has a prediction.
func TestSNATRanges(t *testing.T) {
	var blocks, all snat.Settings
	for i := 1; i < 16; i++ {
		blocks.PortRanges = append(blocks.PortRanges, pool.PortRange{Low: uint16(i<<12 | 0x340), High: uint16(i<<12 | 0x34f)})
	}
	all.PortRanges, all.Drops = []pool.PortRange{natPorts}, true
	hold := func(n int) func(*snat.Table) {
		return func(table *snat.Table) {
			for _, r := range blocks.PortRanges[:n] {
				flows(table, r.Size(), tcpFlow(snat.Established, r.Low))
			}
		}
	}
	one := snatAdvice(t, blocks, hold(1))
	if want := " 6% of the kernel's searches for a port fail although 224 are free, because it tries those of one range only."; !strings.Contains(one[0], want) {
		t.Errorf("one block is full: %q", one)
	}
	if want := "Let NAT use all ports: 240, NaN to 64512, NaN"; !slices.Contains(one, want) {
		t.Errorf("one block is full: %q, want %q", one, want)
	}
	for name, got := range map[string][]string{
		"the ports 4928-4943, 9024-9039, 13120-13135":                                     snatAdvice(t, all, hold(3)),
		"Of 240 flows, 240 have ports outside 40000-40099, which --snat.port-range says.": snatAdvice(t, snatSettings, hold(15)),
	} {
		if len(got) != 1 || !strings.Contains(got[0], strings.TrimPrefix(name, "the ports ")) {
			t.Errorf("got %q, want no cure, and %q", got, name)
		}
	}
}

// TestSNATCureText checks what every cure has.
func TestSNATCureText(t *testing.T) {
	for _, protocol := range []snat.Protocol{snat.TCP, snat.UDP} {
		s := snatSettings
		s.TakesOver = false
		s.PortRanges = []pool.PortRange{{Low: 40000, High: 40999}}
		table := snat.NewTable(s)
		f := tcpFlow(snat.TimeWait, 40000)
		f.Destination = netip.MustParseAddrPort("100.64.0.1:53")
		if protocol == snat.UDP {
			f.Protocol, f.State = snat.UDP, snat.Replied
		}
		manyClients(table, 900, f)
		r := table.Report(pool.Limits{MinPorts: 1, Most: 1})
		cures := SNAT(&r, &r.Pools[0]).Cures
		if len(cures) < 6 {
			t.Errorf("%s: %d cures", protocol, len(cures))
		}
		for _, c := range cures {
			if c.Sentence == "" || !strings.HasSuffix(c.Sentence, ".") || c.Condition != "" && !strings.HasSuffix(c.Condition, ".") {
				t.Errorf("%s: %q, %q", c.Title, c.Sentence, c.Condition)
			}
			if c.Then.NoPort != math.IsInf(c.Then.Ceiling, 1) && c.Title != "A kernel that takes over closed flows" {
				t.Errorf("%s: no port %v, ceiling %v", c.Title, c.Then.NoPort, c.Then.Ceiling)
			}
		}
	}
}

// TestSNATRunbook checks that the runbook has a chapter for each cure of source NAT, and no more.
func TestSNATRunbook(t *testing.T) {
	b, err := os.ReadFile("../../deploy/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	runbook := string(b)
	_, chapter, ok := strings.Cut(runbook, "\n## Cures of source NAT\n")
	if !ok {
		t.Fatal("no chapter of cures")
	}
	s := snatSettings
	s.PortRanges = []pool.PortRange{{Low: 40000, High: 40999}}
	shown := map[string]bool{}
	for _, old := range []bool{false, true} {
		for _, state := range []snat.State{snat.Established, snat.TimeWait} {
			s.TakesOver = !old
			table := snat.NewTable(s)
			f := tcpFlow(state, 40000)
			f.Destination = netip.MustParseAddrPort("10.0.0.2:443")
			manyClients(table, 800, f)
			r := table.Report(pool.Limits{MinPorts: 1, Most: 1})
			if a := SNAT(&r, &r.Pools[0]); a != nil {
				for _, c := range a.Cures {
					shown[c.Title] = true
					if !strings.Contains(runbook, "\n### "+c.Title+"\n") {
						t.Errorf("no chapter %q", c.Title)
					}
					if _, name, ok := strings.Cut(c.Command, "net.netfilter."); ok && !strings.Contains(chapter, name[:strings.Index(name, "=")]) {
						t.Errorf("%s: the runbook does not have %s", c.Title, name)
					}
				}
			}
		}
	}
	for _, c := range Tracking(9, 10).Cures {
		shown[c.Title] = true
	}
	chapters := strings.Split(chapter, "\n### ")[1:]
	if len(chapters) == 0 {
		t.Error("no cures")
	}
	for _, c := range chapters {
		if title, _, _ := strings.Cut(c, "\n"); !shown[title] {
			t.Errorf("the runbook has a cure %q that no advice has", title)
		}
	}
}

// TestSNATCilium has pools of Cilium: its datapath tells single exchanges over UDP from no others, drops packets before half of the ports are taken, and
// does not only masquerade.
func TestSNATCilium(t *testing.T) {
	s := snatSettings
	s.Cilium = snat.Cilium{Ports: pool.PortRange{Low: 40000, High: 40999}, Tries: 32}
	for _, tt := range []struct {
		name  string
		flow  func(f *snat.Flow)
		ports int
		says  string
		more  string
	}{
		{"open", func(*snat.Flow) {}, 950, "Open connections hold most ports, or connections whose ends are gone: Cilium tracks these for hours.", "With at least 2 more, less than 40% of the ports are in use."},
		{"UDP", func(f *snat.Flow) { f.Protocol, f.State = snat.UDP, snat.Assured }, 600, "Exchanges over UDP hold most ports, single ones too.", "With at least 1 more, less than 40% of the ports are in use."},
		{"full", func(*snat.Flow) {}, 1000, "Cilium tracks these for hours.", "With at least 2 more, less than 40% of the ports are in use."},
	} {
		f := tcpFlow(snat.Established, 40000)
		f.Cilium, f.Destination = true, netip.MustParseAddrPort("10.0.0.7:443")
		tt.flow(&f)
		table := snat.NewTable(s)
		manyClients(table, tt.ports, f)
		r := table.Report(pool.Limits{MinPorts: 1, Most: 10})
		a := SNAT(&r, &r.Pools[0])
		if !strings.Contains(a.Diagnosis, tt.says) {
			t.Errorf("%s: %s", tt.name, a.Diagnosis)
		}
		if len(a.Cures) != 2 || a.Cures[0].Sentence != tt.more {
			t.Fatalf("%s: %+v", tt.name, a.Cures)
		}
		for _, want := range []string{"nonMasqueradeCIDRs", "egress gateway", "externalTrafficPolicy"} {
			if !strings.Contains(a.Cures[1].Sentence, want) {
				t.Errorf("%s: %s", tt.name, a.Cures[1].Sentence)
			}
		}
	}
}

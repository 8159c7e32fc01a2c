package status

import (
	"encoding/json"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

// TestCiliumUnread checks that a page is never calm where the source NAT of Cilium is not known, although that of the kernel is.
func TestCiliumUnread(t *testing.T) {
	s := quiet()
	s.Namespaces[0].NAT = natOf(natFlows{snat.Established, false, "10.0.0.2:443", 1024, 600})
	s.Namespaces[0].Cilium = scan.Cilium{Result: scan.Result{Outcome: scan.Failed, Err: errors.New("not read")}, Found: true}
	const want = "The source NAT of Cilium could not be read: not read"
	p := newPage(&s, testInfo, View{Format: Text}, visible)
	if p.Level() != unknown || p.Headline().Sentence != want || !slices.Contains(p.Headline().Alerts, "EphemeralPortsSNATCollectFailing") {
		t.Errorf("%v %+v, want %v %q", p.Level(), p.Headline(), unknown, want)
	}
	if text := draw(t, s, View{Format: Text}); !strings.Contains(text, want) {
		t.Errorf("the text does not say so:\n%s", text)
	}
	var d struct{ Namespaces []map[string]any }
	if err := json.Unmarshal([]byte(draw(t, s, View{Format: JSON})), &d); err != nil {
		t.Fatal(err)
	}
	n := d.Namespaces[0]
	if most, ok := n["snat_max_utilization_ratio"]; ok || n["snat_cilium_error"] != "not read" {
		t.Errorf("utilization %v, error %v", most, n["snat_cilium_error"])
	}
	if count, ok := n["snat_cilium_unassigned"]; ok {
		t.Errorf("%v connections got no port", count)
	}

	s.Namespaces[0].Cilium = scan.Cilium{Result: read, Found: true, Counted: true, Unassigned: 3}
	if err := json.Unmarshal([]byte(draw(t, s, View{Format: JSON})), &d); err != nil {
		t.Fatal(err)
	}
	if n := d.Namespaces[0]; n["snat_cilium_unassigned"] != 3. {
		t.Errorf("%v connections got no port, want 3", n["snat_cilium_unassigned"])
	}
}

// TestCiliumPools checks what the page says of pools of Cilium: one where searches fail, and one on other ports than expected.
func TestCiliumPools(t *testing.T) {
	settings := snat.Settings{
		PortRanges: []pool.PortRange{{Low: 1024, High: 65535}}, TakesOver: true,
		Cilium: snat.Cilium{Ports: pool.PortRange{Low: 32768, High: 65535}, Tries: 32},
	}
	add := func(table *snat.Table, state snat.State, destination string, first, n int) {
		for i := range n {
			table.Add(&snat.Flow{
				Protocol: snat.TCP, State: state, Cilium: true, SNAT: true,
				Client: netip.AddrFrom4([4]byte{10, 1, 0, byte(i % 50)}), ClientPort: 20000,
				Translated: netip.AddrPortFrom(netip.MustParseAddr("10.2.0.1"), uint16(first+i)), Destination: netip.MustParseAddrPort(destination),
			})
		}
	}
	for _, tt := range []struct {
		name             string
		add              func(*snat.Table)
		level            level
		says, details    string
		cures, forbidden string
	}{
		{
			"searches fail", func(table *snat.Table) {
				add(table, snat.NoConnection, "10.0.0.2:443", 45037, 20499)
				add(table, snat.NoConnection, "10.0.0.2:443", 32768, 1) // to which all searches come at the end
			}, exhausted,
			"1 pool of source NAT in danger: tcp to 10.0.0.2:443 from 10.2.0.1 has 62% of its ports in use, and 62% of the searches for one fail: packets are dropped.",
			"Flows without a connection hold most ports: they are left over until Cilium's agent collects them. They hold 20500 of the 20500 ports in use; the pool has 32768. 62% of Cilium's searches for a port fail although 12268 are free, because it tries 32 at most.",
			"nonMasqueradeCIDRs", "fully-random",
		},
		{
			"other ports", func(table *snat.Table) { add(table, snat.Established, "198.51.100.7:443", 20000, 500) }, unknown,
			"1 pool of source NAT may be full, as --node-ports does not say which ports Cilium has: tcp to 198.51.100.7:443 from 10.2.0.1 has 500 of 500 flows of Cilium on ports that are not above these.",
			"Of 500 flows of Cilium, 500 have ports outside 32768-65535, which are those above --node-ports.", "", "--snat.port-range",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := snat.NewTable(settings)
			tt.add(table)
			s := quiet()
			s.Namespaces[0].Cilium = scan.Cilium{Result: read, Found: true}
			s.Namespaces[0].NAT = scan.NAT{Result: read, Report: table.Report(pool.Limits{MinPorts: 1, Most: 10})}
			p := newPage(&s, testInfo, View{Format: Text}, visible)
			if p.Level() != tt.level || p.Headline().Sentence != tt.says {
				t.Errorf("%v %q, want %v %q", p.Level(), p.Headline().Sentence, tt.level, tt.says)
			}
			text := strings.Join(strings.Fields(draw(t, s, View{Format: Text, Destination: p.NAT[0].pool.Address})), " ")
			for _, want := range []string{tt.details, tt.cures, "cilium-dbg bpf nat list | grep -F 'TCP IN " + p.NAT[0].Address + " -> 10.2.0.1:'"} {
				if !strings.Contains(text, want) {
					t.Errorf("the page lacks %q:\n%s", want, text)
				}
			}
			if strings.Contains(text, tt.forbidden) || strings.Contains(text, "conntrack -L") {
				t.Errorf("the page has advice for the kernel's source NAT:\n%s", text)
			}
		})
	}
}

// TestUnknownPools has a pool of the kernel and one of Cilium of which nothing is known: each is told with the flag that it depends on.
func TestUnknownPools(t *testing.T) {
	of := func(destination string, cilium bool) snat.Pool {
		return snat.Pool{
			Protocol: snat.TCP, Source: netip.MustParseAddr("10.2.0.1"), Address: netip.MustParseAddrPort(destination), Cilium: cilium,
			Capacity: 1000, Held: 10, Outside: 500, Utilization: math.NaN(), Ceiling: math.NaN(),
		}
	}
	s := quiet()
	s.Namespaces[0].NAT = scan.NAT{Result: read, Report: snat.Report{CapacityPorts: 1000, Pools: []snat.Pool{of("10.0.0.1:443", false), of("10.0.0.2:443", true)}}}
	text := strings.Join(strings.Fields(draw(t, s, View{Format: Text})), " ")
	for _, want := range []string{
		"1 pool of source NAT may be full, as --snat.port-range does not say what the rules do: tcp to 10.0.0.1:443 from 10.2.0.1",
		"1 pool of source NAT may be full, as --node-ports does not say which ports Cilium has: tcp to 10.0.0.2:443 from 10.2.0.1",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
}

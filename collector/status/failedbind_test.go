package status

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/scan"
)

// TestFailedBinds checks that failed binds are a problem of their own, that no destination shows them, and that what is
// not counted is absent.
func TestFailedBinds(t *testing.T) {
	tcp := scan.FailedBind{Source: netip.MustParseAddr("10.0.0.1"), Failures: 7} // of the destination that holds most
	udp := scan.FailedBind{Source: netip.MustParseAddr("::"), UDP: true, Failures: 9}
	none := uint64(0)
	for _, tt := range []struct {
		name         string
		counts       scan.Trace
		view         View
		level        level
		headline     string
		json         int
		unattributed *uint64
	}{
		{"not counted", scan.Trace{}, View{}, calm, "", 0, nil},
		{"none", scan.Trace{BindsCounted: true}, View{}, calm, "", 0, &none},
		{"one", scan.Trace{BindsCounted: true, Binds: []scan.FailedBind{tcp}}, View{}, warning, "7 binds of tcp for 10.0.0.1 found no free port within 15 minutes.", 1, &none},
		{"two", scan.Trace{BindsCounted: true, Binds: []scan.FailedBind{tcp, udp}}, View{}, warning, "9 binds of udp for any address found no free port within 15 minutes, and for 1 more client.", 2, &none},
		{"view of a destination", scan.Trace{BindsCounted: true, Binds: []scan.FailedBind{tcp}}, View{Destination: netip.MustParseAddrPort("10.0.0.2:443")}, calm, "", 0, &none},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := quiet()
			s.Trace = &tt.counts
			p := newPage(&s, testInfo, tt.view, visible)
			if p.Level() != tt.level || tt.headline != "" && p.Headline().Sentence != tt.headline || len(p.Failed) != 0 {
				t.Errorf("%v: %q", p.Level(), said(p))
			}
			for _, d := range p.Destinations {
				if d.Level != calm {
					t.Errorf("%s is %v", d.Address, d.Level)
				}
			}
			var doc struct {
				Failed       []map[string]any `json:"bind_failures"`
				Unattributed *uint64          `json:"bind_failures_unattributed"`
			}
			tt.view.Format = JSON
			if err := json.Unmarshal([]byte(draw(t, s, tt.view)), &doc); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.unattributed, doc.Unattributed); diff != "" || len(doc.Failed) != tt.json {
				t.Errorf("JSON has %v, unattributed (-want +got):\n%s", doc.Failed, diff)
			}
		})
	}
}

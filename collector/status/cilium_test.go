package status

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

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
}

package status

import (
	"encoding/json"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/deploy"
)

// TestHints checks which modes the page proposes: those that are off and would tell something of this host.
func TestHints(t *testing.T) {
	with := func(change func(*scan.Snapshot, *pool.Report)) scan.Snapshot {
		s := quiet()
		change(&s, &s.Namespaces[0].TCP.Report)
		return s
	}
	inDanger := func(states map[tcpstate.State]int) scan.Snapshot {
		return with(func(_ *scan.Snapshot, r *pool.Report) {
			r.Destinations[0] = connections("10.0.0.1", "10.0.0.2:443", states)
		})
	}
	doubt := with(func(_ *scan.Snapshot, r *pool.Report) { r.Destinations[0].PossibleUtilization = 0.3 })
	flows := with(func(s *scan.Snapshot, _ *pool.Report) {
		s.Namespaces[0].Conntrack = scan.Conntrack{Result: read, Entries: 412}
	})
	elsewhere := with(func(s *scan.Snapshot, r *pool.Report) { s.Elsewhere, r.Sockets = 7000, 20000 })
	noCgroups := with(func(_ *scan.Snapshot, r *pool.Report) {
		r.Destinations[1].Owners = []pool.Owner{{Cgroup: 7, Ports: 64}}
	})
	narrow := View{Destination: netip.MustParseAddrPort("10.0.0.2:443")}
	const none = "None is on, and as far as can be seen none would add anything here."
	for _, tt := range []struct {
		name  string
		s     scan.Snapshot
		modes Modes
		view  View
		on    string
		want  []string // beginnings
	}{
		{"calm", quiet(), Modes{}, View{}, none, nil},
		{"calm, all on", quiet(), Modes{scan.ScopeAll, true, true, true}, View{}, "On: --namespaces=all, --exact, --snat, --trace.", nil},
		{"self", quiet(), Modes{Namespaces: scan.ScopeSelf}, View{}, none, nil},
		{"unread", failedHost(), Modes{}, View{}, none, nil},
		{"elsewhere", elsewhere, Modes{}, View{}, "None is on. What would help here:", []string{"--namespaces=all shows the ports of other network namespaces, such as those of containers and pods. 7000 TCP sockets of this host are there"}},
		{"elsewhere, on", elsewhere, Modes{Namespaces: scan.ScopeNamed}, View{}, "On: --namespaces=named.", nil},
		{"elsewhere, one destination", elsewhere, Modes{}, narrow, none, nil},
		{"few elsewhere", with(func(s *scan.Snapshot, _ *pool.Report) { s.Elsewhere = 99 }), Modes{}, View{}, none, nil},
		{"fewer elsewhere", with(func(s *scan.Snapshot, r *pool.Report) { s.Elsewhere, r.Sockets = 1999, 20000 }), Modes{}, View{}, none, nil},
		{"doubt", doubt, Modes{}, View{}, "None is on. What would help here:", []string{"--exact tells how many ports are in use where that is not sure now: of 1 pool."}},
		{"doubt, one destination", doubt, Modes{}, narrow, "None is on. What would help here:", []string{"--exact tells"}},
		{"doubt, on", doubt, Modes{Exact: true}, View{}, "On: --exact.", nil},
		{"sources", with(func(_ *scan.Snapshot, r *pool.Report) {
			r.Sources = []pool.Source{{Address: netip.MustParseAddr("10.0.0.1"), Ports: 100, MayBound: 90, Capacity: 28222}}
		}), Modes{SNAT: true}, View{}, "On: --snat. What would help here too:", []string{"--exact tells"}},
		{"flows", flows, Modes{}, View{}, "None is on. What would help here:", []string{"--snat shows the ports of source NAT. 412 flows are tracked here, and may have a translated source."}},
		{"Cilium", with(func(s *scan.Snapshot, _ *pool.Report) { s.Namespaces[0].Cilium.Found = true }), Modes{}, View{}, "None is on. What would help here:", []string{"--snat judges the ports of source NAT. Cilium runs here"}},
		{"flows, on", flows, Modes{SNAT: true}, View{}, "On: --snat.", nil},
		{"TIME_WAIT", inDanger(map[tcpstate.State]int{tcpstate.TimeWait: 16000, tcpstate.Established: 100}), Modes{}, View{}, "None is on. What would help here:", []string{"--trace counts the connects that fail, and names who closes the connections that hold ports in TIME_WAIT, 16000 to 10.0.0.2:443."}},
		{"TIME_WAIT, on", inDanger(map[tcpstate.State]int{tcpstate.TimeWait: 16000}), Modes{Trace: true}, View{}, "On: --trace.", nil},
		{"open", inDanger(map[tcpstate.State]int{tcpstate.Established: 16000}), Modes{}, narrow, "None is on. What would help here:", []string{"--trace counts the connects and binds that fail because no port is free, and names who makes them."}},
		{"bound", allBound(), Modes{}, View{}, "None is on. What would help here:", []string{"--trace counts"}},
		{"no control groups", noCgroups, Modes{}, View{}, "None is on. What would help here:", []string{"--path.cgroup names the services and containers that hold ports"}},
		{"control groups", with(func(s *scan.Snapshot, r *pool.Report) {
			r.Destinations[1].Owners, s.Cgroups = []pool.Owner{{Cgroup: 7, Ports: 64}}, map[uint64]cgroup.Group{}
		}), Modes{}, View{}, none, nil},
	} {
		info := testInfo
		info.Modes = tt.modes
		p := newPage(&tt.s, info, tt.view, visible)
		ok := p.ModesOn() == tt.on && len(p.Hints) == len(tt.want)
		for i := range min(len(tt.want), len(p.Hints)) {
			ok = ok && strings.HasPrefix(p.Hints[i].Flag+" "+p.Hints[i].Sentence, tt.want[i])
		}
		if !ok {
			t.Errorf("%s: %s %+v, want %s %q", tt.name, p.ModesOn(), p.Hints, tt.on, tt.want)
		}
	}
}

// TestHintsShown checks the modes in all formats, and that each link of them leads to its chapter.
func TestHintsShown(t *testing.T) {
	s := trouble()
	s.Trace, s.OthersRead, s.Elsewhere = nil, false, 9999
	s.Namespaces[0].TCP.Report.Destinations[0].Owners = []pool.Owner{{Cgroup: 7, Ports: 64}}
	s.Namespaces[0].TCP.Report.Destinations[3].PossibleUtilization = 0.3
	var d struct{ Modes documentModes }
	if err := json.Unmarshal([]byte(draw(t, s, View{Format: JSON})), &d); err != nil {
		t.Fatal(err)
	}
	html, text := draw(t, s, View{Format: HTML}), strings.Join(strings.Fields(draw(t, s, View{Format: Text})), " ")
	var flags []string
	for _, h := range d.Modes.Hints {
		flags = append(flags, h.Flag)
		if !strings.Contains(html, `<li><a href="`+h.Path+`">`+h.Flag+`</a> `) || !strings.Contains(text, h.Sentence+" See "+h.Path+".") {
			t.Errorf("%+v is not in\n%s\n%s", h, html, text)
		}
		path, anchor, _ := strings.Cut(h.Path, "#")
		w := httptest.NewRecorder()
		Documents(deploy.Documents).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if !strings.Contains(w.Body.String(), `<h2 id="`+anchor+`">`) {
			t.Errorf("%s leads nowhere", h.Path)
		}
	}
	if diff := cmp.Diff([]string{"--namespaces=all", "--exact", "--snat", "--trace", "--path.cgroup"}, flags); diff != "" || len(d.Modes.On) != 0 {
		t.Errorf("hints, with %v on (-want +got):\n%s", d.Modes.On, diff)
	}
}

package status

import (
	"errors"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

// TestAlerts has a host for each alert on which it fires. The page of it is not calm, names the alert, and links to
// its chapter. If the alert is about a pool, there is a diagnosis, and what helps.
func TestAlerts(t *testing.T) {
	one := View{Destination: netip.MustParseAddrPort("10.0.0.2:443")}
	host := func(change func(*scan.Namespace)) scan.Snapshot {
		s := quiet()
		change(&s.Namespaces[0])
		return s
	}
	destination := func(states map[tcpstate.State]int, change func(*pool.Destination)) scan.Snapshot {
		r := defaults()
		d := connections("10.0.0.1", "10.0.0.2:443", states)
		if change != nil {
			change(&d)
		}
		r.Destinations, r.MaxUtilization = []pool.Destination{d}, d.Utilization
		return hostOf(r)
	}
	failing := func(unattributed uint64) scan.Snapshot {
		s := quiet()
		s.Trace = &scan.Trace{
			Pools:        []scan.FailedPool{{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.2:443"), Failures: 2}},
			Unattributed: unattributed,
		}
		return s
	}
	bound := func(ports int) scan.Snapshot {
		return host(func(n *scan.Namespace) { n.TCP.Report.BoundPorts = ports })
	}
	failingBinds := quiet()
	failingBinds.Trace = &scan.Trace{BindsCounted: true, Binds: []scan.FailedBind{{Source: netip.MustParseAddr("10.0.0.1"), Failures: 2}}}
	to := func(ports int) scan.Snapshot {
		return host(func(n *scan.Namespace) { n.NAT = natOf(natFlows{snat.Established, false, "10.0.0.2:443", 1024, ports}) })
	}
	unread := scan.Result{Outcome: scan.Failed, Err: errors.New("i/o timeout")}
	other := quiet()
	other.OthersRead = true
	other.Namespaces = append(other.Namespaces, scan.Namespace{Name: "pod", TCP: scan.TCP{Result: unread}})

	tests := map[string]struct {
		snapshot scan.Snapshot
		view     View
		level    level
		pool     bool
	}{
		"EphemeralPortsHalfUsed":            {destination(map[tcpstate.State]int{tcpstate.TimeWait: 15000}, nil), one, warning, true},
		"EphemeralPortsNearlyExhausted":     {destination(map[tcpstate.State]int{tcpstate.TimeWait: 23000}, nil), one, critical, true},
		"EphemeralPortsExhausted":           {destination(map[tcpstate.State]int{tcpstate.Established: 28000}, nil), one, exhausted, true},
		"EphemeralPortsRateNearCeiling":     {destination(map[tcpstate.State]int{tcpstate.TimeWait: 9000}, func(d *pool.Destination) { d.CloseRate = 410 }), one, critical, true},
		"EphemeralPortsExhaustionPredicted": {destination(map[tcpstate.State]int{tcpstate.TimeWait: 9000}, func(d *pool.Destination) { d.CloseRate, d.Exhaustion, d.SureExhaustion = 500, 50, 50 }), one, critical, true},
		"EphemeralPortsCloseWait":           {destination(map[tcpstate.State]int{tcpstate.CloseWait: 6000, tcpstate.Established: 4000}, nil), one, warning, true},
		"EphemeralPortsSynSent":             {destination(map[tcpstate.State]int{tcpstate.SynSent: 6000, tcpstate.Established: 4000}, nil), one, warning, true},
		"EphemeralPortsConnectFailing":      {failing(0), one, warning, true},

		"EphemeralPortsBindFailing":                {failingBinds, View{}, warning, false},
		"EphemeralPortsConnectFailingUnattributed": {failing(17), View{}, warning, false},
		"EphemeralPortsPossiblyExhausted":          {destination(map[tcpstate.State]int{tcpstate.Established: 3000}, func(d *pool.Destination) { d.PossibleUtilization, d.MayBeBound = 0.9, 22000 }), one, unknown, false},
		"EphemeralPortsWorstUnreported":            {host(func(n *scan.Namespace) { n.TCP.Report.MaxUtilization = 0.9 }), View{}, critical, false},
		"EphemeralPortsHalfBound":                  {bound(15000), View{}, warning, true},
		"EphemeralPortsNearlyAllBound":             {bound(23000), View{}, critical, true},
		"EphemeralPortsAllBound":                   {bound(28220), View{}, exhausted, true},
		"EphemeralPortsSourceNearlyExhausted": {host(func(n *scan.Namespace) {
			n.TCP.Report.Sources = []pool.Source{{Address: netip.MustParseAddr("10.0.0.77"), Ports: 25000, Bound: 24990, Capacity: 28222, Utilization: 0.885}}
		}), View{}, critical, true},
		"EphemeralPortsUDPNearlyExhausted": {host(func(n *scan.Namespace) { n.UDP = udpOf(23000, 0) }), View{}, critical, true},
		"EphemeralPortsUDPExhausted":       {host(func(n *scan.Namespace) { n.UDP = udpOf(28222, 0) }), View{}, exhausted, true},
		"EphemeralPortsUDPCollectFailing":  {host(func(n *scan.Namespace) { n.UDP = scan.UDP{Result: unread} }), View{}, unknown, false},
		"EphemeralPortsTimeWaitOverflow": {host(func(n *scan.Namespace) {
			n.TimeWait = scan.TimeWait{Result: read, Sockets: 131072, Limit: 131072, Overflows: 1520, Recent: 970, Window: 10 * time.Second}
		}), View{}, warning, true},
		"EphemeralPortsCollectFailing":   {failedHost(), one, unknown, false},
		"EphemeralPortsNamespacesUnread": {other, View{}, unknown, false},

		"EphemeralPortsSNATHalfUsed": {host(func(n *scan.Namespace) {
			n.NAT = natWith(snat.Settings{PortRanges: []pool.PortRange{{Low: 1024, High: 1123}}}, natFlows{snat.Established, false, "10.0.0.2:443", 1024, 50})
		}), one, warning, true},
		"EphemeralPortsSNATNearlyExhausted": {to(28000), one, critical, true},
		"EphemeralPortsSNATExhausted":       {to(64512), one, exhausted, true},
		"EphemeralPortsSNATPortRange": {host(func(n *scan.Namespace) {
			n.NAT = natWith(snat.Settings{PortRanges: []pool.PortRange{{Low: 1024, High: 1123}}}, natFlows{snat.Established, false, "10.0.0.2:443", 30000, 50})
		}), one, unknown, false},
		"EphemeralPortsSNATCollectFailing":  {host(func(n *scan.Namespace) { n.NAT = scan.NAT{Result: unread} }), View{}, unknown, false},
		"EphemeralPortsConntrackNearlyFull": {host(func(n *scan.Namespace) { n.Conntrack = scan.Conntrack{Result: read, Entries: 95, Limit: 100} }), View{}, critical, true},

		// These tell nothing that a page could judge, which sees one scan of one host. It has what to compare.
		"EphemeralPortsOpenConnectionsRise": {destination(map[tcpstate.State]int{tcpstate.Established: 10500}, nil), one, calm, true},
		"EphemeralPortsConntrackInsertFailed": {host(func(n *scan.Namespace) {
			n.Conntrack = scan.Conntrack{Result: read, Entries: 9, Limit: 100, Counted: true, InsertFailed: 7}
		}), View{}, calm, false},
		"EphemeralPortsSettingsDiffer": {quiet(), View{}, calm, false},
		"EphemeralPortsUnreported": {host(func(n *scan.Namespace) {
			n.TCP.Report.UnreportedDestinations, n.TCP.Report.UnreportedPorts = 9000, ports(map[tcpstate.State]int{tcpstate.TimeWait: 15000})
		}), View{}, calm, false},
	}
	for _, alert := range ruleAlerts(t) {
		if alert == "EphemeralPortExporterDown" {
			continue // there is no page
		}
		t.Run(alert, func(t *testing.T) {
			tt, ok := tests[alert]
			if !ok {
				t.Fatal("no page for the alert")
			}
			p := newPage(&tt.snapshot, testInfo, tt.view, visible)
			if p.Level() != tt.level {
				t.Errorf("%v: %q, want %v", p.Level(), said(p), tt.level)
			}
			if tt.pool && !slices.ContainsFunc(p.Tables, func(of table) bool { return helps(of, alert) }) {
				t.Errorf("no diagnosis or cure in %+v", p.Tables)
			}
			tt.view.Format = Text
			if text := draw(t, tt.snapshot, tt.view); !strings.Contains(text, alert) {
				t.Errorf("the text does not name the alert:\n%s", text)
			}
			tt.view.Format = HTML
			if html := draw(t, tt.snapshot, tt.view); !strings.Contains(html, `href="/runbook#`+strings.ToLower(alert)+`"`) {
				t.Errorf("the page has no link to the alert:\n%s", html)
			}
		})
	}
}

// ruleAlerts returns the names of all alerts.
func ruleAlerts(t *testing.T) (names []string) {
	t.Helper()
	rules, err := os.ReadFile("../../deploy/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		names = append(names, m[1])
	}
	if len(names) < 20 {
		t.Fatalf("alerts %q", names)
	}
	return names
}

// helps reports whether a row is about an alert, with a diagnosis and a cure.
func helps(t table, alert string) bool {
	return slices.ContainsFunc(t.Rows, func(r row) bool {
		d := r.Details
		return d != nil && slices.Contains(d.Alerts, alert) && len(d.Sentences) > 0 && len(d.Cures) > 0 && d.Cures[0].Sentence != ""
	})
}

package status

import (
	"fmt"
	"slices"
	"strconv"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

// A conntrack is what the kernel counts of the flows of a namespace, where it matters.
type conntrack struct {
	scan   *scan.Conntrack
	advice *advice.Advice // nil unless it is nearly full
	cures  []cure
	Netns  string
}

// addConntrack adds the counts of connection tracking of a namespace, if it has pools of source NAT, or if the
// counts are a reason.
func (p *page) addConntrack(n *scan.Namespace, c cleaner) {
	t := &n.Conntrack
	if t.Outcome != scan.Collected || p.View.Destination.IsValid() || n.Name == "" {
		return
	}
	pools := len(n.NAT.Report.Listed()) > 0
	if pools || fillOf(t) >= 0.5 || t.Dropped+t.InsertFailed+t.EarlyDropped > 0 {
		p.Conntrack = append(p.Conntrack, newConntrack(n, c))
	}
}

// newConntrack returns what connection tracking of a namespace has. The limit, and so the cure, is of the host.
func newConntrack(n *scan.Namespace, c cleaner) conntrack {
	row := conntrack{scan: &n.Conntrack, advice: advice.Tracking(n.Conntrack.Entries, n.Conntrack.Limit), Netns: c.name(n.Name)}
	row.cures = newCures(&scan.Namespace{Name: scan.Self}, row.advice, "Flows")
	return row
}

// fillOf returns the tracked flows as a share of the limit, 0 without one.
func fillOf(t *scan.Conntrack) float64 {
	if t.Limit == 0 {
		return 0
	}
	return float64(t.Entries) / float64(t.Limit)
}

// judgeConntrack finds the tables of flows that are nearly full.
func (p *page) judgeConntrack() {
	for _, t := range p.Conntrack {
		reached := advice.ReachedConntrack(fillOf(t.scan))
		if reached.Level() > calm {
			p.find(reached.Level(), reached.Alerts(), "Connection tracking%s has %s of the flows that it may have: at 100%%, packets of new connections are dropped.", p.in(t.Netns), percent(fillOf(t.scan)))
		}
	}
}

// conntrackTable shows the counts of connection tracking.
func (p *page) conntrackTable() table {
	t := table{
		ID: "conntrack", Title: "Connection tracking",
		About:  "Counted since the network namespace is there: packets dropped by source NAT and by all of connection tracking, and flows that gave way to new ones.",
		Alerts: []string{"EphemeralPortsConntrackInsertFailed", "EphemeralPortsConntrackNearlyFull"},
		Columns: []column{
			{"Namespace", "NETNS", 24, words}, {"Flows", "FLOWS", 11, numbers}, {"Limit", "LIMIT", 11, numbers}, {"Used", "USED", 7, numbers},
			{"Insert failed", "INSERT FAILED", 15, numbers}, {"Dropped", "DROPPED", 11, numbers}, {"Early dropped", "EARLY DROP", 13, numbers},
		},
	}
	for _, of := range p.Conntrack {
		limit, used, counts := "none", "-", []string{"?", "?", "?"}
		if of.scan.Limit > 0 {
			limit, used = strconv.Itoa(of.scan.Limit), percent(fillOf(of.scan))
		}
		if of.scan.Counted {
			for i, n := range []uint64{of.scan.InsertFailed, of.scan.Dropped, of.scan.EarlyDropped} {
				counts[i] = strconv.FormatUint(n, 10)
			}
		}
		reached := advice.ReachedConntrack(fillOf(of.scan))
		r := row{Level: reached.Level(), Cells: cells(append([]string{of.Netns, strconv.Itoa(of.scan.Entries), limit, used}, counts...)...)}
		if of.advice != nil {
			r.Details = &details{
				Key: "conntrack " + of.Netns, Title: "Connection tracking in " + of.Netns, Summary: plural(of.scan.Entries, "flow", "flows"),
				Sentences: []string{of.advice.Diagnosis}, Cures: of.cures, Alerts: reached.Alerts(),
			}
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

// natNote says what packets that were dropped can mean where no pool of source NAT shows why.
func natNote(n *scan.Namespace) string {
	if n.Conntrack.Entries == 0 || n.Conntrack.InsertFailed == 0 {
		return ""
	}
	dropped := plural(int(n.Conntrack.InsertFailed), "packet", "packets")
	switch {
	case n.NAT.Outcome == "": // with --snat, something is known of each network namespace that tracks flows
		return fmt.Sprintf("Ports of source NAT: connection tracking dropped %s so far, which happens when no port is free. --snat shows these ports.", dropped)
	case n.NAT.Err != nil, slices.ContainsFunc(n.NAT.Report.Listed(), func(p snat.Pool) bool { return !p.Known() || p.SearchFailure > 0 }):
		return ""
	default:
		return fmt.Sprintf("Why source NAT dropped %s so far: no pool is short of ports now. They were short before, or two flows chose the same port at once, or the rule names fewer ports than --snat.port-range.", dropped)
	}
}

// A documentConntrack is what a namespace tells of connection tracking.
type documentConntrack struct {
	Level           string         `json:"conntrack_level,omitempty"`
	Diagnosis       string         `json:"conntrack_diagnosis,omitempty"`
	Cures           []documentCure `json:"conntrack_cures,omitempty"`
	Entries         *int           `json:"conntrack_entries,omitempty"`
	Limit           *int           `json:"conntrack_limit_entries,omitempty"`
	InsertFailed    *uint64        `json:"conntrack_insert_failed_total,omitempty"`
	Dropped         *uint64        `json:"conntrack_dropped_total,omitempty"`
	EarlyDropped    *uint64        `json:"conntrack_early_dropped_total,omitempty"`
	MaxUtilization  *float64       `json:"snat_max_utilization_ratio,omitempty"`
	UnreportedPools *int           `json:"snat_unreported_pools,omitempty"`
	UnreportedPorts *int           `json:"snat_unreported_ports,omitempty"`
	UnreportedMax   *float64       `json:"snat_unreported_max_utilization_ratio,omitempty"`
	OutsideFlows    *int           `json:"snat_outside_flows,omitempty"`
	UnknownPools    *int           `json:"snat_unknown_pools,omitempty"`
	Error           string         `json:"snat_error,omitempty"`
	Unassigned      *uint64        `json:"snat_cilium_unassigned,omitempty"`
	CiliumError     string         `json:"snat_cilium_error,omitempty"`
}

func newDocumentConntrack(n *scan.Namespace) *documentConntrack {
	doc := &documentConntrack{}
	if t := &n.Conntrack; t.Outcome == scan.Collected {
		row := newConntrack(n, visible)
		doc.Level = advice.ReachedConntrack(fillOf(t)).Level().String()
		if row.advice != nil {
			doc.Diagnosis, doc.Cures = row.advice.Diagnosis, newDocumentCures(row.cures, row.advice)
		}
		doc.Entries = &t.Entries
		if t.Limit > 0 {
			doc.Limit = &t.Limit
		}
		if t.Counted {
			doc.InsertFailed, doc.Dropped, doc.EarlyDropped = &t.InsertFailed, &t.Dropped, &t.EarlyDropped
		}
	}
	switch {
	case n.Cilium.Err != nil:
		doc.CiliumError = n.Cilium.Err.Error()
	case n.Cilium.Counted:
		doc.Unassigned = &n.Cilium.Unassigned
	}
	switch {
	case n.NAT.Err != nil:
		doc.Error = n.NAT.Err.Error()
	case n.Conntrack.Err != nil:
		doc.Error = n.Conntrack.Err.Error()
	case n.NAT.Outcome == scan.Collected:
		r := &n.NAT.Report
		if n.Cilium.Err == nil {
			doc.MaxUtilization = finite(r.MaxUtilization)
		}
		doc.UnreportedPools, doc.UnreportedPorts = &r.UnreportedPools, &r.UnreportedPorts
		doc.UnreportedMax = finite(r.UnreportedMaxUtilization)
		doc.OutsideFlows, doc.UnknownPools = &r.Outside, &r.UnknownPools
	}
	return doc
}

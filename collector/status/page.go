package status

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"ephemeral_port_exporter/collector/scan"
)

// A page is what all formats show of a Snapshot. Its strings are ready to be shown.
type page struct {
	Info
	View View
	Time time.Time

	Findings []finding // worst first

	// By subject. HTML and text draw the Tables of these.
	Bound        []*bound
	Destinations []*destination
	Sources      []source
	UDP          []*udpPool
	NAT          []*natPool
	Conntrack    []conntrack
	TimeWait     []overflow // that some connections have skipped
	Namespaces   []namespace
	Failed       []failed // pools with failed connects that are not among Destinations
	FailedBinds  []failedBind

	Tables   []table   // those that are not empty
	Settings []setting // of our own namespace; none if that could not be read
	Hints    []hint    // what modes would add that are off
	Notes    []string  // on what the numbers do not contain

	Others bool // other namespaces are watched too
	Counts bool // failed connects are counted
}

// newPage returns the page of a Snapshot.
func newPage(s *scan.Snapshot, info Info, v View, c cleaner) *page {
	p := &page{Info: info, View: v, Time: s.Time, Others: s.OthersRead, Counts: s.Trace != nil}
	p.Host = c.name(info.Host)
	traced := newTracedPools(s.Trace)
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		p.addBound(s, n, c)
		p.addDestinations(s, n, traced, c)
		p.addSources(s, n, c)
		p.addUDP(s, n, c)
		p.addNAT(s, n, c)
		p.addConntrack(n, c)
		p.addTimeWait(n, c)
		p.addNamespace(n, c)
	}
	slices.SortFunc(p.Destinations, worstFirst)
	slices.SortStableFunc(p.UDP, worstUDPFirst)
	slices.SortFunc(p.NAT, worstNATFirst)
	slices.SortStableFunc(p.Namespaces, worstNamespaceFirst)
	p.addFailed(s.Trace, traced, c)
	p.addFailedBinds(s.Trace, c)
	p.addNotes(s, c)
	p.Settings = settingsOf(&s.Namespaces[0])
	p.addHints(s)
	p.judge(s, c)
	tables := append([]table{p.boundTable(), p.destinationTable(s)}, p.whatIfTables()...)
	for _, t := range append(tables,
		p.natTable(s), p.conntrackTable(), p.failedTable(s.Trace), p.failedBindTable(s.Trace), p.sourceTable(s), p.udpTable(), p.timeWaitTable(), p.namespaceTable(s.Namespaces),
	) {
		if len(t.Rows)+len(t.More) > 0 {
			p.Tables = append(p.Tables, t)
		}
	}
	return p
}

// ownerName writes what a control group is: a container of a pod, or its path. The path of a pod is too long to show.
func ownerName(g *scan.Group, c cleaner) string {
	if g.PodUID == "" {
		return c.name(g.Path)
	}
	return strings.Join(workloadParts(&scan.Workload{Workload: g.Workload}, c), " ")
}

// ownerNames writes which control groups hold ports, and how many.
func ownerNames(owners []scan.Owner, c cleaner) (names []string) {
	for _, o := range owners {
		names = append(names, fmt.Sprintf("%s (%d)", ownerName(&o.Group, c), o.Ports))
	}
	return names
}

package status

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"ephemeral_port_exporter/collector/scan"
)

// A failedBind is an address whose binds to any port failed.
type failedBind struct {
	scan         *scan.FailedBind
	Netns, Owner string // empty if not known
	Source       string
}

// bindFailing is the alert about failed binds.
var bindFailing = []string{"EphemeralPortsBindFailing"}

// addFailedBinds adds the addresses whose binds failed. They have no destination.
func (p *page) addFailedBinds(f *scan.Trace, c cleaner) {
	if f == nil || p.View.Destination.IsValid() {
		return
	}
	for i := range f.Binds {
		b := &f.Binds[i]
		row := failedBind{scan: b, Netns: c.name(b.Netns), Owner: ownerName(&b.Cgroup, c) + last(b.Last, c), Source: b.Source.String()}
		if b.Source.IsUnspecified() {
			row.Source = "any address"
		}
		p.FailedBinds = append(p.FailedBinds, row)
	}
	slices.SortStableFunc(p.FailedBinds, func(a, b failedBind) int { return cmp.Compare(b.scan.Failures, a.scan.Failures) })
}

// judgeFailedBinds finds the addresses whose binds failed.
func (p *page) judgeFailedBinds(f *scan.Trace) {
	if n := len(p.FailedBinds); n > 0 {
		worst, others := p.FailedBinds[0], ""
		if n > 1 {
			others = fmt.Sprintf(", and for %s", plural(n-1, "more client", "more clients"))
		}
		p.find(warning, bindFailing, "%s of %s for %s%s found no free port within 15 minutes%s.",
			binds(worst.scan.Failures), worst.scan.Protocol(), worst.Source, p.in(worst.Netns), others)
	}
	if f != nil && f.BindsUnattributed > 0 && len(f.Binds) > 0 {
		p.find(warning, bindFailing, "%s of addresses that are not listed failed, since the exporter started.", binds(f.BindsUnattributed))
	}
}

// failedBindTable shows the addresses whose binds failed.
func (p *page) failedBindTable(counts *scan.Trace) table {
	t := table{
		ID: "bind-failures", Title: "Failed binds",
		About: "Calls of bind() with port 0 that found no free port: EADDRINUSE. Of TCP also listen(), and of UDP connect() and sendto() with EAGAIN, of a socket that has no port. " +
			"These have no destination. What holds the ports of TCP stands at the addresses whose clients bind before they connect, that of UDP at UDP.",
		Alerts:  bindFailing,
		Columns: []column{{"Source", "SOURCE", 40, addresses}, {"Protocol", "PROTO", 7, words}, {"Namespace", "NETNS", 14, words}, {"Failed binds", "FAILED", 10, numbers}, {"Control group", "CONTROL GROUP", 0, words}},
	}
	if counts != nil && counts.BindsUnattributed > 0 {
		t.More = []finding{aside(fmt.Sprintf("The addresses of %s that failed are not listed: see --destination.limit.", binds(counts.BindsUnattributed)))}
	}
	for _, b := range p.FailedBinds {
		t.Rows = append(t.Rows, row{Cells: cells(b.Source, b.scan.Protocol(), b.Netns, strconv.FormatUint(b.scan.Failures, 10), b.Owner)})
	}
	return t
}

func binds(n uint64) string { return plural(int(n), "bind", "binds") }

type documentFailedBind struct {
	documentParty
	Protocol string `json:"protocol"`
	Source   string `json:"source_ip"`
	Failures uint64 `json:"failures"`
}

func newDocumentFailedBind(b *scan.FailedBind) documentFailedBind {
	return documentFailedBind{newDocumentParty(b.Netns, &b.Cgroup, b.Last), b.Protocol(), b.Source.String(), b.Failures}
}

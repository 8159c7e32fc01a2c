package status

import (
	"fmt"
	"strconv"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// A source is an address whose clients bind before they connect.
type source struct {
	pool           *pool.Source
	reached        advice.Reached // empty unless Certain
	advice         *advice.Advice // nil unless it is in danger
	cures          []cure
	past           *past // nil if nothing is remembered
	Netns, Address string
	Certain        bool // that most clients bind first
	shares         bool // bind() may take ports in use: its utilization is not known
}

// mayBindFirst reports whether that is possible, of a source with some ports.
func mayBindFirst(s *pool.Source) bool { return s.Ports >= 10 && 2*(s.Bound+s.MayBound) > s.Ports }

// addSources adds the sources of a namespace whose clients bind first.
func (p *page) addSources(s *scan.Snapshot, n *scan.Namespace, c cleaner) {
	if p.View.Destination.IsValid() {
		return
	}
	r := &n.TCP.Report
	for i := range r.Sources {
		if src := &r.Sources[i]; r.BoundKnown && src.BindsFirst() || mayBindFirst(src) {
			row := newSource(n, src, c)
			row.past = p.pastOf(history.OfSource(n, src), s, row.reached.Level())
			p.Sources = append(p.Sources, row)
		}
	}
}

// newSource returns a source of a namespace.
func newSource(n *scan.Namespace, s *pool.Source, c cleaner) source {
	row := source{pool: s, Netns: c.name(n.Name), Address: s.Address.String(), Certain: n.TCP.Report.BoundKnown && s.BindsFirst(), shares: n.TCP.Report.Settings.AutobindReuse}
	if row.Certain {
		row.reached = advice.ReachedSource(&n.TCP.Report, s)
		row.advice = advice.BindFirst(&n.TCP.Report, s)
		row.cures = newCures(n, row.advice, "Free ports")
	}
	return row
}

// judgeSources finds the sources in danger.
func (p *page) judgeSources() {
	for _, s := range p.Sources {
		end := "at 100% their bind() fails"
		if s.reached.Has(advice.MayShare) {
			end = "at 100% the bind() of those without SO_REUSEADDR fails"
		}
		if l := s.reached.Level(); l > calm {
			p.find(l, s.reached.Alerts(), "Clients that bind to %s before they connect use %s of its ports: %s.", s.Address, percent(s.pool.Utilization), end)
		}
	}
}

// sourceTable shows the sources whose clients bind first.
func (p *page) sourceTable(all *scan.Snapshot) table {
	t := table{
		ID: "sources", Title: "Addresses whose clients bind before they connect, or may",
		About:   "These clients share one pool for all destinations. At 100% their bind() fails. With ip_autobind_reuse=1, that depends on SO_REUSEADDR.",
		Columns: []column{{"Source", "SOURCE", 40, addresses}, {"Namespace", "NETNS", 17, words}, {"Used", "USED", 7, numbers}, {"Ports", "PORTS", 8, numbers}, {"Bound", "BOUND", 10, numbers}, {"Capacity", "CAPACITY", 10, numbers}},
	}
	more := 0
	for i := range all.Namespaces {
		more += all.Namespaces[i].TCP.Report.UnreportedSources
	}
	if more > 0 {
		t.More = []finding{aside(fmt.Sprintf("%s not listed: see --destination.limit.", plural(more, "more address is", "more addresses are")))}
	}
	for _, s := range p.Sources {
		bound := "unknown"
		if s.Certain {
			bound = strconv.Itoa(s.pool.Bound)
		}
		used := percent(s.pool.Utilization)
		if s.shares {
			used = "-"
		}
		r := row{Level: s.reached.Level(), Past: s.past, Cells: cells(
			s.Address, s.Netns, used, strconv.Itoa(s.pool.Ports), bound, strconv.Itoa(s.pool.Capacity))}
		if s.advice != nil {
			r.Details = &details{
				Key: "source " + s.Netns + " " + s.Address, Title: "Clients that bind to " + s.Address + " in " + s.Netns, Summary: plural(s.pool.Ports, "port in use", "ports in use"),
				Sentences: []string{s.advice.Diagnosis}, Cures: s.cures, Alerts: s.reached.Alerts(),
			}
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

type documentSource struct {
	Netns       string         `json:"netns"`
	Source      string         `json:"source_ip"`
	Level       string         `json:"level"`
	Utilization *float64       `json:"utilization_ratio,omitempty"`
	Ports       int            `json:"ports"`
	Capacity    int            `json:"capacity_ports"`
	Bound       *int           `json:"bound_ports,omitempty"`
	MayBound    int            `json:"bound_unknown_ports,omitempty"`
	Diagnosis   string         `json:"diagnosis,omitempty"`
	Cures       []documentCure `json:"cures,omitempty"`
	*documentPast
}

func newDocumentSource(n *scan.Namespace, s *pool.Source, past func(level) *past) documentSource {
	row := newSource(n, s, visible)
	doc := documentSource{documentPast: newDocumentPast(past(row.reached.Level()), row.reached.Level()), Netns: n.Name, Source: row.Address, Level: row.reached.Level().String(), Ports: s.Ports, Capacity: s.Capacity, MayBound: s.MayBound}
	if !n.TCP.Report.Settings.AutobindReuse {
		doc.Utilization = &s.Utilization
	}
	if row.advice != nil {
		doc.Diagnosis, doc.Cures = row.advice.Diagnosis, newDocumentCures(row.cures, row.advice)
	}
	if n.TCP.Report.BoundKnown {
		doc.Bound = &s.Bound
	}
	return doc
}

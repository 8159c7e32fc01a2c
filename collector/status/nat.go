package status

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

// A natPool is a row of the table of source NAT.
type natPool struct {
	pool      *snat.Pool
	namespace *scan.Namespace
	advice    *advice.Advice // nil unless it is in danger

	Level                            level
	Protocol, Address, Source, Netns string
	Used, Failing, Ceiling           string
	Bar                              []segment
	Clients                          []string // addresses before translation, those with most ports first
	Capacity, Held, Reusable, Free   int
	States                           []stateCount // that are not 0
	Alert, Diagnosis                 string       // empty unless it is in danger
	Cures                            []cure
	Command                          Command // shows its flows
	Enter                            string  // why there is no command
	Link                             string  // to this destination alone
}

// Key identifies the row to the script of the page.
func (n *natPool) Key() string {
	return "snat " + n.Netns + " " + n.Protocol + " " + n.Source + " " + n.Address
}

// Description says what the bar shows.
func (n *natPool) Description() string { return describe(n.Bar) }

// A conntrack is what the kernel counts of the flows of a namespace.
type conntrack struct {
	scan                                *scan.Conntrack
	Netns, Entries, Limit, Used         string
	InsertFailed, Dropped, EarlyDropped string
}

// natLegend has the kinds of segments of source NAT, as legend has those of destinations.
var natLegend = []legendEntry{
	{"open", 'o', "open", "open: established, assured"},
	{"syn-sent", 's', "unanswered", "no answer yet: syn_sent, unreplied"},
	{"closing", 'c', "closing", "closing: fin_wait, close_wait, last_ack"},
	{"time-wait", 't', "expiring", "expiring: time_wait, replied"},
	{"reusable", 'r', "reusable", "closed, and taken over by new connections"},
}

// natKindOf returns the kind of the ports in a state.
func natKindOf(s snat.State) string {
	switch s {
	case snat.Established, snat.SynRecv, snat.Assured:
		return "open"
	case snat.SynSent, snat.Unreplied:
		return "syn-sent"
	case snat.TimeWait, snat.Close, snat.SynSent2, snat.Replied:
		return "time-wait"
	default:
		return "closing"
	}
}

// addNAT adds the pools of source NAT of a namespace, and the counts of connection tracking where they
// matter.
func (p *page) addNAT(n *scan.Namespace, c cleaner) {
	pools := false
	for i := range n.NAT.Report.Pools {
		pool := &n.NAT.Report.Pools[i]
		if !p.View.Destination.IsValid() || pool.Address == p.View.Destination {
			p.NAT = append(p.NAT, newNATPool(n, pool, c))
			pools = true
		}
	}
	if t := &n.Conntrack; t.Outcome == scan.Collected && !p.View.Destination.IsValid() && n.Name != "" &&
		(pools || fillOf(t) >= 0.5 || t.Dropped+t.InsertFailed+t.EarlyDropped > 0) {
		p.Conntrack = append(p.Conntrack, newConntrack(n, c))
	}
}

func newNATPool(n *scan.Namespace, d *snat.Pool, c cleaner) *natPool {
	r := &n.NAT.Report
	row := &natPool{
		pool: d, namespace: n, Level: advice.ReachedSNAT(d).Level(),
		Protocol: string(d.Protocol), Address: d.Address.String(), Source: d.Source.String(), Netns: c.name(n.Name),
		Used: percent(d.Utilization), Failing: percent(d.SearchFailure), Ceiling: natRate(d.Ceiling),
		Capacity: r.CapacityPorts, Held: d.Held, Reusable: d.Reusable, Free: max(r.CapacityPorts-d.Held, 0),
		Link: View{Format: HTML, Destination: d.Address}.URL(),
	}
	ports := map[string]int{"reusable": d.Reusable}
	for _, s := range snat.States(d.Protocol) {
		ports[natKindOf(s)] += d.Ports[s]
		if d.Ports[s] > 0 {
			row.States = append(row.States, stateCount{s.String(), d.Ports[s]})
		}
	}
	ports["time-wait"] -= d.Reusable
	row.Bar = segments(natLegend, ports, r.CapacityPorts)
	slices.SortStableFunc(row.States, func(a, b stateCount) int { return cmp.Compare(b.Ports, a.Ports) })
	for _, client := range d.Clients {
		row.Clients = append(row.Clients, fmt.Sprintf("%v (%d)", client.Address, client.Ports))
	}
	row.advice = advice.SNAT(r, d)
	if row.advice == nil {
		return row
	}
	row.Diagnosis = row.advice.Diagnosis
	row.Alert = advice.ReachedSNAT(d).Alerts()[0]
	enter, ok := enterCommand(n)
	for _, of := range row.advice.Cures {
		row.Cures = append(row.Cures, newNATCure(of, enter, ok))
	}
	if !ok {
		row.Enter = fmt.Sprintf("Enter the network namespace with inode %d first: its path is not known, or no shell should see it.", n.Inode)
		return row
	}
	row.Command = Command{"Its flows, as root", fmt.Sprintf("%sconntrack -L -p %s --reply-dst %v --reply-src %v --reply-port-src %d",
		enter, d.Protocol, d.Source, d.Address.Addr(), d.Address.Port())}
	return row
}

func newNATCure(of advice.Cure, enter string, ok bool) cure {
	row := cure{Title: of.Title, Anchor: of.Anchor(), Sentence: of.Sentence, Condition: of.Condition}
	switch {
	case of.Then.NoPort:
		row.Gain = "Then its connections need no port."
	case of.Now.SearchFailure > 0:
		row.Gain = fmt.Sprintf("Now %s of the searches fail. Then %s.", percent(of.Now.SearchFailure), percent(of.Then.SearchFailure))
	default:
		row.Gain = fmt.Sprintf("Now %s. Then %s.", natOutlook(of.Now), natOutlook(of.Then))
	}
	if ok && of.Command != "" {
		row.Command = enter + of.Command
	}
	return row
}

// natOutlook writes how many connections a pool can have, like outlook.
func natOutlook(o advice.Outlook) string {
	if math.IsNaN(o.Ceiling) {
		return plural(o.Ports, "port", "ports")
	}
	return outlook(o)
}

// natRate writes a ceiling. It is "-" if there is none, and "?" if it is not known.
func natRate(r float64) string {
	switch {
	case math.IsInf(r, 1):
		return "-"
	case math.IsNaN(r):
		return "?"
	default:
		return rate(r)
	}
}

func newConntrack(n *scan.Namespace, c cleaner) conntrack {
	t := &n.Conntrack
	row := conntrack{scan: t, Netns: c.name(n.Name), Entries: strconv.Itoa(t.Entries), Limit: "none", Used: "-"}
	if t.Limit > 0 {
		row.Limit, row.Used = strconv.Itoa(t.Limit), percent(fillOf(t))
	}
	row.InsertFailed, row.Dropped, row.EarlyDropped = "?", "?", "?"
	if t.Counted {
		row.InsertFailed = strconv.FormatUint(t.InsertFailed, 10)
		row.Dropped, row.EarlyDropped = strconv.FormatUint(t.Dropped, 10), strconv.FormatUint(t.EarlyDropped, 10)
	}
	return row
}

// fillOf returns the tracked flows as a share of the limit, 0 without one.
func fillOf(t *scan.Conntrack) float64 {
	if t.Limit == 0 {
		return 0
	}
	return float64(t.Entries) / float64(t.Limit)
}

// judgeNAT raises the level to that of the worst pool and of the fullest table of flows. It returns sentences
// about these.
func (p *page) judgeNAT() (sentences []string) {
	inDanger := 0
	for _, n := range p.NAT {
		if n.Level > calm {
			inDanger++
			p.Level = max(p.Level, n.Level)
		}
	}
	if inDanger > 0 {
		sentences = append(sentences, fmt.Sprintf("%s of source NAT in danger: %s.", plural(inDanger, "pool", "pools"), p.NAT[0].problem()))
	}
	for _, t := range p.Conntrack {
		if l := advice.ReachedConntrack(fillOf(t.scan)).Level(); l > calm {
			p.Level = max(p.Level, l)
			where := ""
			if p.Others {
				where = " in " + t.Netns
			}
			sentences = append(sentences, fmt.Sprintf("Connection tracking%s has %s of the flows that it may have: at 100%%, packets of new connections are dropped.", where, t.Used))
		}
	}
	return sentences
}

// problem returns what is wrong with a pool.
func (n *natPool) problem() string {
	text := fmt.Sprintf("%s to %s from %s has %s of its ports in use", n.Protocol, n.Address, n.Source, n.Used)
	if advice.ReachedSNAT(n.pool).Has(advice.SearchFailure) {
		text += fmt.Sprintf(", and %s of the searches for one fail: packets are dropped", n.Failing)
	}
	return text
}

// judgeNATFailures says of which namespaces the flows could not be read.
func (p *page) judgeNATFailures(s *scan.Snapshot, c cleaner) {
	others := 0
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		err := cmp.Or(n.NAT.Err, n.Conntrack.Err)
		switch {
		case err == nil:
		case n.Name == scan.Self:
			p.raise(warning, "The flows of connection tracking could not be read: "+c.sentence(err.Error()))
		default:
			others++
		}
	}
	if others > 0 {
		p.raise(warning, fmt.Sprintf("The flows of connection tracking could not be read in %s.", plural(others, "network namespace", "network namespaces")))
	}
}

// natNote says what packets that were dropped can mean where no pool of source NAT shows why.
func natNote(n *scan.Namespace) string {
	if n.Conntrack.Entries == 0 || n.Conntrack.InsertFailed == 0 {
		return ""
	}
	dropped := plural(int(n.Conntrack.InsertFailed), "packet", "packets")
	switch {
	case n.NAT.Outcome == "": // with --snat, something is known of each network namespace that tracks flows
		return fmt.Sprintf("Ports of source NAT: connection tracking dropped %s so far, as it does if none is free. --snat shows these ports.", dropped)
	case n.NAT.Err != nil, slices.ContainsFunc(n.NAT.Report.Pools, func(p snat.Pool) bool { return p.SearchFailure > 0 }):
		return ""
	default:
		return fmt.Sprintf("Why source NAT dropped %s so far: no pool is short of ports now. They were short before, or two flows chose the same port at once, or the rule names fewer ports than --snat.port-range.", dropped)
	}
}

// worstNATFirst orders pools: by level, then by the searches that fail, then by utilization.
func worstNATFirst(a, b *natPool) int {
	return cmp.Or(
		cmp.Compare(b.Level, a.Level), cmp.Compare(b.pool.SearchFailure, a.pool.SearchFailure),
		cmp.Compare(b.pool.Utilization, a.pool.Utilization), cmp.Compare(b.Held, a.Held),
		a.pool.Address.Compare(b.pool.Address), a.pool.Source.Compare(b.pool.Source), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Netns, b.Netns),
	)
}

var (
	natColumns       = []column{{0, false}, {7, false}, {30, false}, {47, false}, {61, true}, {68, false}, {89, true}, {98, true}, {109, false}}
	conntrackColumns = []column{{0, false}, {24, true}, {35, true}, {46, true}, {53, true}, {68, true}, {79, true}, {92, false}}
)

// nat writes the tables of source NAT and connection tracking, and what helps pools in danger.
func (t *text) nat(p *page) {
	if len(p.NAT) > 0 {
		t.heading("Source NAT, worst first")
		t.row(natColumns, "PROTO", "DESTINATION", "TRANSLATED", "NETNS", "USED", "PORTS BY STATE", "FAILING", "CEILING/S")
		for _, n := range p.NAT {
			t.row(natColumns, n.Protocol, n.Address, n.Source, n.Netns, n.Used, textBar(n.Bar, natLegend), n.Failing, n.Ceiling)
		}
		t.paragraph("  ", keysOf(natLegend)+", . free")
		t.paragraph("  ", "FAILING: share of the kernel's searches for a port that find none; CEILING/S: - if closed connections are no limit")
	}
	if len(p.Conntrack) > 0 {
		t.heading("Connection tracking")
		t.row(conntrackColumns, "NETNS", "FLOWS", "LIMIT", "USED", "INSERT FAILED", "DROPPED", "EARLY DROP")
		for _, c := range p.Conntrack {
			t.row(conntrackColumns, c.Netns, c.Entries, c.Limit, c.Used, c.InsertFailed, c.Dropped, c.EarlyDropped)
		}
		t.paragraph("  ", "The last three count since the network namespace is there: packets dropped by source NAT, by all of connection tracking, and flows that gave way to new ones.")
	}
	for i, n := range p.NAT {
		if i < maxDetails && (n.Level > calm || p.View.Destination.IsValid()) {
			t.natDetails(n)
		}
	}
}

func (t *text) natDetails(n *natPool) {
	t.heading("Source NAT of " + n.Protocol + " from " + n.Source + " to " + n.Address + " in " + n.Netns)
	var states []string
	for _, s := range n.States {
		states = append(states, fmt.Sprintf("%d %s", s.Ports, s.State))
	}
	t.paragraph("  ", fmt.Sprintf("%d ports: %d held (%s), %d of them reusable, %d free.", n.Capacity, n.Held, strings.Join(states, ", "), n.Reusable, n.Free))
	t.paragraph("  ", "Held for "+strings.Join(n.Clients, ", ")+".")
	for _, sentence := range []string{n.Enter, n.Diagnosis} {
		if sentence != "" {
			t.paragraph("  ", sentence)
		}
	}
	t.cures(n.Cures)
	if n.Command.Line != "" {
		t.command("  ", n.Command.Line)
	}
}

type documentNAT struct {
	Netns         string            `json:"netns"`
	Protocol      string            `json:"protocol"`
	Source        string            `json:"source_ip"`
	Destination   string            `json:"destination_ip"`
	Port          uint16            `json:"destination_port"`
	Level         string            `json:"level"`
	Utilization   float64           `json:"utilization_ratio"`
	SearchFailure float64           `json:"search_failure_ratio"`
	Ports         map[string]int    `json:"ports"`
	Reusable      int               `json:"reusable_ports"`
	Capacity      int               `json:"capacity_ports"`
	Ceiling       *float64          `json:"ceiling_connections_per_second,omitempty"`
	Owners        []string          `json:"owners,omitempty"`
	Diagnosis     string            `json:"diagnosis,omitempty"`
	Cures         []documentNATCure `json:"cures,omitempty"`
}

type documentNATCure struct {
	Title       string   `json:"title"`
	Sentence    string   `json:"sentence"`
	Condition   string   `json:"condition,omitempty"`
	Command     string   `json:"command,omitempty"`
	Ports       int      `json:"ports"`
	PortsThen   int      `json:"ports_then"`
	Ceiling     *float64 `json:"ceiling_connections_per_second,omitempty"`
	CeilingThen *float64 `json:"ceiling_connections_per_second_then,omitempty"`
	Failure     *float64 `json:"search_failure_ratio,omitempty"`
	FailureThen *float64 `json:"search_failure_ratio_then,omitempty"`
	NoPort      bool     `json:"needs_no_port,omitempty"`
}

// A documentConntrack is what a namespace tells of connection tracking.
type documentConntrack struct {
	Entries         *int     `json:"conntrack_entries,omitempty"`
	Limit           *int     `json:"conntrack_limit_entries,omitempty"`
	InsertFailed    *uint64  `json:"conntrack_insert_failed_total,omitempty"`
	Dropped         *uint64  `json:"conntrack_dropped_total,omitempty"`
	EarlyDropped    *uint64  `json:"conntrack_early_dropped_total,omitempty"`
	MaxUtilization  *float64 `json:"snat_max_utilization_ratio,omitempty"`
	UnreportedPools *int     `json:"snat_unreported_pools,omitempty"`
	UnreportedPorts *int     `json:"snat_unreported_ports,omitempty"`
	Error           string   `json:"snat_error,omitempty"`
}

// finite returns nil for a number that JSON does not have.
func finite(f float64) *float64 {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return nil
	}
	return &f
}

func newDocumentNAT(n *natPool) documentNAT {
	d := n.pool
	doc := documentNAT{
		Netns: n.namespace.Name, Protocol: n.Protocol, Source: n.Source, Destination: d.Address.Addr().String(), Port: d.Address.Port(),
		Level: n.Level.String(), Utilization: d.Utilization, SearchFailure: d.SearchFailure, Ports: map[string]int{},
		Reusable: d.Reusable, Capacity: n.Capacity, Ceiling: finite(d.Ceiling), Owners: n.Clients, Diagnosis: n.Diagnosis,
	}
	for _, s := range snat.States(d.Protocol) {
		doc.Ports[s.String()] = d.Ports[s]
	}
	for i, c := range n.Cures {
		of := n.advice.Cures[i]
		cure := documentNATCure{
			Title: c.Title, Sentence: c.Sentence, Condition: c.Condition, Command: c.Command, Ports: of.Now.Ports, PortsThen: of.Then.Ports,
			Ceiling: finite(of.Now.Ceiling), CeilingThen: finite(of.Then.Ceiling), NoPort: of.Then.NoPort,
		}
		if of.Now.SearchFailure > 0 {
			cure.Failure, cure.FailureThen = &of.Now.SearchFailure, &of.Then.SearchFailure
		}
		doc.Cures = append(doc.Cures, cure)
	}
	return doc
}

func newDocumentConntrack(n *scan.Namespace) *documentConntrack {
	doc := &documentConntrack{}
	if t := &n.Conntrack; t.Outcome == scan.Collected {
		doc.Entries = &t.Entries
		if t.Limit > 0 {
			doc.Limit = &t.Limit
		}
		if t.Counted {
			doc.InsertFailed, doc.Dropped, doc.EarlyDropped = &t.InsertFailed, &t.Dropped, &t.EarlyDropped
		}
	}
	switch {
	case n.NAT.Err != nil:
		doc.Error = n.NAT.Err.Error()
	case n.Conntrack.Err != nil:
		doc.Error = n.Conntrack.Err.Error()
	case n.NAT.Outcome == scan.Collected:
		r := &n.NAT.Report
		doc.MaxUtilization, doc.UnreportedPools, doc.UnreportedPorts = &r.MaxUtilization, &r.UnreportedPools, &r.UnreportedPorts
	}
	return doc
}

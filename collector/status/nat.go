package status

import (
	"cmp"
	"fmt"
	"math"
	"strings"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

// A natPool is a pool of ports of source NAT, as the page shows it.
type natPool struct {
	pool      *snat.Pool
	namespace *scan.Namespace
	advice    *advice.Advice // nil unless it is in danger
	past      *past          // nil if nothing is remembered

	Level                            level
	Protocol, Address, Source, Netns string
	Used                             string
	Clients                          []string // addresses before translation, those with most ports first
	Cures                            []cure
}

// addNAT adds the pools of source NAT of a namespace.
func (p *page) addNAT(s *scan.Snapshot, n *scan.Namespace, c cleaner) {
	pools := n.NAT.Report.Listed()
	for i := range pools {
		if p.View.has(pools[i].Address) {
			row := newNATPool(n, &pools[i], c)
			row.past = p.pastOf(history.OfNAT(n, &pools[i]), s, row.Level)
			p.NAT = append(p.NAT, row)
		}
	}
}

func newNATPool(n *scan.Namespace, d *snat.Pool, c cleaner) *natPool {
	row := &natPool{
		pool: d, namespace: n, advice: advice.SNAT(&n.NAT.Report, d), Level: advice.ReachedSNAT(d).Level(),
		Protocol: string(d.Protocol), Address: d.Address.String(), Source: d.Source.String(), Netns: c.name(n.Name), Used: natPercent(d.Utilization),
	}
	for _, client := range d.Clients {
		row.Clients = append(row.Clients, fmt.Sprintf("%v (%d)", client.Address, client.Ports))
	}
	row.Cures = newCures(n, row.advice, "Ports")
	return row
}

// natPercent writes a ratio, which is "?" if it is not known.
func natPercent(ratio float64) string {
	if math.IsNaN(ratio) {
		return "?"
	}
	return percent(ratio)
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

// judgeNAT finds the worst pool that is in danger, the worst of which it is not known, and the namespaces where limits leave
// out one that is worse.
func (p *page) judgeNAT(s *scan.Snapshot, c cleaner) {
	var inDanger, notKnown, notKnownCilium []*natPool
	for _, n := range p.NAT {
		switch {
		case n.Level == calm:
		case n.Level == unknown && n.pool.Cilium:
			notKnownCilium = append(notKnownCilium, n)
		case n.Level == unknown:
			notKnown = append(notKnown, n)
		default:
			inDanger = append(inDanger, n)
		}
	}
	find := func(pools []*natPool, format string) {
		if len(pools) > 0 {
			worst := pools[0]
			p.find(worst.Level, advice.ReachedSNAT(worst.pool).Alerts(), format, plural(len(pools), "pool", "pools"), worst.problem())
		}
	}
	find(inDanger, "%s of source NAT in danger: %s.")
	find(notKnown, "%s of source NAT may be full, as --snat.port-range does not say what the rules do: %s.")
	find(notKnownCilium, "%s of source NAT may be full, as --node-ports does not say which ports Cilium has: %s.")
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		if worst := advice.ReachedUnreportedSNAT(&n.NAT.Report); n.NAT.Outcome == scan.Collected && worst.Level() > calm {
			p.find(worst.Level(), nil, "A pool of source NAT%s without series has %s of its ports in use: raise --destination.limit to have alerts name it.", p.in(c.name(n.Name)), percent(n.NAT.Report.UnreportedMaxUtilization))
		}
	}
}

// problem returns what is wrong with a pool.
func (n *natPool) problem() string {
	switch d := n.pool; {
	case d.FullBlocks != nil:
		return fmt.Sprintf("%s to %s from %s looks full within %s of ports, all of which are taken", n.Protocol, n.Address, n.Source, plural(len(d.FullBlocks), "block", "blocks"))
	case !d.Known() && d.Cilium && n.namespace.NAT.Report.CiliumFrom > 0:
		return fmt.Sprintf("%s to %s from %s has %d flows, and none of Cilium has a port below %d", n.Protocol, n.Address, n.Source, d.Held, n.namespace.NAT.Report.CiliumFrom)
	case !d.Known() && d.Cilium:
		return fmt.Sprintf("%s to %s from %s has %d of %d flows of Cilium on ports that are not above these", n.Protocol, n.Address, n.Source, d.Outside, d.Held+d.Outside)
	case !d.Known():
		return fmt.Sprintf("%s to %s from %s has %d of %d flows on ports outside it", n.Protocol, n.Address, n.Source, d.Outside, d.Held+d.Outside)
	}
	text := fmt.Sprintf("%s to %s from %s has %s of its ports in use", n.Protocol, n.Address, n.Source, n.Used)
	if advice.ReachedSNAT(n.pool).Has(advice.SearchFailure) {
		text += fmt.Sprintf(", and %s of the searches for one fail: packets are dropped", percent(n.pool.SearchFailure))
	}
	return text
}

// worstNATFirst orders pools: by level, then by the searches that fail, then by utilization.
func worstNATFirst(a, b *natPool) int {
	return cmp.Or(
		cmp.Compare(b.Level, a.Level), cmp.Compare(b.pool.SearchFailure, a.pool.SearchFailure),
		cmp.Compare(b.pool.Utilization, a.pool.Utilization), cmp.Compare(b.pool.Held+b.pool.Outside, a.pool.Held+a.pool.Outside),
		a.pool.Address.Compare(b.pool.Address), a.pool.Source.Compare(b.pool.Source), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Netns, b.Netns),
	)
}

// natKinds are the kinds of segments of source NAT.
var natKinds = legend{
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
	case snat.TimeWait, snat.Close, snat.SynSent2, snat.Replied, snat.NoConnection:
		return "time-wait"
	default:
		return "closing"
	}
}

// bar returns the bar of a pool.
func (n *natPool) bar() []segment {
	ports := map[string]int{"reusable": n.pool.Reusable}
	for _, s := range snat.States(n.pool.Protocol) {
		ports[natKindOf(s)] += n.pool.Ports[s]
	}
	ports["time-wait"] -= n.pool.Reusable
	return natKinds.bar(ports, n.pool.Capacity)
}

// natTable shows the pools of source NAT.
func (p *page) natTable(s *scan.Snapshot) table {
	t := table{
		ID: "snat", Title: "Source NAT, worst first",
		About:  "Failing: share of the searches for a port, the kernel's or Cilium's, that find none, so that the packet is dropped. Ceiling: - if closed connections are no limit, ? if it is not known.",
		Legend: natKinds,
		Columns: []column{
			{"Destination", "DESTINATION", 23, addresses}, {"Protocol", "PROTO", 7, words}, {"Translated to", "TRANSLATED", 17, addresses}, {"Namespace", "NETNS", 14, words},
			{"Ports in use", "USED", 7, bars}, {"Failing", "FAILING", 9, numbers}, {"Ceiling/s", "CEILING/S", 11, numbers},
		},
	}
	more, unlisted, ports := 0, 0, 0
	for i := range s.Namespaces {
		r := &s.Namespaces[i].NAT.Report
		more += r.UnreportedPools
		unlisted += r.UnreportedPools - len(r.Others)
		ports += r.UnreportedPorts
	}
	if more > 0 {
		t.More = []finding{aside(leftOut(more, "pool", ports, unlisted))}
	}
	for _, n := range p.NAT {
		cells := append([]cell{{Text: n.Address, Link: View{Format: HTML, Destination: n.pool.Address}.URL()}}, cells(
			n.Protocol, n.Source, n.Netns, n.Used, natPercent(n.pool.SearchFailure), natRate(n.pool.Ceiling))...)
		cells[4].Bar = n.bar()
		t.Rows = append(t.Rows, row{Level: n.Level, Cells: cells, Owners: n.Clients, Details: n.details(), Past: n.past})
	}
	return t
}

// details tell what holds the ports of a pool, what helps, and how to see it.
func (n *natPool) details() *details {
	d, capacity := n.pool, n.pool.Capacity
	ports := fmt.Sprintf("Of %d ports, flows of this pool hold %d", capacity, d.Held)
	if d.Reusable > 0 {
		ports += fmt.Sprintf(", of which new connections take over %d", d.Reusable)
	}
	more := &details{
		Key:       "snat " + n.Netns + " " + n.Protocol + " " + n.Source + " " + n.Address,
		Title:     "Source NAT of " + n.Protocol + " from " + n.Source + " to " + n.Address + " in " + n.Netns,
		Sentences: []string{fmt.Sprintf("%s. %d are free.", ports, max(capacity-d.Held, 0))},
		Owners:    "Held for", Cures: n.Cures,
	}
	if !d.Known() {
		more.Sentences = nil // the diagnosis says all that is known
	}
	var states []stateCount
	for _, s := range snat.States(d.Protocol) {
		states = append(states, stateCount{s.String(), d.Ports[s]})
	}
	more.Summary = summary(states, d.Reusable)
	if n.advice == nil {
		return more
	}
	more.Sentences = append(more.Sentences, n.advice.Diagnosis)
	more.Alerts = advice.ReachedSNAT(d).Alerts()
	if d.Cilium {
		source := n.Source
		if d.Source.Is6() {
			source = "[" + source + "]"
		}
		more.Commands = []command{{"Its flows, in the pod of Cilium's agent on this node", fmt.Sprintf("cilium-dbg bpf nat list | grep -F '%s IN %s -> %s:'", strings.ToUpper(n.Protocol), n.Address, source)}}
		return more
	}
	enter, ok := enterCommand(n.namespace)
	if !ok {
		more.Sentences = append(more.Sentences, enterFirst(n.namespace))
		return more
	}
	more.Commands = []command{{"Its flows, as root", fmt.Sprintf("%sconntrack -L -p %s --reply-dst %v --reply-src %v --reply-port-src %d",
		enter, d.Protocol, d.Source, d.Address.Addr(), d.Address.Port())}}
	return more
}

type documentNAT struct {
	Netns         string           `json:"netns"`
	Protocol      string           `json:"protocol"`
	Source        string           `json:"source_ip"`
	Destination   string           `json:"destination_ip"`
	Port          uint16           `json:"destination_port"`
	Level         string           `json:"level"`
	Utilization   *float64         `json:"utilization_ratio,omitempty"`
	SearchFailure *float64         `json:"search_failure_ratio,omitempty"`
	Ports         map[string]int   `json:"ports"`
	Outside       int              `json:"outside_ports"`
	FullBlocks    []documentRange  `json:"full_blocks,omitempty"`
	Reusable      int              `json:"reusable_ports"`
	Capacity      int              `json:"capacity_ports"`
	Cilium        bool             `json:"cilium,omitempty"`
	Ceiling       *float64         `json:"ceiling_connections_per_second,omitempty"`
	Clients       []documentClient `json:"clients,omitempty"`
	Diagnosis     string           `json:"diagnosis,omitempty"`
	Cures         []documentCure   `json:"cures,omitempty"`
	*documentPast
}

// A documentRange is a range of ports, both ends included.
type documentRange struct {
	Low  uint16 `json:"low"`
	High uint16 `json:"high"`
}

// A documentClient is an address before translation that holds ports.
type documentClient struct {
	Client string `json:"client_ip"`
	Ports  int    `json:"ports"`
}

func newDocumentNAT(n *natPool) documentNAT {
	d := n.pool
	doc := documentNAT{
		Netns: n.namespace.Name, Protocol: n.Protocol, Source: n.Source, Destination: d.Address.Addr().String(), Port: d.Address.Port(),
		Level: n.Level.String(), Utilization: finite(d.Utilization), SearchFailure: finite(d.SearchFailure), Ports: map[string]int{}, Outside: d.Outside,
		Reusable: d.Reusable, Capacity: d.Capacity, Cilium: d.Cilium, Ceiling: finite(d.Ceiling), documentPast: newDocumentPast(n.past, n.Level),
	}
	for _, r := range d.FullBlocks {
		doc.FullBlocks = append(doc.FullBlocks, documentRange{r.Low, r.High})
	}
	for _, c := range d.Clients {
		doc.Clients = append(doc.Clients, documentClient{c.Address.String(), c.Ports})
	}
	for _, s := range snat.States(d.Protocol) {
		if s != snat.NoConnection || d.Cilium {
			doc.Ports[s.String()] = d.Ports[s]
		}
	}
	if n.advice != nil {
		doc.Diagnosis, doc.Cures = n.advice.Diagnosis, newDocumentCures(n.Cures, n.advice)
	}
	return doc
}

package status

import (
	"strconv"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/scan"
)

// A overflow is the sockets in TIME_WAIT of a namespace where some connections have skipped it.
type overflow struct {
	sockets advice.TimeWaitSockets
	advice  *advice.Advice // nil unless that goes on
	reached advice.Reached
	cures   []cure
	Netns   string
}

// newTimeWait returns the sockets in TIME_WAIT of a namespace.
func newTimeWait(n *scan.Namespace, c cleaner) overflow {
	row := overflow{Netns: c.name(n.Name), sockets: timeWaitSockets(&n.TimeWait)}
	row.advice, row.reached = advice.FullTimeWait(&n.TCP.Report, row.sockets), advice.ReachedTimeWait(row.sockets)
	row.cures = newCures(n, row.advice, "Sockets")
	return row
}

// timeWaitSockets returns what advice is to know of them.
func timeWaitSockets(t *scan.TimeWait) advice.TimeWaitSockets {
	return advice.TimeWaitSockets{Sockets: t.Sockets, Limit: t.Limit, Overflows: t.Overflows, Recent: t.Recent, Window: t.Window}
}

// addTimeWait adds a namespace where connections have skipped TIME_WAIT.
func (p *page) addTimeWait(n *scan.Namespace, c cleaner) {
	if n.TimeWait.Outcome == scan.Collected && n.TimeWait.Overflows > 0 && n.TCP.Outcome == scan.Collected && !p.View.Destination.IsValid() {
		p.TimeWait = append(p.TimeWait, newTimeWait(n, c))
	}
}

// rate writes how many connections per second skip TIME_WAIT now.
func (t *overflow) rate() string {
	if t.sockets.Window == 0 {
		return "?"
	}
	return rate(float64(t.sockets.Recent) / t.sockets.Window.Seconds())
}

// judgeTimeWait finds the namespaces where that goes on.
func (p *page) judgeTimeWait() {
	for _, t := range p.TimeWait {
		now := ""
		if t.sockets.Window > 0 {
			now = ", now " + t.rate() + " per second"
		}
		if l := t.reached.Level(); l > calm {
			p.find(l, t.reached.Alerts(), "TIME_WAIT%s has %d of at most %d sockets: %s skipped it so far%s. Closes per second and ceilings do not count these.",
				p.in(t.Netns), t.sockets.Sockets, t.sockets.Limit, plural(int(t.sockets.Overflows), "connection", "connections"), now)
		}
	}
}

// timeWaitTable shows where connections have skipped TIME_WAIT.
func (p *page) timeWaitTable() table {
	t := table{
		ID: "time_wait", Title: "Connections that skipped TIME_WAIT",
		About:  "Counted since the network namespace is there: their sockets were too many for tcp_max_tw_buckets.",
		Alerts: []string{"EphemeralPortsTimeWaitOverflow"},
		Columns: []column{
			{"Namespace", "NETNS", 24, words}, {"TIME_WAIT", "TIME_WAIT", 11, numbers}, {"Limit", "LIMIT", 11, numbers},
			{"Skipped", "SKIPPED", 11, numbers}, {"Skipped/s", "SKIPPED/S", 11, numbers},
		},
	}
	for _, of := range p.TimeWait {
		r := row{Level: of.reached.Level(), Cells: cells(of.Netns, strconv.Itoa(of.sockets.Sockets), strconv.Itoa(of.sockets.Limit), strconv.FormatUint(of.sockets.Overflows, 10), of.rate())}
		if of.advice != nil {
			r.Details = &details{
				Key: "time_wait " + of.Netns, Title: "TIME_WAIT in " + of.Netns, Summary: plural(int(of.sockets.Overflows), "connection skipped it", "connections skipped it"),
				Sentences: []string{of.advice.Diagnosis}, Cures: of.cures, Alerts: of.reached.Alerts(),
			}
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

// A documentTimeWait is what a namespace tells of connections that skip TIME_WAIT.
type documentTimeWait struct {
	Level     string         `json:"time_wait_level"`
	Diagnosis string         `json:"time_wait_diagnosis,omitempty"`
	Cures     []documentCure `json:"time_wait_cures,omitempty"`
	Rate      *float64       `json:"time_wait_overflows_per_second,omitempty"`
}

// newDocumentTimeWait returns nil if nothing is known of TIME_WAIT.
func newDocumentTimeWait(n *scan.Namespace) *documentTimeWait {
	if n.TimeWait.Outcome != scan.Collected {
		return nil
	}
	row := newTimeWait(n, visible)
	doc := &documentTimeWait{Level: row.reached.Level().String()}
	if row.advice != nil {
		doc.Diagnosis, doc.Cures = row.advice.Diagnosis, newDocumentCures(row.cures, row.advice)
	}
	if t := row.sockets; t.Window > 0 {
		rate := float64(t.Recent) / t.Window.Seconds()
		doc.Rate = &rate
	}
	return doc
}

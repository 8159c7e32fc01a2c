package status

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/scan"
)

// What a change can be. Numbers beyond these are of no host.
const (
	mostLoad      = 1000.
	leastLoad     = 0.001
	mostAddresses = 1000
	mostKeepAlive = 1_000_000
)

// errChange says what a change can be.
var errChange = errors.New("must be one or more of load:N (times the load of now, such as 2 or 0.5, up to 1000), address:N (further addresses, 1 to 1000), reuse, " +
	"keep-alive:N (times as many requests on each connection, 2 to 1000000), with commas between, such as load:5,reuse")

// parseChange returns the change that is written as in the address of a view, such as load:5,reuse. The error says what is valid.
func parseChange(s string) (c advice.Change, err error) {
	said := map[string]bool{}
	for part := range strings.SplitSeq(s, ",") {
		what, number, hasNumber := strings.Cut(part, ":")
		if said[what] {
			return advice.Change{}, errChange
		}
		said[what] = true
		switch {
		case what == "load":
			c.Load, err = strconv.ParseFloat(number, 64)
			if err != nil || !(leastLoad <= c.Load && c.Load <= mostLoad) { // also NaN
				err = errChange
			}
		case what == "address":
			c.Addresses, err = wholeNumber(number, 1, mostAddresses)
		case what == "keep-alive":
			c.KeepAlive, err = wholeNumber(number, 2, mostKeepAlive)
		case what == "reuse" && !hasNumber:
			c.Reuse = true
		default:
			err = errChange
		}
		if err != nil {
			return advice.Change{}, err
		}
	}
	return c, nil
}

// wholeNumber returns a number from least to most.
func wholeNumber(s string, least, most int) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && least <= n && n <= most {
		return n, nil
	}
	return 0, errChange
}

// writeChange is the reverse of parseChange.
func writeChange(c advice.Change) string {
	var parts []string
	if c.Load != 0 {
		parts = append(parts, "load:"+strconv.FormatFloat(c.Load, 'f', -1, 64))
	}
	if c.Addresses != 0 {
		parts = append(parts, fmt.Sprintf("address:%d", c.Addresses))
	}
	if c.Reuse {
		parts = append(parts, "reuse")
	}
	if c.KeepAlive != 0 {
		parts = append(parts, fmt.Sprintf("keep-alive:%d", c.KeepAlive))
	}
	return strings.Join(parts, ",")
}

// nameChange writes a change for readers.
func nameChange(c advice.Change) string {
	var parts []string
	if c.Load != 0 {
		parts = append(parts, "load x "+strconv.FormatFloat(c.Load, 'g', 4, 64))
	}
	if c.Addresses != 0 {
		parts = append(parts, plural(c.Addresses, "address", "addresses")+" more")
	}
	if c.Reuse {
		parts = append(parts, "reuse on")
	}
	if c.KeepAlive != 0 {
		parts = append(parts, fmt.Sprintf("keep-alive %d requests", c.KeepAlive))
	}
	return strings.Join(parts, ", ")
}

// usualChanges are those that each destination is shown with.
var usualChanges = [...]advice.Change{{Load: 2}, {Load: 5}, {Addresses: 1}, {Reuse: true}, {KeepAlive: 10}}

// and returns a change with another, which comes first where both say something of the same.
func and(c, other advice.Change) advice.Change {
	return advice.Change{
		Load: cmp.Or(other.Load, c.Load), Addresses: cmp.Or(other.Addresses, c.Addresses),
		Reuse: other.Reuse || c.Reuse, KeepAlive: cmp.Or(other.KeepAlive, c.KeepAlive),
	}
}

// A whatIf is a destination with a change.
type whatIf struct {
	change advice.Change
	advice.Prediction
}

// whatIf returns a destination with a change.
func (d *destination) whatIf(c advice.Change) whatIf {
	var t advice.TimeWaitSockets
	if d.namespace.TimeWait.Outcome == scan.Collected {
		t = timeWaitSockets(&d.namespace.TimeWait)
	}
	return whatIf{c, advice.WhatIf(&d.namespace.TCP.Report, d.pool, t, d.traced.failures > 0, c)}
}

// whatIfs returns a destination with the change that the view asks for, if it does, and with this one together with each of the usual
// ones.
func (d *destination) whatIfs(asked advice.Change) (all []whatIf) {
	if asked != (advice.Change{}) {
		all = append(all, d.whatIf(asked))
	}
	for _, usual := range usualChanges {
		if c := and(asked, usual); c != asked {
			all = append(all, d.whatIf(c))
		}
	}
	return all
}

// maxWhatIf is for how many destinations of an address the changes are shown, besides in JSON.
const maxWhatIf = 10

// whatIfTables show what happens to the destinations of the view if something changes.
func (p *page) whatIfTables() (tables []table) {
	if !p.View.Destination.IsValid() {
		return nil
	}
	for i, d := range p.Destinations[:min(len(p.Destinations), maxWhatIf)] {
		tables = append(tables, p.whatIfTable(i, d))
	}
	if len(tables) == 0 && p.View.WhatIf != (advice.Change{}) {
		p.Notes = append(p.Notes, "What if is known of TCP destinations of this host that are listed, and not of source NAT or UDP.")
	}
	if n := len(p.Destinations) - len(tables); n > 0 {
		last := &tables[len(tables)-1]
		last.More = []finding{aside(fmt.Sprintf("%s such a table in the JSON only.", plural(n, "more destination has", "more destinations have")))}
	}
	return tables
}

// whatIfTable shows one of them.
func (p *page) whatIfTable(i int, d *destination) table {
	now := d.whatIf(advice.Change{})
	t := table{
		ID: fmt.Sprintf("what-if-%d", i+1), Title: "What if: " + d.Source + " to " + d.Address + p.in(d.Netns),
		About: "Predicted for the load of now, when it has gone on for a minute after the change. First limit: at how many times that load, at the earliest.",
		Columns: []column{
			{"What if", "WHAT IF", 34, words}, {"Ports in use", "USED", 10, numbers}, {"Closes/s", "CLOSES/S", 12, numbers},
			{"Ceiling/s", "CEILING/S", 13, numbers}, {"First limit", "FIRST LIMIT", 0, words},
		},
		Rows: []row{{Level: d.Level, Cells: append([]cell{{Text: "as it is now", Link: p.View.with(advice.Change{})}}, cells(d.used(), rate(d.pool.CloseRate), rate(d.pool.Ceiling), now.limit())...)}},
	}
	for _, w := range d.whatIfs(p.View.WhatIf) {
		r := row{Level: w.Level, Cells: append([]cell{{Text: nameChange(w.change), Link: p.View.with(w.change)}}, cells(w.used(), between(rate, w.Closes), between(ceiling, w.Ceiling), w.limit())...)}
		if w.change == p.View.WhatIf {
			r.Details = &details{
				Key: d.Netns + " " + d.Source + " " + d.Address + " what if", Title: "What if: " + nameChange(w.change), Summary: w.verdict(),
				Sentences: append(w.Sentences, w.Doubts...), Alerts: w.Alerts,
			}
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

// with returns the address of the view with another change.
func (v View) with(c advice.Change) string {
	v.WhatIf = c
	return v.URL()
}

// between writes the least and the most of a number.
func between(write func(float64) string, i advice.Interval) string {
	least, most := write(i.Least), write(i.Most)
	if least == most {
		return least
	}
	return least + "-" + most
}

// used writes how many of the ports will be in use, never less than at most.
func (w *whatIf) used() string {
	least, most := "full", "full"
	if w.Utilization.Least < 1 {
		least = percent(w.Utilization.Least)
	}
	if w.Utilization.Most < 1 {
		most = fmt.Sprintf("%.0f%%", min(math.Ceil(w.Utilization.Most*100), 99))
	}
	switch {
	case least == most:
		return least
	case most == "full":
		return least + "-" + most
	default:
		return strings.TrimSuffix(least, "%") + "-" + most
	}
}

// limit writes the first limit.
func (w *whatIf) limit() string {
	if math.IsInf(w.LimitAt, 1) {
		return "none"
	}
	return fmt.Sprintf("%s at x %s", w.Limit, factor(w.LimitAt))
}

// factor writes times how much load there is, never more than it is.
func factor(f float64) string {
	switch {
	case f >= 1000:
		return ">1000"
	case f >= 10:
		return strconv.FormatFloat(math.Floor(f), 'f', 0, 64)
	default:
		return strconv.FormatFloat(math.Floor(f*100)/100, 'f', 2, 64)
	}
}

// verdict says whether the ports suffice.
func (w *whatIf) verdict() string {
	load := cmp.Or(w.change.Load, 1)
	switch {
	case w.Utilization.Least >= 1:
		return "The ports do not suffice"
	case w.Utilization.Most >= 1:
		return "The ports may not suffice"
	case w.Limit == advice.LimitTimeWait && w.LimitAt <= load:
		return "The ports suffice, but TIME_WAIT may be full before, see tcp_max_tw_buckets"
	case w.Utilization.Most >= 0.5:
		return "The ports suffice, but more than half may be in use, so that connect() takes longer"
	default:
		return "The ports suffice"
	}
}

// A documentWhatIf is a destination with a change in JSON.
type documentWhatIf struct {
	Change    string           `json:"change"`
	Level     string           `json:"level"`
	Used      documentInterval `json:"utilization_ratio"`
	Closes    documentInterval `json:"closes_per_second"`
	Ceiling   documentInterval `json:"ceiling_requests_per_second"`
	Limit     string           `json:"limit,omitempty"`
	LimitAt   *float64         `json:"limit_load_factor,omitempty"`
	Sentences []string         `json:"sentences,omitempty"`
	Doubts    []string         `json:"doubts,omitempty"`
}

// A documentInterval has what a number is at least and at most.
type documentInterval struct {
	Least *float64 `json:"least,omitempty"`
	Most  *float64 `json:"most,omitempty"`
}

// newDocumentWhatIfs returns these with the sentences of the change that was asked for.
func newDocumentWhatIfs(all []whatIf, asked advice.Change) (docs []documentWhatIf) {
	interval := func(i advice.Interval) documentInterval { return documentInterval{finite(i.Least), finite(i.Most)} }
	for _, w := range all {
		doc := documentWhatIf{
			Change: writeChange(w.change), Level: w.Level.String(), Used: interval(w.Utilization), Closes: interval(w.Closes), Ceiling: interval(w.Ceiling),
			Limit: string(w.Limit), LimitAt: finite(w.LimitAt),
		}
		if w.change == asked {
			doc.Sentences, doc.Doubts = w.Sentences, w.Doubts
		}
		docs = append(docs, doc)
	}
	return docs
}

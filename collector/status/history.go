package status

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/scan"
)

// A past is what the page shows of the last 15 minutes of a pool.
type past struct {
	history  history.Past
	readings [history.Steps]history.Reading
	steps    [history.Steps]step

	Ports string // the least and the most that were in use
	Since string // since when it is as badly off as it is; empty if it is not, or if nobody knows
}

// A step of a past is drawn if it is known.
type step struct {
	known         bool
	least, utmost float64 // utilization, and what that is at most
}

// maxHeld is for how many steps a reading stands at most, if another one follows: for somewhat more than a minute.
const maxHeld = 5

// pastOf returns the past of a pool that is on this level. It is nil if nothing is remembered.
func (p *page) pastOf(id history.ID, s *scan.Snapshot, l level) *past {
	of, ok := p.History.Of(id, s)
	if !ok {
		return nil
	}
	past := &past{history: of, readings: of.Readings()}
	past.hold()
	past.countPorts()
	past.Since = sinceWords(of, s.Time, l)
	return past
}

// hold sets the steps. Between scans that are a minute apart, a reading stands until the next one. Where nobody read for longer, or
// where that failed, nothing is known.
func (p *past) hold() {
	next := len(p.readings)
	for i, r := range slices.Backward(p.readings[:]) {
		if r.OK {
			until := next
			if next-i > maxHeld {
				until = i + 1
			}
			for j := i; j < until; j++ {
				p.steps[j] = step{true, r.Utilization, r.Possible}
			}
		}
		if r.OK || r.Failed {
			next = i
		}
	}
}

// countPorts sets Ports.
func (p *past) countPorts() {
	least, most, more := math.MaxInt, 0, ""
	for _, r := range p.readings {
		if r.OK {
			least, most = min(least, r.Ports), max(most, r.Ports)
			if r.Possible >= r.Utilization+0.01 {
				more = " or more"
			}
		}
	}
	if p.Ports = plural(most, "port", "ports") + more; least < most {
		p.Ports = fmt.Sprintf("%d-%s", least, p.Ports)
	}
}

// sinceWords says since when a pool is on a level, and if it was in danger for longer, since when that is.
func sinceWords(p history.Past, now time.Time, l level) string {
	since, ok := p.Since(l)
	if !ok {
		return ""
	}
	text := l.String() + " since " + clock(since, now)
	switch {
	case since.Start:
		text += " (start of the exporter)"
	case since.Gaps:
		text += " (with gaps)"
	}
	if danger, _ := p.Since(warning); danger.Time.Before(since.Time.Add(-time.Minute)) {
		text += ", in danger since " + clock(danger, now)
	}
	return text
}

// clock writes the time of a since, with its day if that may be another one.
func clock(s history.Since, now time.Time) string {
	layout := "15:04 MST"
	if now.Sub(s.Time) > 12*time.Hour {
		layout = "2006-01-02 15:04 MST"
	}
	text := s.Time.UTC().Format(layout)
	if s.Earlier {
		text = "at least " + text
	}
	return text
}

// sentence says since when the pool is as badly off as it is, behind another sentence.
func (p *past) sentence() string {
	if p == nil || p.Since == "" {
		return ""
	}
	return " The pool has been " + p.Since + "."
}

// Area returns the path of an area from 0 to what is known at least: a step is 1 wide, and all ports are 100 high.
func (p *past) Area() string { return p.path(func(s step) float64 { return s.least }) }

// MostArea is Area of what utilization is at most. It is empty if that is known.
func (p *past) MostArea() string {
	if !slices.ContainsFunc(p.steps[:], func(s step) bool { return s.utmost > s.least }) {
		return ""
	}
	return p.path(func(s step) float64 { return s.utmost })
}

// KnownArea has full height wherever something is known.
func (p *past) KnownArea() string { return p.path(func(step) float64 { return 1 }) }

// path draws steps in the path data of SVG 1.1 section 8.3. Their height is rounded up, so that no port in use looks like none.
func (p *past) path(height func(step) float64) string {
	var b strings.Builder
	open, at := false, 0 // the height in percent of the area that is being drawn
	for i, s := range p.steps {
		top := int(math.Ceil(100 * height(s)))
		switch {
		case !s.known && open:
			fmt.Fprintf(&b, "H%dV100Z", i)
			open = false
		case s.known && !open:
			fmt.Fprintf(&b, "M%d 100V%d", i, 100-top)
			open, at = true, top
		case s.known && top != at:
			fmt.Fprintf(&b, "H%dV%d", i, 100-top)
			at = top
		}
	}
	if open {
		fmt.Fprintf(&b, "H%dV100Z", history.Steps)
	}
	return b.String()
}

// Width returns how wide paths are.
func (p *past) Width() int { return history.Steps }

// Description says what the areas show.
func (p *past) Description() string {
	const perMinute = int(time.Minute / history.Step)
	var parts []string
	for _, minutes := range []int{14, 10, 5, 0} {
		s, when := p.steps[history.Steps-1-minutes*perMinute], fmt.Sprintf("%d min ago", minutes)
		if minutes == 0 {
			when = "now"
		}
		used := "not read"
		if s.known {
			used = percentRange(s.least, s.utmost)
		}
		parts = append(parts, used+" "+when)
	}
	worst, unread := step{}, 0
	for _, s := range p.steps {
		if s.utmost > worst.utmost {
			worst = s
		}
		if !s.known {
			unread++
		}
	}
	text := "Ports in use: " + strings.Join(parts, ", ") + "; the most was " + percentRange(worst.least, worst.utmost)
	if unread > 0 {
		text += fmt.Sprintf("; not read for %s", seconds(float64(unread)*history.Step.Seconds()))
	}
	return text
}

// percentRange writes a ratio that is known, or what it is at least and at most.
func percentRange(least, utmost float64) string {
	from, to := percent(least), percent(utmost)
	if utmost <= least || from == to {
		return from
	}
	return strings.TrimSuffix(from, "%") + "-" + to
}

// signs draw a past in text, from few ports to all, and last what is not known.
type signs struct {
	levels  []rune
	unknown rune
}

var (
	blocks = signs{[]rune("▁▂▃▄▅▆▇█"), '·'}
	digits = signs{[]rune("0123456789"), '-'}
)

// signsOf returns the signs for a view.
func signsOf(v View) signs {
	if v.ASCII {
		return digits
	}
	return blocks
}

// perSign is how many steps a sign of text is about.
const perSign = 2

// draw draws the worst end of what is known.
func (p *past) draw(s signs) string {
	var b strings.Builder
	for i := 0; i < len(p.steps); i += perSign {
		sign := s.unknown
		worst := -1.
		for _, of := range p.steps[i : i+perSign] {
			if of.known {
				worst = max(worst, of.utmost)
			}
		}
		if worst >= 0 {
			sign = s.levels[min(int(worst*float64(len(s.levels))), len(s.levels)-1)]
		}
		b.WriteRune(sign)
	}
	return b.String()
}

// legend says what the signs mean.
func (s signs) legend() string {
	return fmt.Sprintf("Below each pool the last 15 minutes, %g s a sign, at the most: from %c few to %c all ports in use, %c not read; and the least and the most ports.",
		perSign*history.Step.Seconds(), s.levels[0], s.levels[len(s.levels)-1], s.unknown)
}

// HasPast reports whether something is remembered of a row.
func (t table) HasPast() bool {
	for _, r := range t.Rows {
		if r.Past != nil {
			return true
		}
	}
	return false
}

// past writes the line of a past below its row.
func (t *text) past(p *past) {
	words := p.Ports
	if p.Since != "" {
		words += ", " + p.Since
	}
	const indent = "    "
	signs := indent + p.draw(t.signs) + "  "
	used := len(indent) + history.Steps/perSign + 2
	// In a line of its own if it has no room beside the signs.
	if used+len(words) <= t.width {
		t.line(signs + words)
		return
	}
	t.line(signs)
	t.paragraph(indent, words)
}

// A documentPast is what JSON has of the last 15 minutes of a pool.
type documentPast struct {
	History []documentReading `json:"history,omitempty"`
	Since   *time.Time        `json:"level_since,omitempty"`
	AtLeast bool              `json:"level_since_at_least,omitempty"`
	Gaps    bool              `json:"level_since_gaps,omitempty"`
}

// A documentReading is the worst of what scans have read in a time.
type documentReading struct {
	Time        time.Time `json:"time"`
	Ports       int       `json:"used_ports"`
	Utilization float64   `json:"utilization_ratio"`
	Possible    *float64  `json:"possible_utilization_ratio,omitempty"`
}

func newDocumentPast(p *past, l level) *documentPast {
	if p == nil {
		return nil
	}
	doc := &documentPast{}
	for _, r := range p.readings {
		if r.OK {
			doc.History = append(doc.History, documentReading{r.Time.UTC().Truncate(time.Second), r.Ports, round(r.Utilization), above(round(r.Possible), round(r.Utilization))})
		}
	}
	if since, ok := p.history.Since(l); ok {
		at := since.Time.UTC().Truncate(time.Second)
		doc.Since, doc.AtLeast, doc.Gaps = &at, since.Earlier, since.Gaps
	}
	return doc
}

// round leaves out digits that are noise: one port is more than 1e-5 of all.
func round(ratio float64) float64 { return math.Round(1e5*ratio) / 1e5 }

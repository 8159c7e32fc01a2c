package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A table shows the pools of one subject, or what is known of all of them. HTML and text draw all tables
// alike.
type table struct {
	ID, Title string
	About     string   // what readers must know of all rows; may be empty
	Alerts    []string // whose chapters of the runbook are about all rows
	Legend    legend   // of the bars, if there are any
	Columns   []column
	Rows      []row
	More      []finding // about rows that are left out
	Folded    folded    // further rows, of which only names are shown
}

// Rest returns how many columns a row leaves out.
func (t table) Rest(r row) int { return len(t.Columns) - len(r.Cells) }

// A column of a table has a name in HTML and a shorter one in text.
type column struct {
	Name, Short string
	Width       int // in text, with the two blanks to the next column
	Kind        columnKind
}

// A columnKind says what the cells of a column are.
type columnKind int

// The kinds of columns.
const (
	words     columnKind = iota
	addresses            // do not break between digits
	numbers              // stand to the right
	bars                 // numbers, each with a bar
)

// Is reports whether a column is of the kind with that name.
func (c column) Is(name string) bool {
	return name == [...]string{"words", "addresses", "numbers", "bars"}[c.Kind]
}

// A row of a table.
type row struct {
	Level   level
	Cells   []cell
	Owners  []string // of what the row shows
	Err     string   // why further cells are not known
	Details *details // nil if there are none
	Past    *past    // nil if nothing is remembered
}

// A cell of a row. Link leads to a view of the row alone.
type cell struct {
	Text, Link string
	Bar        []segment
	Over       bool // the number is a danger
}

// cells returns cells with these texts.
func cells(texts ...string) []cell {
	all := make([]cell, len(texts))
	for i, text := range texts {
		all[i].Text = text
	}
	return all
}

// folded are names that HTML shows on demand.
type folded struct {
	Summary string
	Names   []string
}

// details tell more of a row.
type details struct {
	Key       string // of the row, for the script of the page
	Title     string
	Summary   string
	Sentences []string
	Owners    string // what the owners of the row have to do with it; empty if the sentences say it
	Cures     []cure
	Alerts    []string // whose chapters of the runbook apply
	Commands  []command
}

// A stateCount is how many ports are in a state.
type stateCount struct {
	State string
	Ports int
}

// summary writes how many ports are in each state, most first.
func summary(states []stateCount, reusable int) string {
	slices.SortStableFunc(states, func(a, b stateCount) int { return cmp.Compare(b.Ports, a.Ports) })
	var parts []string
	for _, s := range states {
		if s.Ports > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", s.Ports, s.State))
		}
	}
	text := strings.Join(parts, ", ")
	if reusable > 0 {
		text += fmt.Sprintf(", %d of them reusable", reusable)
	}
	return text
}

// A segment is a part of a bar, in percent of the capacity.
type segment struct {
	Kind        string // name of a kind of the legend, and of a class in the stylesheet
	Left, Width float64
}

// A legend has the kinds of segments in their order.
type legend []kind

// A kind of segments has a letter in the text.
type kind struct {
	Name           string
	Letter         byte
	Short, Meaning string
}

// letter returns the letter of a kind that is in the legend.
func (l legend) letter(name string) byte {
	return l[slices.IndexFunc(l, func(k kind) bool { return k.Name == name })].Letter
}

// bar returns a bar of the ports of each kind. It never passes 100: a dump is not atomic.
func (l legend) bar(ports map[string]int, capacity int) []segment {
	if capacity == 0 {
		return nil
	}
	var bar []segment
	from := 0.
	for _, k := range l {
		width := min(100*float64(ports[k.Name])/float64(capacity), 100-from)
		if width > 0 {
			bar = append(bar, segment{k.Name, from, width})
			from += width
		}
	}
	return bar
}

// Description says what the bar of a cell shows.
func (c cell) Description() string {
	var parts []string
	for _, s := range c.Bar {
		parts = append(parts, fmt.Sprintf("%s %s", percent(s.Width/100), s.Kind))
	}
	return cmp.Or(strings.Join(parts, ", "), "no ports")
}

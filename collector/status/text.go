package status

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"ephemeral_port_exporter/collector/scan"
)

// How many columns the lines have at most, except what commands cannot be broken into.
const (
	textWidth    = 120 // unless the view says less
	minTextWidth = 40
)

// newText returns a page as plain text, which is ASCII without a past.
func newText(p *page) string {
	t := &text{signs: signsOf(p.View), width: max(min(cmp.Or(p.View.Columns, textWidth), textWidth), minTextWidth)}
	headline := p.Headline()
	t.paragraph("", p.Host+": "+headline.String())
	t.commands("     ", headline.Command, headline.Undo)
	for _, f := range p.Problems() {
		t.paragraph("  ", f.String())
		t.commands("     ", f.Command, f.Undo)
	}
	t.line(p.Time.UTC().Format("2006-01-02 15:04:05 MST"))
	for i := range p.Tables {
		t.table(&p.Tables[i], p.View.Destination.IsValid())
	}
	if len(p.Settings) > 0 {
		t.heading("Settings of this host")
		for _, setting := range p.Settings {
			t.hanging(fmt.Sprintf("%-26s%-14s", setting.Name, setting.Value), setting.Meaning)
		}
		t.paragraph("  ", p.AboutSettings().String())
	}
	if p.View.Port == 0 {
		t.modes(p)
	}
	if len(p.Notes) > 0 {
		t.heading("Not in these numbers")
		t.list(p.Notes)
	}
	return t.b.String()
}

// maxDetails is how many rows of a table are shown with details.
const maxDetails = 3

// table writes a table, and details of the worst rows in danger, or of the worst rows.
func (t *text) table(of *table, always bool) {
	t.heading(of.Title)
	narrow := of.width() > t.width
	columns, lines := of.lines(narrow) // the first has names
	places := t.lay(columns, lines, narrow)
	for i, line := range lines {
		if len(of.Rows) > 0 {
			t.row(places, line...)
		}
		if i == 0 {
			continue
		}
		r := of.Rows[i-1]
		if r.Err != "" {
			t.paragraph("    ", r.Err)
		}
		if r.Details == nil && len(r.Owners) > 0 {
			t.paragraph("    ", strings.Join(r.Owners, ", "))
		}
		if r.Past != nil {
			t.past(r.Past)
		}
	}
	for _, more := range of.More {
		t.paragraph("  ", more.String())
	}
	if of.Legend != nil && len(of.Rows) > 0 {
		t.paragraph("  ", of.Legend.String())
	}
	if of.HasPast() {
		t.paragraph("  ", t.signs.legend())
	}
	if of.About != "" && len(of.Rows) > 0 {
		t.paragraph("  ", finding{Sentence: of.About, Alerts: of.Alerts}.String())
	}
	for i, r := range of.Rows {
		if r.Details != nil && i < maxDetails && (r.Level > calm || always) {
			t.details(&r)
		}
	}
}

// String writes a finding.
func (f finding) String() string {
	if len(f.Alerts) == 0 {
		return f.Sentence
	}
	return f.Sentence + " " + runbookOf(f.Alerts)
}

// runbookOf names the chapters of the runbook.
func runbookOf(alerts []string) string { return "See " + strings.Join(alerts, ", ") + "." }

// String says what the letters of bars mean.
func (l legend) String() string {
	var keys []string
	for _, k := range l {
		keys = append(keys, string(k.Letter)+" "+k.Short)
	}
	return strings.Join(append(keys, ". free"), ", ")
}

// details writes what more is known of a row.
func (t *text) details(r *row) {
	d := r.Details
	t.heading(d.Title)
	t.paragraph("  ", d.Summary+".")
	if d.Owners != "" && len(r.Owners) > 0 {
		t.paragraph("  ", d.Owners+" "+strings.Join(r.Owners, ", ")+".")
	}
	for _, sentence := range d.Sentences {
		t.paragraph("  ", sentence)
	}
	t.cures(d.Cures)
	if len(d.Alerts) > 0 {
		t.paragraph("  ", runbookOf(d.Alerts))
	}
	for _, c := range d.Commands {
		t.command("  ", c.Line)
	}
}

// cures writes cures, best first.
func (t *text) cures(cures []cure) {
	for i, c := range cures {
		cure := fmt.Sprintf("%d. %s. %s", i+1, c.Title, c.Sentence)
		if c.Condition != "" {
			cure += " If: " + c.Condition
		}
		t.paragraph("  ", cure)
		if len(c.Gains) > 0 {
			t.row(gainPlaces, "", "", "NOW", "THEN")
		}
		for _, g := range c.Gains {
			t.row(gainPlaces, "", g.Of, g.Now, g.Then)
		}
		t.commands("     ", c.Command, c.Undo)
	}
}

// commands writes the command of a change and the one that undoes it, if there are any.
func (t *text) commands(indent, command, undo string) {
	if command != "" {
		t.command(indent, command)
	}
	if undo != "" {
		t.line(indent + "To undo it:")
		t.command(indent, undo)
	}
}

// gainPlaces are indented.
var gainPlaces = []place{{}, {start: 5}, {end: 25, right: true}, {end: 37, right: true}}

// command writes a command, in several lines where it is long.
func (t *text) command(indent, command string) {
	for _, line := range wrap(command, t.width-len(indent)) {
		t.line(indent + line)
	}
}

// barWidth is how many characters the bars of a table have, if it is not narrow.
const barWidth = 20

// draw draws a bar of so many characters. Each part of it that is not 0 has at least one letter while there is room.
func (l legend) draw(bar []segment, width int) string {
	var b strings.Builder
	for _, s := range bar {
		until := int(math.Round((s.Left + s.Width) * float64(width) / 100))
		for range max(until-b.Len(), 1) {
			b.WriteByte(l.letter(s.Kind))
		}
	}
	line := b.String()[:min(b.Len(), width)]
	return line + strings.Repeat(".", width-len(line))
}

// A text is a text in the making.
type text struct {
	b     strings.Builder
	width int
	signs signs
}

// width returns how many columns the lines of a table have, if no cell is wider than its column. A column without a width
// is as wide as its cells.
func (t *table) width() int {
	width := -2
	for i, c := range t.Columns {
		width += c.Width
		if c.Kind == bars {
			width += barWidth + 1
		}
		if c.Width == 0 {
			widest := 0
			for _, r := range t.Rows {
				if i < len(r.Cells) {
					widest = max(widest, len(r.Cells[i].Text)+2)
				}
			}
			width += widest
		}
	}
	return width
}

// lines returns the columns of a table with those of bars, and its header and rows. If it is narrow, bars are short, and the
// namespaces are left out if all are our own.
func (t *table) lines(narrow bool) (columns []column, lines [][]string) {
	width, title := barWidth, "PORTS BY STATE"
	if narrow {
		width, title = barWidth/2, "BY STATE"
	}
	lines = make([][]string, 1+len(t.Rows))
	for i, c := range t.Columns {
		other := func(r row) bool { return i < len(r.Cells) && r.Cells[i].Text != scan.Self }
		if narrow && i > 0 && c.Name == "Namespace" && !slices.ContainsFunc(t.Rows, other) {
			continue
		}
		columns = append(columns, c)
		lines[0] = append(lines[0], c.Short)
		if c.Kind == bars {
			columns = append(columns, column{Width: width + 1})
			lines[0] = append(lines[0], title)
		}
		for j, r := range t.Rows {
			if i >= len(r.Cells) {
				continue
			}
			lines[j+1] = append(lines[j+1], r.Cells[i].Text)
			if c.Kind == bars {
				lines[j+1] = append(lines[j+1], t.Legend.draw(r.Cells[i].Bar, width))
			}
		}
	}
	return columns, lines
}

// A place is where the cells of a column stand in their line.
type place struct {
	start, end int
	right      bool // cells end at end
	breaks     bool // the column begins a new line
}

// lay returns the places of columns. If they are narrow, they are as wide as their cells, without those that have no room in
// the full width either, and columns that have no room begin a new line.
func (t *text) lay(columns []column, lines [][]string, narrow bool) []place {
	places := make([]place, len(columns))
	offset := 0
	for i, c := range columns {
		width := c.Width
		if narrow {
			width = len(c.Short) + 2
			for _, line := range lines {
				if i < len(line) && (len(line[i])+2 <= c.Width || c.Width == 0) {
					width = max(width, len(line[i])+2)
				}
			}
		}
		places[i].right, places[i].breaks = c.Kind >= numbers, narrow && offset > 0 && offset+width-2 > t.width
		if places[i].breaks {
			offset = 4
		}
		places[i].start, places[i].end = offset, offset+width-2
		offset += width
	}
	return places
}

// row writes cells below each other. Where a cell is too wide, the next goes on in a new line.
func (t *text) row(places []place, cells ...string) {
	line := ""
	for i, cell := range cells {
		p := places[i]
		start := p.start
		if p.right {
			start = max(start, p.end-len(cell))
		}
		if line != "" && (p.breaks || len(line) >= start || start+len(cell) > t.width) {
			t.line(line)
			line = ""
		}
		start = max(min(start, t.width-len(cell)), 0)
		line += strings.Repeat(" ", start-len(line)) + cell
	}
	t.line(line)
}

// heading writes a line that begins a section.
func (t *text) heading(s string) {
	t.line("")
	t.paragraph("", s)
}

// paragraph writes sentences in lines that begin with an indent.
func (t *text) paragraph(indent, s string) { t.hanging(indent, s) }

// hanging writes sentences behind a label. Further lines have an indent of its width. A label that takes most of the line has one of its own.
func (t *text) hanging(label, s string) {
	if 2*len(label) > t.width {
		t.line(label)
		label = "    "
	}
	line, indent := label, strings.Repeat(" ", len(label))
	for word := range strings.FieldsSeq(s) {
		for len(word) > t.width-len(indent) {
			if len(line) > len(indent) {
				t.line(line)
				line = indent
			}
			cut := t.width - len(indent)
			t.line(line + word[:cut])
			line, word = indent, word[cut:]
		}
		if len(line) > len(indent) {
			if len(line)+1+len(word) > t.width {
				t.line(line)
				line = indent
			} else {
				line += " "
			}
		}
		line += word
	}
	t.line(line)
}

// list writes items, each as a paragraph.
func (t *text) list(items []string) {
	for _, item := range items {
		t.paragraph("  ", item)
	}
}

// line writes a line, without blanks at its end.
func (t *text) line(s string) {
	t.b.WriteString(strings.TrimRight(s, " "))
	t.b.WriteByte('\n')
}

package status

import (
	"fmt"
	"math"
	"strings"
)

// textWidth is how many columns the lines have at most, except what commands cannot be broken into.
const textWidth = 120

// newText returns a page as plain ASCII text.
func newText(p *page) string {
	t := &text{}
	t.paragraph("", p.Host+": "+p.Headline().String())
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
			t.row([]column{{Width: 26}, {Width: 14}, {}}, setting.Name, setting.Value, setting.Meaning)
		}
		t.paragraph("  ", p.AboutSettings().String())
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
	var columns []column
	var header []string
	for _, c := range of.Columns {
		columns, header = append(columns, c), append(header, c.Short)
		if c.Kind == bars {
			columns, header = append(columns, column{Width: barWidth + 1}), append(header, "PORTS BY STATE")
		}
	}
	if len(of.Rows) > 0 {
		t.row(columns, header...)
	}
	for _, r := range of.Rows {
		var cells []string
		for i, cell := range r.Cells {
			cells = append(cells, cell.Text)
			if of.Columns[i].Kind == bars {
				cells = append(cells, of.Legend.draw(cell.Bar))
			}
		}
		t.row(columns, cells...)
		if r.Err != "" {
			t.paragraph("    ", r.Err)
		}
		if r.Details == nil && len(r.Owners) > 0 {
			t.paragraph("    ", strings.Join(r.Owners, ", "))
		}
	}
	for _, more := range of.More {
		t.paragraph("  ", more.String())
	}
	if of.Legend != nil && len(of.Rows) > 0 {
		t.paragraph("  ", of.Legend.String())
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
	if len(r.Owners) > 0 {
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
			t.row(gainColumns, "", "", "NOW", "THEN")
		}
		for _, g := range c.Gains {
			t.row(gainColumns, "", g.Of, g.Now, g.Then)
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

// gainColumns are indented.
var gainColumns = []column{{Width: 5}, {Width: 12}, {Width: 10, Kind: numbers}, {Width: 12, Kind: numbers}}

// command writes a command, in several lines where it is long.
func (t *text) command(indent, command string) {
	for _, line := range wrap(command, textWidth-len(indent)) {
		t.line(indent + line)
	}
}

// barWidth is how many characters the bar of a destination has.
const barWidth = 20

// draw draws a bar. Each part of it that is not 0 has at least one letter while there is room.
func (l legend) draw(bar []segment) string {
	var b strings.Builder
	for _, s := range bar {
		until := int(math.Round((s.Left + s.Width) * barWidth / 100))
		for range max(until-b.Len(), 1) {
			b.WriteByte(l.letter(s.Kind))
		}
	}
	line := b.String()[:min(b.Len(), barWidth)]
	return line + strings.Repeat(".", barWidth-len(line))
}

// A text is a text in the making.
type text struct{ b strings.Builder }

// row writes cells below each other. Where a cell is too wide, the next goes on in a new line.
func (t *text) row(columns []column, cells ...string) {
	line, offset := "", 0
	for i, cell := range cells {
		start := offset
		offset += columns[i].Width
		if columns[i].Kind >= numbers {
			start = max(start, offset-2-len(cell))
		}
		if line != "" && (len(line) >= start || start+len(cell) > textWidth) {
			t.line(line)
			line = ""
		}
		start = max(min(start, textWidth-len(cell)), 0)
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
func (t *text) paragraph(indent, s string) {
	line := indent
	for word := range strings.FieldsSeq(s) {
		for len(word) > textWidth-len(indent) {
			if line != indent {
				t.line(line)
				line = indent
			}
			cut := textWidth - len(indent)
			t.line(indent + word[:cut])
			word = word[cut:]
		}
		if len(line) > len(indent) {
			if len(line)+1+len(word) > textWidth {
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

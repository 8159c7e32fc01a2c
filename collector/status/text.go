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
	t.paragraph("", p.Host+": "+p.Headline)
	t.list(p.Problems)
	t.line(p.Time.UTC().Format("2006-01-02 15:04:05 MST"))
	t.destinations(p)
	t.nat(p)
	if len(p.Failed) > 0 {
		t.heading("Failed connects of pools that hold few ports now")
		t.row(failedColumns, "DESTINATION", "SOURCE", "NETNS", "FAILED", "CONTROL GROUP")
		for _, f := range p.Failed {
			t.row(failedColumns, f.Address, f.Source, f.Netns, f.Failures, f.Owner)
		}
	}
	if len(p.Sources) > 0 {
		t.heading("Addresses whose clients bind before they connect: one pool for all destinations")
		t.row(sourceColumns, "SOURCE", "NETNS", "USED", "PORTS", "BOUND", "CAPACITY")
		for _, src := range p.Sources {
			t.row(sourceColumns, src.Address, src.Netns, src.Used, src.Ports, src.Bound, src.Capacity)
		}
	}
	t.udp(p)
	if len(p.Namespaces) > 0 {
		t.namespaces(p)
	}
	if len(p.Settings) > 0 {
		t.heading("Settings of this host")
		for _, setting := range p.Settings {
			t.row(settingColumns, setting.Name, setting.Value, setting.Meaning)
		}
	}
	if len(p.LeftOut) > 0 {
		t.heading("Left out by limits")
		t.list(p.LeftOut)
	}
	if len(p.Notes) > 0 {
		t.heading("Not in these numbers")
		t.list(p.Notes)
	}
	return t.b.String()
}

// maxDetails is how many destinations are shown with what holds their ports.
const maxDetails = 3

// destinations writes the table of destinations, and details of those in danger.
func (t *text) destinations(p *page) {
	if len(p.Destinations) == 0 {
		return
	}
	t.heading("Destinations, worst first")
	header := []string{"DESTINATION", "SOURCE", "NETNS", "USED", "PORTS BY STATE", "CLOSES/S", "CEILING/S", "FULL IN", ""}
	if p.Counts {
		header[8] = "FAILED"
	}
	t.row(destinationColumns, header...)
	for _, d := range p.Destinations {
		t.row(destinationColumns, d.Address, d.Source, d.Netns, d.Used, textBar(d.Bar, legend), d.Closes, d.Ceiling, d.Forecast, d.Failures)
	}
	t.paragraph("  ", keysOf(legend)+", . free")
	t.paragraph("  ", "FULL IN: until no port is free at the present rate of closes; - if the ports suffice")

	for i, d := range p.Destinations {
		if i < maxDetails && (d.Level > calm || len(p.Destinations) == 1) {
			t.details(d)
		}
	}
}

// keysOf says what the letters of a bar mean.
func keysOf(legend []legendEntry) string {
	var keys []string
	for _, l := range legend {
		keys = append(keys, string(l.Letter)+" "+l.Short)
	}
	return strings.Join(keys, ", ")
}

// details writes what holds the ports of a destination, and commands that show it.
func (t *text) details(d *destination) {
	t.heading(d.Source + " to " + d.Address + " in " + d.Netns)
	var states []string
	for _, s := range d.States {
		states = append(states, fmt.Sprintf("%d %s", s.Ports, s.State))
	}
	t.paragraph("  ", fmt.Sprintf("%d ports: %d held (%s), %d of them reusable, %d bound by others, %d free.",
		d.Capacity, d.Held, strings.Join(states, ", "), d.Reusable, d.BoundByOther, d.Free))
	if len(d.Owners) > 0 {
		t.paragraph("  ", "Held by "+strings.Join(d.Owners, ", ")+".")
	}
	for _, sentence := range []string{d.NoOwner, d.Timestamps, d.Enter} {
		if sentence != "" {
			t.paragraph("  ", sentence)
		}
	}
	if d.Diagnosis != "" {
		t.paragraph("  ", d.Diagnosis)
	}
	t.cures(d.Cures)
	for _, c := range d.Commands {
		t.command("  ", c.Line)
	}
}

// cures writes cures, best first.
func (t *text) cures(cures []cure) {
	for i, c := range cures {
		cure := fmt.Sprintf("%d. %s. %s %s", i+1, c.Title, c.Sentence, c.Gain)
		if c.Condition != "" {
			cure += " If: " + c.Condition
		}
		t.paragraph("  ", cure)
		if c.Command != "" {
			t.command("     ", c.Command)
		}
	}
}

// command writes a command, in several lines where it is long.
func (t *text) command(indent, command string) {
	for _, line := range wrap(command, textWidth-len(indent)) {
		t.line(indent + line)
	}
}

// barWidth is how many characters the bar of a destination has.
const barWidth = 20

// textBar draws a bar. Each part of it that is not 0 has at least one letter while
// there is room.
func textBar(bar []segment, legend []legendEntry) string {
	var b strings.Builder
	for _, s := range bar {
		until := int(math.Round((s.Left + s.Width) * barWidth / 100))
		for range max(until-b.Len(), 1) {
			b.WriteByte(entryOf(s.Kind, legend).Letter)
		}
	}
	line := b.String()[:min(b.Len(), barWidth)]
	return line + strings.Repeat(".", barWidth-len(line))
}

// namespaces writes those that were watched, and how many there are of each outcome.
func (t *text) namespaces(p *page) {
	t.heading("Network namespaces: " + p.Outcomes)
	t.row(namespaceColumns, "NETNS", "OUTCOME", "WORST", "CAPACITY", "RANGE", "TIME_WAIT")
	for _, n := range p.Namespaces {
		t.row(namespaceColumns, n.Name, n.Outcome, n.Used, n.Capacity, n.Range, n.TimeWait)
		for _, more := range []string{n.Owner, n.Err} {
			if more != "" {
				t.paragraph("    ", more)
			}
		}
	}
}

// A text is a text in the making.
type text struct{ b strings.Builder }

// A column of a table begins at an offset.
type column struct {
	offset int
	right  bool // aligned to the right, up to the next offset less two
}

var (
	destinationColumns = []column{{0, false}, {23, false}, {40, false}, {54, true}, {61, false}, {82, true}, {92, true}, {103, true}, {111, true}, {122, false}}
	failedColumns      = []column{{0, false}, {23, false}, {40, false}, {54, true}, {64, false}}
	sourceColumns      = []column{{0, false}, {40, false}, {57, true}, {64, true}, {72, true}, {82, true}, {92, false}}
	namespaceColumns   = []column{{0, false}, {24, false}, {35, true}, {42, true}, {52, false}, {66, true}, {77, false}}
	settingColumns     = []column{{0, false}, {26, false}, {40, false}}
)

// row writes cells below each other. Where a cell is too wide, the next goes on in a new line.
func (t *text) row(columns []column, cells ...string) {
	line := ""
	for i, cell := range cells {
		start := columns[i].offset
		if columns[i].right {
			start = max(start, columns[i+1].offset-2-len(cell))
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

package status

import (
	"slices"

	"ephemeral_port_exporter/collector/pool"
)

// A segment is a part of the bar of a destination, in percent of the capacity. The segments up to the
// one of the ports bound by others are the utilization; the reusable ones follow.
type segment struct {
	Kind        string // name of a legend entry, and of a class in the stylesheet
	Left, Width float64
}

// A legendEntry is a kind of segments, with its letter in the text.
type legendEntry struct {
	Kind           string
	Letter         byte
	Short, Meaning string
}

// legend has the kinds of segments of destinations in their order.
var legend = []legendEntry{
	{"open", 'o', "open", "open: established"},
	{"syn-sent", 's', "syn_sent", "syn_sent: the destination has not answered yet"},
	{"close-wait", 'w', "close_wait", "close_wait: the application has not closed"},
	{"closing", 'c', "closing", "closing: fin_wait, last_ack, closing"},
	{"time-wait", 't', "time_wait", "time_wait"},
	{"bound", 'b', "bound by others", "bound by other clients"},
	{"reusable", 'r', "reusable", "time_wait that connect() may take over"},
}

// entryOf returns the entry of a kind that is in the legend.
func entryOf(kind string, legend []legendEntry) legendEntry {
	return legend[slices.IndexFunc(legend, func(l legendEntry) bool { return l.Kind == kind })]
}

// kindOf returns the kind of the ports in a state.
func kindOf(s pool.State) string {
	switch s {
	case pool.Established, pool.SynRecv:
		return "open"
	case pool.SynSent:
		return "syn-sent"
	case pool.CloseWait:
		return "close-wait"
	case pool.TimeWait:
		return "time-wait"
	default:
		return "closing"
	}
}

// newBar returns the bar of a destination. It never passes 100: a dump is not atomic.
func newBar(d *pool.Destination, capacity int) []segment {
	if capacity == 0 {
		return nil
	}
	ports := map[string]int{"bound": d.BoundByOthers, "reusable": d.Reusable}
	for i, state := range pool.States {
		ports[kindOf(state)] += d.Ports[i]
	}
	ports["time-wait"] -= d.Reusable
	return segments(legend, ports, capacity)
}

// segments returns a bar of the ports of each kind.
func segments(legend []legendEntry, ports map[string]int, capacity int) []segment {
	var bar []segment
	left := 0.
	for _, l := range legend {
		width := min(100*float64(ports[l.Kind])/float64(capacity), 100-left)
		if width > 0 {
			bar = append(bar, segment{l.Kind, left, width})
			left += width
		}
	}
	return bar
}

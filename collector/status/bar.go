package status

import "ephemeral_port_exporter/collector/pool"

// A segment is a part of the bar of a destination, in percent of the capacity. The segments up to the
// one of the ports bound by others are the utilization; the reusable ones follow.
type segment struct {
	Kind        string // name of a legend entry, and of a class in the stylesheet
	Left, Width float64
}

// legend has the kinds of segments in their order, each with its letter in the text.
var legend = []struct {
	Kind           string
	Letter         byte
	Short, Meaning string
}{
	{"open", 'o', "open", "open: established"},
	{"syn-sent", 's', "syn_sent", "syn_sent: the destination has not answered yet"},
	{"close-wait", 'w', "close_wait", "close_wait: the application has not closed"},
	{"closing", 'c', "closing", "closing: fin_wait, last_ack, closing"},
	{"time-wait", 't', "time_wait", "time_wait"},
	{"bound", 'b', "bound by others", "bound by other clients"},
	{"reusable", 'r', "reusable", "time_wait that connect() may take over"},
}

// letterOf returns the letter of a kind.
func letterOf(kind string) byte {
	for _, l := range legend {
		if l.Kind == kind {
			return l.Letter
		}
	}
	return '?'
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

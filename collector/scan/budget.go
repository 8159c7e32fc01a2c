package scan

import "time"

// A part is a part of a scan that takes time. They are in the order in which the time is spent: that of need.
type part int

const (
	tcpPart     part = iota // TCP sockets of our own namespace
	udpPart                 // its UDP sockets, if they are many
	natPart                 // its flows, with Config.SNAT and if it tracks any
	surveyPart              // how many sockets and flows other namespaces have
	socketsPart             // sockets of those that have many, by turns
	flowsPart               // flows of those that track many, by turns
	parts
)

// minShare is 1 / the share of the time that a part keeps for each later one.
const minShare = 8

// A budget divides the time of a scan, or of one turn in it, in the order of the parts. A part has all the time that
// is left, except for an eighth of the whole for each later part that has something to do. So parts
// that have nothing to do take no time from others, and one that does not end leaves each of the others its eighth.
//
// Within these, one question takes half of the time that is left at most: whether peers use timestamps, what a trial
// told, how many sockets all namespaces have, and the turn of one namespace. What all leave over is for names:
// commands and control groups.
type budget struct {
	start, end time.Time
	due        [parts]bool // the parts that have something to do
}

// newBudget returns a budget of the time from now to end in which no part has anything to do.
func newBudget(end time.Time) *budget { return &budget{start: time.Now(), end: end} }

// until returns when a part must end.
func (b *budget) until(p part) time.Time {
	later := 0
	for _, due := range b.due[p+1:] {
		if due {
			later++
		}
	}
	return b.end.Add(-b.end.Sub(b.start) / minShare * time.Duration(later))
}

// half returns when half of the time from now to end is over.
func half(end time.Time) time.Time {
	now := time.Now()
	return now.Add(end.Sub(now) / 2)
}

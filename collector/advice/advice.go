// Package advice says of the pools of all kinds, from their reports, which are in danger, what holds their
// ports, and what to change. Each cure has a prediction. It is pure: it does no I/O and keeps nothing.
package advice

import (
	"fmt"
	"slices"
	"strings"
)

// Advice says what is wrong with a pool and what to change.
type Advice struct {
	Diagnosis string
	Cures     []Cure // best first; only those that help
}

// A Cure is a change that lets a pool have more connections. The runbook has a chapter with
// the same Title.
type Cure struct {
	Title     string
	Sentence  string  // what to do, or what it does
	N         int     // the number in the Sentence: how many more requests or addresses; 0 if there is none
	Now, Then Outlook // Then is a prediction
	Command   string  // does it, or finds what to change; a line for a shell in the namespace; may be empty
	Undo      string  // restores the sysctls that the Command changes, or that are to be changed; may be empty
	Condition string  // of the prediction; may be empty
	Requests  bool    // the ceilings of Now and Then are of requests; that of closed connections stays
}

// Anchor returns the anchor of the chapter in the runbook.
func (c Cure) Anchor() string { return strings.ToLower(strings.ReplaceAll(c.Title, " ", "-")) }

// helps reports whether the gain is 1% or more, or fewer searches fail. That of no Cure is not.
func (c Cure) helps() bool {
	return c.Then.NoPort || c.Then.SearchFailure < c.Now.SearchFailure ||
		100*c.Then.Ports >= 101*c.Now.Ports && c.Then.Ports > 0 || c.Then.Ceiling >= 1.01*c.Now.Ceiling && c.Then.Ceiling > c.Now.Ceiling
}

// An Outlook is how many connections a pool can have.
type Outlook struct {
	// Ports is how many it can have at the same time. Of UDP, it is how many more sockets get a port.
	Ports int

	// Ceiling is how many per second this host can close first; infinite if ports are no limit. Of source
	// NAT, these are connections that are over within moments, and it is NaN if the timeouts of connection
	// tracking are not known. UDP has none: a closed socket frees its port at once.
	Ceiling float64

	// SearchFailure is the share of the searches for a port of source NAT that fail, if the cure is about
	// these; else 0.
	SearchFailure float64

	// NoPort is set if connections need no port.
	NoPort bool
}

// A cure is about what has 1 / mainShare of the demand or more.
const mainShare = 5

// helpful returns the cures that help. The last one comes only after others.
func helpful(last Cure, cures ...Cure) []Cure {
	cures = slices.DeleteFunc(cures, func(c Cure) bool { return !c.helps() })
	if len(cures) > 0 && last.helps() {
		cures = append(cures, last)
	}
	return cures
}

// perSecond writes a rate.
func perSecond(rate float64) string {
	if rate < 10 {
		return fmt.Sprintf("%.1f", rate)
	}
	return fmt.Sprintf("%.0f", rate)
}

// someOf writes the first words of a list.
func someOf(words []string) string {
	const most = 10
	if len(words) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), len(words)-most)
	}
	return strings.Join(words, ", ")
}

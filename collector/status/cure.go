package status

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/scan"
)

// A cure is a change that helps a pool.
type cure struct {
	Title, Anchor, Sentence, Condition string
	Gains                              []gain
	Command, Undo                      string // empty if the namespace cannot be entered
}

// A gain is a number before and after a change.
type gain struct{ Of, Now, Then string }

// newCures returns cures of a pool, whose ports have that name.
func newCures(n *scan.Namespace, a *advice.Advice, ports string) (cures []cure) {
	if a == nil {
		return nil
	}
	for _, of := range a.Cures {
		row := cure{Title: of.Title, Anchor: of.Anchor(), Sentence: of.Sentence, Condition: of.Condition, Gains: gainsOf(of, ports)}
		row.Command, row.Undo = inside(n, of.Command), inside(n, of.Undo)
		if n.Name != scan.Self && strings.Contains(of.Command, "sysctl -w") {
			row.Sentence += " The next container or pod has the old setting: set it there too."
		}
		if of.Then.NoPort {
			row.Sentence += " Then its connections need no port."
		}
		cures = append(cures, row)
	}
	return cures
}

// gainsOf returns what a cure changes.
func gainsOf(of advice.Cure, ports string) []gain {
	switch {
	case of.Then.NoPort:
		return nil
	case of.Now.SearchFailure > 0:
		return []gain{{"Failing", percent(of.Now.SearchFailure), percent(of.Then.SearchFailure)}}
	}
	gains := []gain{{ports, strconv.Itoa(of.Now.Ports), strconv.Itoa(of.Then.Ports)}}
	if hasCeiling(of) {
		name := "Ceiling/s"
		if of.Requests {
			name = "Requests/s"
		}
		gains = append(gains, gain{name, ceiling(of.Now.Ceiling), ceiling(of.Then.Ceiling)})
	}
	return slices.DeleteFunc(gains, func(g gain) bool { return g.Now == g.Then })
}

// hasCeiling reports whether connections per second have a limit that is known. UDP has none.
func hasCeiling(of advice.Cure) bool {
	return !math.IsNaN(of.Now.Ceiling) && !math.IsNaN(of.Then.Ceiling) && max(of.Now.Ceiling, of.Then.Ceiling) > 0
}

// ceiling writes a ceiling.
func ceiling(r float64) string {
	if math.IsInf(r, 1) {
		return "no limit"
	}
	return rate(r)
}

// A documentCure is a cure in JSON.
type documentCure struct {
	Title     string          `json:"title"`
	Sentence  string          `json:"sentence"`
	Condition string          `json:"condition,omitempty"`
	Command   string          `json:"command,omitempty"`
	Undo      string          `json:"undo,omitempty"`
	Now       documentOutlook `json:"now"`
	Then      documentOutlook `json:"then"`
	NoPort    bool            `json:"needs_no_port,omitempty"`
}

type documentOutlook struct {
	Ports         int      `json:"ports"`
	Ceiling       *float64 `json:"ceiling_per_second,omitempty"`
	Requests      *float64 `json:"requests_per_second,omitempty"`
	SearchFailure *float64 `json:"search_failure_ratio,omitempty"`
}

func newDocumentCures(cures []cure, a *advice.Advice) (docs []documentCure) {
	for i, c := range cures {
		of := a.Cures[i]
		doc := documentCure{
			Title: c.Title, Sentence: c.Sentence, Condition: c.Condition, Command: c.Command, Undo: c.Undo,
			Now: documentOutlook{Ports: of.Now.Ports}, Then: documentOutlook{Ports: of.Then.Ports}, NoPort: of.Then.NoPort,
		}
		switch {
		case !hasCeiling(of):
		case of.Requests:
			doc.Now.Requests, doc.Then.Requests = finite(of.Now.Ceiling), finite(of.Then.Ceiling)
		default:
			doc.Now.Ceiling, doc.Then.Ceiling = finite(of.Now.Ceiling), finite(of.Then.Ceiling)
		}
		if of.Now.SearchFailure > 0 {
			doc.Now.SearchFailure, doc.Then.SearchFailure = &of.Now.SearchFailure, &of.Then.SearchFailure
		}
		docs = append(docs, doc)
	}
	return docs
}

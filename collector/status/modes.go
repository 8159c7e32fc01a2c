package status

import (
	"fmt"
	"slices"
	"strings"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// Modes say which optional modes of the exporter are on.
type Modes struct {
	Namespaces         scan.Scope // ScopeSelf and empty are off
	Exact, SNAT, Trace bool
}

// on returns the flags of the modes that are on.
func (m Modes) on() (flags []string) {
	if m.othersOn() {
		flags = append(flags, "--namespaces="+string(m.Namespaces))
	}
	for _, mode := range []struct {
		flag string
		on   bool
	}{{"--exact", m.Exact}, {"--snat", m.SNAT}, {"--trace", m.Trace}} {
		if mode.on {
			flags = append(flags, mode.flag)
		}
	}
	return flags
}

// othersOn reports whether other network namespaces are read.
func (m Modes) othersOn() bool { return m.Namespaces != "" && m.Namespaces != scan.ScopeSelf }

// A hint says what a mode that is off would add on this host. Chapter is its title in the document about modes.
type hint struct {
	Flag, Sentence, Chapter string
}

// Path returns where the server has the chapter.
func (h hint) Path() string {
	return documentPath("modes.md") + "#" + strings.ReplaceAll(strings.ToLower(h.Chapter), " ", "-")
}

// ModesOn says which modes are on, before the hints.
func (p *page) ModesOn() string {
	on := p.Modes.on()
	switch {
	case len(on) > 0 && len(p.Hints) > 0:
		return "On: " + strings.Join(on, ", ") + ". What would help here too:"
	case len(on) > 0:
		return "On: " + strings.Join(on, ", ") + "."
	case len(p.Hints) == 0:
		return "None is on, and as far as can be seen none would add anything here."
	default:
		return "None is on. What would help here:"
	}
}

const (
	// manyElsewhere is how many TCP sockets elsewhere matter, as those without a port are among them.
	manyElsewhere = 100

	// fewerElsewhere is which share of our own sockets they are then at least.
	fewerElsewhere = 0.1
)

// addHints adds what the modes that are off would add. In a view, it is what matters to its destination.
func (p *page) addHints(s *scan.Snapshot) {
	m := p.Modes
	add := func(flag, chapter, format string, args ...any) {
		p.Hints = append(p.Hints, hint{flag, fmt.Sprintf(format, args...), chapter})
	}
	whole, self := !p.View.Destination.IsValid(), &s.Namespaces[0]
	if n := s.Elsewhere; whole && !m.othersOn() && n >= manyElsewhere && float64(n) >= fewerElsewhere*float64(self.TCP.Report.Sockets) {
		add("--namespaces=all", "Network namespaces", "shows the ports of other network namespaces, such as those of containers and pods. %d TCP sockets of this host are there, or have no port.", n)
	}
	if n := p.doubtful(); n > 0 && !m.Exact {
		add("--exact", "Exact", "tells how many ports are in use where that is not sure now: of %s.", plural(n, "pool", "pools"))
	}
	if whole && !m.SNAT {
		flows := 0
		for i := range s.Namespaces {
			flows += s.Namespaces[i].Conntrack.Entries
		}
		switch {
		case self.Cilium.Found:
			add("--snat", "Source NAT", "judges the ports of source NAT. Cilium runs here: the ports that it masquerades with show nowhere else.")
		case flows > 0:
			add("--snat", "Source NAT", "shows the ports of source NAT. %s tracked here, and may have a translated source.", plural(flows, "flow is", "flows are"))
		}
	}
	if !m.Trace {
		if what := p.untraced(); what != "" {
			add("--trace", "Trace", "%s", what)
		}
	}
	owned := func(d *destination) bool { return len(d.pool.Owners) > 0 }
	if s.Cgroups == nil && slices.ContainsFunc(p.Destinations, owned) {
		add("--path.cgroup", "Owners", "names the services and containers that hold ports, if it is where the host's cgroup2 file system is mounted. None is at the place that it has now.")
	}
}

// doubtful returns of how many pools it is not sure how many ports are in use.
func (p *page) doubtful() (n int) {
	for _, d := range p.Destinations {
		if d.pool.PossibleUtilization >= d.pool.Utilization+0.01 {
			n++
		}
	}
	for i := range p.Sources {
		if !p.Sources[i].Certain {
			n++
		}
	}
	return n
}

// untraced says what nobody has counted of the pools in danger. It is empty if none is.
func (p *page) untraced() string {
	inDanger := slices.ContainsFunc(p.Sources, func(s source) bool { return s.reached.Level() > calm }) ||
		slices.ContainsFunc(p.UDP, func(u *udpPool) bool { return u.Level > calm }) || len(p.Bound) > 0
	timeWait, of := 0, "" // the most of one destination
	for _, d := range p.Destinations {
		if d.Level == calm {
			continue
		}
		inDanger = true
		if n := d.pool.Ports[slices.Index(pool.States[:], tcpstate.TimeWait)]; n > timeWait && 2*n > d.pool.Held {
			timeWait, of = n, d.Address
		}
	}
	switch {
	case timeWait > 0:
		return fmt.Sprintf("counts the connects that fail, and names who closes the connections that hold ports in TIME_WAIT, %d to %s.", timeWait, of)
	case inDanger:
		return "counts the connects and binds that fail because no port is free, and names who makes them."
	default:
		return ""
	}
}

// modes writes which modes are on, and what others would add.
func (t *text) modes(p *page) {
	t.heading("Modes of the exporter")
	t.paragraph("  ", p.ModesOn())
	for _, h := range p.Hints {
		t.paragraph("  ", h.Flag+" "+h.Sentence+" See "+h.Path()+".")
	}
}

// documentModes are the modes that are on, and what others would add.
type documentModes struct {
	On    []string       `json:"on"`
	Hints []documentHint `json:"hints"`
}

type documentHint struct {
	Flag     string `json:"flag"`
	Sentence string `json:"sentence"`
	Path     string `json:"path"`
}

func newDocumentModes(p *page) documentModes {
	doc := documentModes{On: append([]string{}, p.Modes.on()...), Hints: []documentHint{}}
	for _, h := range p.Hints {
		doc.Hints = append(doc.Hints, documentHint{h.Flag, h.Flag + " " + h.Sentence, h.Path()})
	}
	return doc
}

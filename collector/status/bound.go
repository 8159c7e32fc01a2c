package status

import (
	"fmt"
	"slices"
	"strconv"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/scan"
)

// A bound is the ports of a namespace that are lost to every plain connect(), because sockets got many of them by bind().
type bound struct {
	namespace *scan.Namespace
	reached   advice.Reached
	advice    *advice.Advice
	owners    []scan.Owner

	Level  level
	Netns  string
	Owners []string
	Cures  []cure
}

// addBound adds the bound ports of a namespace, if these are many. In a view they are left out where the destination is
// in other namespaces.
func (p *page) addBound(s *scan.Snapshot, n *scan.Namespace, c cleaner) {
	r := &n.TCP.Report
	reached := advice.ReachedBound(r)
	if reached.Level() == calm || p.elsewhere(s, n) {
		return
	}
	owners := s.Resolve(r.BoundOwners)
	b := &bound{
		namespace: n, reached: reached, advice: advice.Bound(r), owners: owners, Level: reached.Level(), Netns: c.name(n.Name), Owners: ownerNames(owners, c),
	}
	b.Cures = newCures(n, b.advice, "Free ports")
	p.Bound = append(p.Bound, b)
}

// elsewhere reports whether the destination of the view is in other namespaces, and not in this one.
func (p *page) elsewhere(s *scan.Snapshot, n *scan.Namespace) bool {
	return !p.View.shows(n) && slices.ContainsFunc(s.Namespaces, func(other scan.Namespace) bool { return other.TCP.Err == nil && p.View.shows(&other) })
}

// judgeBound finds the namespaces whose ports are bound. They come before destinations of the same level: these lack the
// bound ports too.
func (p *page) judgeBound() {
	for _, b := range p.Bound {
		r := &b.namespace.TCP.Report
		of := fmt.Sprintf("%d of %d ports are bound", r.BoundPorts, r.CapacityPorts)
		if !r.BoundExact {
			of += ", to judge by how they were taken; --exact is sure"
		}
		which := "this namespace"
		if p.Others {
			which = b.Netns
		}
		switch {
		case r.BoundPorts >= r.CapacityPorts:
			p.find(b.Level, b.reached.Alerts(), "Every plain connect() of %s fails: %s.", which, of)
		case b.Level == exhausted:
			p.find(b.Level, b.reached.Alerts(), "Every plain connect() of %s fails, or can fail at any moment: %s.", which, of)
		default:
			p.find(b.Level, b.reached.Alerts(), "%s of the ports of %s are lost to every plain connect(), whatever its destination: %s.", percent(float64(r.BoundPorts)/float64(r.CapacityPorts)), which, of)
		}
	}
}

// boundTable shows the namespaces whose ports are bound.
func (p *page) boundTable() table {
	t := table{
		ID: "bound", Title: "Ports that bind() has taken from every plain connect()",
		Columns: []column{{"Namespace", "NETNS", 40, words}, {"Bound", "BOUND", 10, numbers}, {"Capacity", "CAPACITY", 10, numbers}, {"Used", "USED", 7, numbers}},
	}
	for _, b := range p.Bound {
		r := &b.namespace.TCP.Report
		t.Rows = append(t.Rows, row{
			Level: b.Level, Owners: b.Owners, Details: b.details(),
			Cells: cells(b.Netns, strconv.Itoa(r.BoundPorts), strconv.Itoa(r.CapacityPorts), percent(float64(r.BoundPorts)/float64(r.CapacityPorts))),
		})
	}
	return t
}

// maxBoundSources is how many addresses are named of those that sockets have bound to.
const maxBoundSources = 3

// details tell who has bound the ports, and what helps.
func (b *bound) details() *details {
	r := &b.namespace.TCP.Report
	more := &details{
		Key: "bound " + b.Netns, Title: "Bound ports of " + b.Netns, Summary: fmt.Sprintf("%d of %d ports are bound", r.BoundPorts, r.CapacityPorts),
		Sentences: []string{b.advice.Diagnosis}, Owners: "Bound by", Cures: b.Cures, Alerts: b.reached.Alerts(),
	}
	enter, ok := enterCommand(b.namespace)
	if !ok {
		more.Sentences = append(more.Sentences, enterFirst(b.namespace))
	}
	sources := advice.BoundSources(r)
	for _, s := range sources[:min(len(sources), maxBoundSources)] {
		more.Sentences = append(more.Sentences, fmt.Sprintf("%d of these are bound on %s.", s.Bound, s.Address))
		if ok {
			ports := r.Settings.PortRange
			more.Commands = append(more.Commands, command{"Who holds ports on " + s.Address.String() + ", as root", fmt.Sprintf(
				`%sss -Htanp src %s sport ge :%d sport le :%d | grep -o 'users:(("[^"]*",pid=[0-9]*' | sort | uniq -c`, enter, filterAddress(s.Address), ports.Low, ports.High)})
		}
	}
	return more
}

type documentBound struct {
	Netns     string                `json:"netns"`
	Level     string                `json:"level"`
	Bound     int                   `json:"bound_ports"`
	Capacity  int                   `json:"capacity_ports"`
	Sources   []documentBoundSource `json:"sources,omitempty"`
	Owners    []documentOwner       `json:"owners,omitempty"`
	Diagnosis string                `json:"diagnosis"`
	Cures     []documentCure        `json:"cures,omitempty"`
}

type documentBoundSource struct {
	Source string `json:"source_ip"`
	Bound  int    `json:"bound_ports"`
}

func newDocumentBound(b *bound) documentBound {
	r := &b.namespace.TCP.Report
	doc := documentBound{
		Netns: b.namespace.Name, Level: b.Level.String(), Bound: r.BoundPorts, Capacity: r.CapacityPorts,
		Owners: newDocumentOwners(b.owners), Diagnosis: b.advice.Diagnosis, Cures: newDocumentCures(b.Cures, b.advice),
	}
	for _, s := range advice.BoundSources(r) {
		doc.Sources = append(doc.Sources, documentBoundSource{s.Address.String(), s.Bound})
	}
	return doc
}

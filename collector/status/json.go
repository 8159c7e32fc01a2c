package status

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf16"

	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/scan"
)

// A document is the JSON form of a page. reference.md documents its fields, and a test compares. Names
// are those of the metrics; a field that is not known is absent. Names of the kernel are whole here:
// other programs compare them.
type document struct {
	Host         string                `json:"host"`
	Version      string                `json:"version"`
	Revision     string                `json:"revision"`
	Time         time.Time             `json:"time"`
	Level        string                `json:"level"`
	Headline     string                `json:"headline"`
	Problems     []string              `json:"problems"`
	Bound        []documentBound       `json:"bound,omitempty"`
	Destinations []documentDestination `json:"destinations"`
	Sources      []documentSource      `json:"sources"`
	UDP          []documentUDP         `json:"udp,omitempty"`
	NAT          []documentNAT         `json:"snat,omitempty"`
	Namespaces   []documentNamespace   `json:"namespaces"`
	Failed       []documentFailed      `json:"connect_failures,omitempty"`
	Unattributed *uint64               `json:"connect_failures_unattributed,omitempty"`
	Port         *documentPort         `json:"port,omitempty"`
	FailedBinds  []documentFailedBind  `json:"bind_failures,omitempty"`
	Modes        *documentModes        `json:"modes,omitempty"`

	UnattributedBinds *uint64 `json:"bind_failures_unattributed,omitempty"`

	Closes             []documentClosed `json:"closes,omitempty"`
	UnattributedCloses *uint64          `json:"closes_unattributed,omitempty"`
	RecentSeconds      *float64         `json:"recent_seconds,omitempty"`
}

// writeJSON writes a document. It is ASCII: terminals show it as it is.
func writeJSON(w io.Writer, d document) error {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fmt.Errorf("status: encode JSON: %w", err)
	}
	_, err = io.WriteString(w, asciiJSON(joinReadings(b))+"\n")
	return err
}

// joinReadings writes each documentReading of indented JSON in one line: there can be very many. No other object begins with a time, and
// strings of JSON have no line breaks.
func joinReadings(b []byte) []byte {
	joined := make([]byte, 0, len(b))
	for {
		before, after, ok := bytes.Cut(b, []byte("{\n"))
		joined = append(joined, before...)
		if !ok {
			return joined
		}
		joined, b = append(joined, '{'), after
		fields := bytes.TrimLeft(after, " ")
		if !bytes.HasPrefix(fields, []byte(`"time": `)) {
			joined = append(joined, '\n')
			continue
		}
		fields, b, _ = bytes.Cut(fields, []byte("}"))
		for line := range bytes.Lines(fields) {
			joined = append(append(joined, ' '), bytes.Trim(line, " \n")...)
		}
		joined = append(joined, '}')
	}
}

// asciiJSON writes all characters that are not ASCII as in RFC 8259 section 7. In JSON, these are in
// strings only.
func asciiJSON(b []byte) string {
	var out strings.Builder
	for _, r := range string(b) {
		if r < 0x7f {
			out.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	return out.String()
}

// document returns what all documents of pages have.
func (p *page) document(info Info) document {
	d := document{
		Host: info.Host, Version: info.Version, Revision: info.Revision, Time: p.Time.UTC(),
		Level: p.Level().String(), Headline: p.Headline().Sentence, Problems: []string{},
		Destinations: []documentDestination{}, Sources: []documentSource{}, Namespaces: []documentNamespace{},
	}
	for _, f := range p.Problems() {
		d.Problems = append(d.Problems, f.Sentence)
	}
	return d
}

func newDocument(s *scan.Snapshot, info Info, v View) document {
	p := newPage(s, info, v, visible)
	d := p.document(info)
	modes := newDocumentModes(p)
	d.Modes = &modes
	for _, row := range p.Bound {
		d.Bound = append(d.Bound, newDocumentBound(row))
	}
	for _, row := range p.Destinations {
		doc := newDocumentDestination(row, p.Counts)
		if v.Destination.IsValid() {
			doc.WhatIf = newDocumentWhatIfs(row.whatIfs(v.WhatIf), v.WhatIf)
		}
		d.Destinations = append(d.Destinations, doc)
	}
	for _, row := range p.UDP {
		d.UDP = append(d.UDP, newDocumentUDP(row))
	}
	for _, row := range p.NAT {
		d.NAT = append(d.NAT, newDocumentNAT(row))
	}
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		if !v.shows(n) {
			continue
		}
		d.Namespaces = append(d.Namespaces, newDocumentNamespace(n))
		if v.Destination.IsValid() {
			continue
		}
		for j := range n.TCP.Report.Sources {
			source := &n.TCP.Report.Sources[j]
			past := func(l level) *past { return p.pastOf(history.OfSource(n, source), s, l) }
			d.Sources = append(d.Sources, newDocumentSource(n, source, past))
		}
	}
	if f := s.Trace; f != nil && f.Err == nil {
		d.Unattributed = &f.Unattributed
		recent := f.Window.Seconds()
		d.RecentSeconds = &recent
		for i := range f.Pools {
			if v.showsTraced(f.Pools[i].Destination) {
				d.Failed = append(d.Failed, newDocumentFailed(&f.Pools[i]))
			}
		}
		if f.BindsCounted {
			d.UnattributedBinds = &f.BindsUnattributed
		}
		if f.ClosesCounted {
			d.UnattributedCloses = &f.ClosesUnattributed
		}
		for i := range f.Closes {
			if v.showsTraced(f.Closes[i].Destination) {
				d.Closes = append(d.Closes, newDocumentClosed(&f.Closes[i]))
			}
		}
		for _, b := range p.FailedBinds {
			d.FailedBinds = append(d.FailedBinds, newDocumentFailedBind(b.scan))
		}
	}
	return d
}

// A documentOwner is a control group that holds ports.
type documentOwner struct {
	Cgroup      string `json:"cgroup"`
	PodUID      string `json:"pod_uid,omitempty"`
	Pod         string `json:"pod,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
	Ports       int    `json:"ports"`
}

func newDocumentOwners(owners []scan.Owner) (docs []documentOwner) {
	for _, o := range owners {
		docs = append(docs, documentOwner{o.Path, o.PodUID, o.Pod, o.ContainerID, o.Ports})
	}
	return docs
}

// above returns a number that is more than the least that it can be; else nil.
func above(f, least float64) *float64 {
	if f <= least {
		return nil
	}
	return &f
}

// finite returns nil for a number that JSON does not have.
func finite(f float64) *float64 {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return nil
	}
	return &f
}

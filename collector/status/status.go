package status

import (
	"fmt"
	"html/template"
	"io"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/scan"
)

// Info is about the exporter, not about its host's ports.
type Info struct {
	Host        string // name of the host
	Version     string
	Revision    string // of the source, from which it was built
	MetricsPath string
	Modes       Modes
	History     *history.History // of all Snapshots that are drawn; nil if nothing is remembered
}

// A Status draws Snapshots.
type Status struct {
	info Info
	page *template.Template
}

// New returns a Status.
func New(info Info) *Status { return &Status{info: info, page: parse(pageTemplate)} }

// Write draws a Snapshot. The error is that of w, unless it wraps one of an encoder.
func (s *Status) Write(w io.Writer, snapshot *scan.Snapshot, v View) error {
	if v.Format == JSON {
		return writeJSON(w, newDocument(snapshot, s.info, v))
	}
	return s.write(w, newPage(snapshot, s.info, v, cleanerOf(v.Format)))
}

// LevelOf returns how bad things are in what a view shows of a Snapshot: the level of its headline.
func LevelOf(snapshot *scan.Snapshot, v View) advice.Level {
	return newPage(snapshot, Info{}, v, cleanerOf(v.Format)).Level()
}

// WritePort draws who has a port. The error is as of Write.
func (s *Status) WritePort(w io.Writer, port *scan.Port, v View) error {
	p := newPortPage(port, s.info, v, cleanerOf(v.Format))
	if v.Format == JSON {
		d := p.document(s.info)
		d.Port = newDocumentPort(port)
		return writeJSON(w, d)
	}
	return s.write(w, p)
}

// write draws a page as HTML or text.
func (s *Status) write(w io.Writer, p *page) error {
	if p.View.Format == HTML {
		if err := s.page.Execute(w, p); err != nil {
			return fmt.Errorf("status: write HTML: %w", err)
		}
		return nil
	}
	_, err := io.WriteString(w, newText(p))
	return err
}

package status

import (
	"fmt"
	"html/template"
	"io"

	"ephemeral_port_exporter/collector/scan"
)

// Info is about the exporter, not about its host's ports.
type Info struct {
	Host        string // name of the host
	Version     string
	Revision    string // of the source, from which it was built
	MetricsPath string
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
	switch v.Format {
	case HTML:
		if err := s.page.Execute(w, newPage(snapshot, s.info, v, visible)); err != nil {
			return fmt.Errorf("status: write HTML: %w", err)
		}
		return nil
	case JSON:
		return writeJSON(w, newDocument(snapshot, s.info, v))
	default:
		_, err := io.WriteString(w, newText(newPage(snapshot, s.info, v, ascii)))
		return err
	}
}

package web

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/status"
)

// maxPageAge is how old the snapshot of a page may be. So to reload it costs no scan each time.
const maxPageAge = time.Second

// A statusHandler serves the status page.
type statusHandler struct {
	scans  *scans
	sender *sender
	status *status.Status
	logger *slog.Logger
}

// ServeHTTP implements http.Handler.
func (h *statusHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	view, err := status.ParseView(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if view.Port != 0 {
		h.sender.send(w, h.scans.answerPort(r, view.Port, func(port *scan.Port) *answer {
			return h.draw(view, func(w io.Writer) error { return h.status.WritePort(w, port, view) })
		}))
		return
	}
	h.sender.send(w, h.scans.answer(r, maxPageAge, view.Narrow(), func(ctx context.Context, s *scanned) (*answer, error) {
		return s.pages.get(ctx, view, view.Narrow(), func() *answer {
			return h.draw(view, func(w io.Writer) error { return h.status.Write(w, &s.Snapshot, view) })
		})
	}))
}

// draw returns the page of a view that write writes.
func (h *statusHandler) draw(view status.View, write func(io.Writer) error) *answer {
	a := newAnswer()
	status.SetHeader(a.Header(), view)
	if err := write(a); err != nil {
		h.logger.Error("The status page cannot be drawn", "err", err)
		return errorAnswer("the status page cannot be drawn: the log of the exporter has the cause")
	}
	return a
}

package logging

import (
	"context"
	"log/slog"
)

// maxValue is how many bytes of a value are written. Clients and tenants choose parts of some.
const maxValue = 2 << 10

// A handler gives lines to a log.
type handler struct {
	log  *Log
	next slog.Handler // writes its lines
}

// Enabled implements slog.Handler.
func (h handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h handler) Handle(_ context.Context, r slog.Record) error {
	h.log.handle(h.next, r)
	return nil
}

// WithAttrs implements slog.Handler.
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.log, h.next.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h handler) WithGroup(name string) slog.Handler { return handler{h.log, h.next.WithGroup(name)} }

// shorten returns a copy of a line that can be kept, with the beginnings of long texts.
func shorten(r slog.Record) slog.Record {
	short := slog.NewRecord(r.Time, r.Level, shortText(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		value := a.Value.Resolve()
		if err, ok := value.Any().(error); ok {
			value = slog.StringValue(err.Error())
		}
		if value.Kind() == slog.KindString {
			value = slog.StringValue(shortText(value.String()))
		}
		short.AddAttrs(slog.Attr{Key: a.Key, Value: value})
		return true
	})
	return short
}

// shortText returns the beginning of a text.
func shortText(text string) string {
	if len(text) <= maxValue {
		return text
	}
	return text[:maxValue] + "…"
}

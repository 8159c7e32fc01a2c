package web

import (
	"fmt"
	"log/slog"
	"strings"
)

// A serverLog logs what an http.Server says. Clients cause most of it: faults of the exporter and of the host have
// messages of their own, so that no client hides them. It ignores connections that are closed before the TLS
// handshake: every TCP probe does that.
type serverLog struct {
	logger *slog.Logger
}

// Write implements io.Writer. It expects one line, or a panic with its stack.
func (l serverLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	switch {
	case strings.HasPrefix(text, "http: TLS handshake error") && (strings.HasSuffix(text, ": EOF") || strings.HasSuffix(text, ": connection reset by peer")):
	case strings.HasPrefix(text, "http: panic serving"), strings.HasPrefix(text, "http2: panic serving"):
		l.logger.Error("A request cannot be answered", "err", text)
	case strings.HasPrefix(text, "http: Accept error"):
		l.logger.Error("HTTP connections cannot be accepted", "err", text)
	default:
		l.logger.Warn("HTTP connection failed", "err", text)
	}
	return len(line), nil
}

// An encodingLog logs what promhttp says.
type encodingLog struct {
	logger *slog.Logger
}

// Println implements promhttp.Logger.
func (l encodingLog) Println(words ...any) {
	l.logger.Error("Some metrics are missing", "err", strings.TrimSpace(fmt.Sprintln(words...)))
}

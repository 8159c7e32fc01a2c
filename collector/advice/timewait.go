package advice

import (
	"fmt"
	"math"
	"time"

	"ephemeral_port_exporter/collector/pool"
)

// TimeWaitSockets are those of a namespace that are in TIME_WAIT, and those that skipped it because there were too many.
type TimeWaitSockets struct {
	Sockets, Limit int
	Overflows      uint64        // since the namespace is there
	Recent         uint64        // of these, within Window until now
	Window         time.Duration // 0 if that is not known
}

// A timeWait is a namespace with connections that skip TIME_WAIT.
type timeWait struct {
	TimeWaitSockets
	report *pool.Report
	hold   float64 // seconds that a socket stays in TIME_WAIT
	skips  float64 // connections per second that skip it; 0 if that is not known
}

// FullTimeWait returns advice about the sockets in TIME_WAIT of a namespace. It returns nil if they are calm, see
// ReachedTimeWait. Outlook.Ports is how many sockets there can be, and the ceiling is of closes that do not skip it.
func FullTimeWait(r *pool.Report, t TimeWaitSockets) *Advice {
	if ReachedTimeWait(t).Level() == Calm {
		return nil
	}
	w := &timeWait{TimeWaitSockets: t, report: r, hold: r.Settings.Hold(false, pool.No, 0)}
	if t.Window > 0 {
		w.skips = float64(t.Recent) / t.Window.Seconds()
	}
	return &Advice{Diagnosis: w.diagnosis(), Cures: helpful(Cure{}, w.keepAlive(), w.closeSecond(), w.raise())}
}

// diagnosis says what happens, and where raising the limit would do harm.
func (w *timeWait) diagnosis() string {
	text := fmt.Sprintf("TIME_WAIT has %d sockets, of %d at most. At the limit, connections that are closed skip it: %d did so far", w.Sockets, w.Limit, w.Overflows)
	if w.Window > 0 {
		text += fmt.Sprintf(", now %s per second", perSecond(w.skips))
	}
	text += ". They hold no port, and the closes per second of destinations do not count them. But a late packet of an old connection can reach a new one."
	switch {
	case w.Window == 0:
		text += " How many do so now is known at the next collection. Do not raise tcp_max_tw_buckets before."
	case !w.roomy():
		text += fmt.Sprintf(" Do not raise tcp_max_tw_buckets alone: these connections then hold their ports for %.0f s each. If most of them are to one destination, its ports may suffice for %s per second only, and connects would then fail.", w.hold, perSecond(w.least()))
	}
	return text
}

// now returns what the limit suffices for.
func (w *timeWait) now() Outlook { return Outlook{Ports: w.Limit, Ceiling: float64(w.Limit) / w.hold} }

// keepAlive has the ceiling count requests.
func (w *timeWait) keepAlive() Cure {
	now := w.now()
	n := 2
	if now.Ceiling > 0 {
		n = max(int(2*(now.Ceiling+w.skips)/now.Ceiling)+1, n)
	}
	return Cure{
		Title:    "Keep connections alive",
		Sentence: fmt.Sprintf("Send at least %d times as many requests on each connection: then TIME_WAIT has less than half of its limit.", n), N: n,
		Now: now, Then: Outlook{Ports: now.Ports, Ceiling: now.Ceiling * float64(n)}, Requests: true,
		Condition: "The destinations keep connections open, too.",
	}
}

func (w *timeWait) closeSecond() Cure {
	now := w.now()
	return Cure{
		Title:    "Let the other side close first",
		Sentence: "Then the destinations have the TIME_WAIT.",
		Now:      now, Then: Outlook{Ports: now.Ports, Ceiling: math.Inf(1)},
		Condition: "Clients wait until the destination has closed.",
	}
}

// raise doubles the limit until it is twice what is needed, if the ports then suffice.
func (w *timeWait) raise() Cure {
	if w.Window == 0 || !w.roomy() {
		return Cure{}
	}
	limit := 2 * max(w.Limit, 1)
	for needed := 2 * (w.now().Ceiling + w.skips) * w.hold; float64(limit) < needed && limit < math.MaxInt32/2; {
		limit *= 2
	}
	command, undo := commands(change{name: "net.ipv4.tcp_max_tw_buckets", before: fmt.Sprint(w.Limit), then: fmt.Sprint(limit)})
	return Cure{
		Title:    "Raise the limit of TIME_WAIT",
		Sentence: fmt.Sprintf("Connections then hold their ports for %.0f s after they are closed. Each takes a little more than 256 bytes of kernel memory.", w.hold),
		Now:      w.now(), Then: Outlook{Ports: limit, Ceiling: float64(limit) / w.hold},
		Command: command, Undo: undo,
		Condition: fmt.Sprintf("No destination gets %s closes per second: its ports do not suffice for more.", perSecond(w.least())),
	}
}

// roomy reports whether the ports of each destination suffice if it has all the connections that skip TIME_WAIT now.
func (w *timeWait) roomy() bool {
	for _, d := range w.report.Destinations {
		d.CloseRate += w.skips
		if d.Ceiling == 0 || ReachedTCP(w.report, &d, false).Has(Load) {
			return false
		}
	}
	return w.skips < nearCeiling*w.unlisted()
}

// unlisted returns the ceiling of a destination that is not in the report, while it uses no timestamps: one whose
// connections skip TIME_WAIT holds few ports.
func (w *timeWait) unlisted() float64 {
	return pool.Ceiling(w.report.CapacityPorts-w.report.BoundPorts, 0, w.hold)
}

// least returns the lowest ceiling of a destination.
func (w *timeWait) least() float64 {
	least := w.unlisted()
	for _, d := range w.report.Destinations {
		least = min(least, d.Ceiling)
	}
	return least
}

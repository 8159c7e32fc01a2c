package advice

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
)

// A Change is what may become different for a destination. The zero Change is none.
type Change struct {
	Load      float64 // times the load of now; 0 is as now
	Addresses int     // further addresses, of this host or of the destination
	Reuse     bool    // tcp_tw_reuse and tcp_timestamps are on
	KeepAlive int     // times as many requests on each connection as now; 0 is as now
}

// load returns times how much load there is.
func (c Change) load() float64 { return cmp.Or(c.Load, 1) }

// requests returns times how many requests each connection has.
func (c Change) requests() float64 { return float64(max(c.KeepAlive, 1)) }

// An Interval has what a number is at least and at most, as far as is known.
type Interval struct{ Least, Most float64 }

// counted returns what the mean of a count may be if one count is n: with 95% at least, for independent events.
func counted(n float64) Interval {
	return Interval{max(n-2*math.Sqrt(n), 0), n + 2*math.Sqrt(n) + 3}
}

// times returns the interval of a multiple.
func (i Interval) times(f float64) Interval { return Interval{i.Least * f, i.Most * f} }

// A Prediction says how a destination will be with a Change, if it goes on for a minute: then as many ports are freed as are taken.
type Prediction struct {
	// Utilization is that of the pool, or of the source if its clients bind before they connect. At 1 no port is free. More than 1
	// cannot be, but is wanted. It is at most infinite if connects fail now: how many there would be is not known.
	Utilization Interval

	Closes  Interval // connections per second that this host will close first
	Ceiling Interval // the rate of these at which the ports run out

	// Limit is what the load reaches first, at LimitAt × the load of now at the earliest. That is infinite if it never does.
	Limit   Limit
	LimitAt float64

	// Level is that of the least that Utilization and Closes can be, or else Unknown or Warning if it is worse at most.
	Level  Level
	Alerts []string // that will fire, or may

	Sentences []string // what the numbers are made of, and assume
	Doubts    []string // why they are not known better
}

// A Limit is what more load comes up against.
type Limit string

// The limits.
const (
	LimitPorts    Limit = "ports"              // of the pool
	LimitSource   Limit = "bind ports"         // of the source, for clients that bind before they connect
	LimitTimeWait Limit = "tcp_max_tw_buckets" // further connections skip TIME_WAIT
)

// WhatIf returns what happens to a destination of the report with a Change. t are the sockets in TIME_WAIT of the namespace; without
// a Limit, these are not known. failing says that connects fail because no port is free.
func WhatIf(r *pool.Report, d *pool.Destination, t TimeWaitSockets, failing bool, c Change) Prediction {
	w := &whatIf{tcpPool: newTCPPool(r, d, nil), sockets: t, change: c}
	w.measure(failing)
	w.setHold()
	w.setRooms()
	return w.predict()
}

// A whatIf is a destination with a Change.
type whatIf struct {
	*tcpPool
	sockets TimeWaitSockets
	change  Change

	closes, open Interval // of now
	hold         Interval // with the Change
	rooms        []room   // one, or two if it is not known which
	unbounded    bool     // how much load there is now is not known
	said, doubts []string
}

// say adds a sentence.
func (w *whatIf) say(format string, args ...any) {
	w.said = append(w.said, fmt.Sprintf(format, args...))
}

// doubt adds a reason why the numbers are not known better.
func (w *whatIf) doubt(format string, args ...any) {
	w.doubts = append(w.doubts, fmt.Sprintf(format, args...))
}

// measure sets the load of now. Its closes are those of the last seconds and those of the last minute, which are the same
// if it is steady. Both have the error of counting. A load that has just begun shows in the last second.
func (w *whatIf) measure(failing bool) {
	d := w.destination
	length := w.report.Settings.TimeWaitLength.Seconds()
	window, atLeast := min(pool.CloseWindow.Seconds(), d.Hold), ""
	told := window
	if w.report.Settings.ReusableEachSecond() && d.Hold < length {
		told /= 2 // at least so much of this second
	}
	recent := counted(d.CloseRate * told).times(1 / told)
	if d.CloseRate == 0 {
		recent = Interval{} // the minute tells more
	}
	closed, period := float64(d.Held-d.Open), max(d.Hold, length)
	minute := counted(closed).times(1 / period)
	w.closes = Interval{min(recent.Least, minute.Least), max(recent.Most, minute.Most, d.PeakCloseRate)}
	if d.Hold < length {
		w.closes.Least, atLeast = recent.Least, "at least " // many ports of the minute have been taken over
	}
	w.open = Interval{counted(float64(d.Open)).Least, float64(d.Open) + 2*math.Sqrt(float64(d.Open))}

	lately, steady := "", ""
	if d.PeakCloseRate > recent.Most {
		lately = fmt.Sprintf("up to %s at the end of these, ", perSecond(d.PeakCloseRate))
	}
	if lately != "" || recent.Least > minute.Most && d.Hold >= length || recent.Most < minute.Least {
		steady = " That is not steady: the load of now can be each of these."
	}
	w.say("Open connections now: %d. Closes per second: %s in the last %.3g s, %sand %s%s in the last minute.%s",
		d.Open, perSecond(d.CloseRate), window, lately, atLeast, perSecond(closed/period), steady)
	if failing || slices.ContainsFunc(reached(Destination, map[Quantity]float64{Utilization: d.Utilization}), func(t Threshold) bool { return t.Level == Exhausted }) {
		w.unbounded = true
		w.doubt("Connects have failed, or will at any moment: how many are wanted is not known.")
	}
	w.addSkipped()
}

// addSkipped adds the connections that skip TIME_WAIT, all of which can be those of this destination.
func (w *whatIf) addSkipped() {
	switch t := w.sockets; {
	case ReachedTimeWait(t).Level() == Calm:
	case t.Window == 0:
		w.unbounded = true
		w.doubt("Some connections skipped TIME_WAIT: how many do so now is known at the next collection.")
	default:
		skips := float64(t.Recent) / t.Window.Seconds()
		w.closes.Most += skips
		w.doubt("%s connections per second skip TIME_WAIT, and may be to this destination.", perSecond(skips))
	}
}

// setHold sets for how long closed connections hold their ports.
func (w *whatIf) setHold() {
	d, s := w.destination, w.report.Settings
	known, without := true, w.holdOf(s, pool.No)
	w.hold = Interval{d.Hold, d.Hold}
	switch {
	case w.change.Reuse && w.canReuse():
		known = d.Loopback || d.Timestamps == pool.Yes && s.Timestamps != 0
		w.hold = Interval{w.holdWithReuse(), d.Hold}
		if known {
			w.hold.Most = w.hold.Least
		}
		w.say("With reuse, a closed connection holds its port for %.3g s instead of %.3g s.", w.hold.Least, d.Hold)
	case s.Reusable(d.Loopback) && !w.bindFirst() && !d.Loopback && d.Timestamps == pool.Unknown:
		known = false
		w.hold = Interval{min(w.holdOf(s, pool.Unknown), d.Hold), max(without, d.Hold)}
	case w.change.Reuse && s.Reusable(d.Loopback):
		w.say("Ports in TIME_WAIT are reusable now: reuse changes nothing.")
	case w.change.Reuse && w.bindFirst():
		w.say("Clients bind before they connect: reuse changes nothing.")
	case w.change.Reuse:
		w.say("The destination does not use TCP timestamps: reuse changes nothing.")
	}
	if !known {
		w.doubt("Whether all connections use TCP timestamps is not known. Those without hold their ports for %.3g s.", w.hold.Most)
	}
}

// early is which part of the time for which a timer of the kernel can take it does take.
func (w *whatIf) early(hold float64) float64 {
	s := w.report.Settings
	if length := s.TimeWaitLength.Seconds(); hold >= length {
		return length / s.Hold(false, pool.No, 0)
	}
	return 1
}

// A room is the ports that connections of the destination can have.
type room struct {
	limit Limit
	ports int      // of each address
	taken Interval // by others
	more  int      // that further addresses have, without those that are taken
}

// utilization returns which part of the ports are in use.
func (r *room) utilization(used float64) float64 {
	if r.ports <= 0 {
		return math.Inf(1)
	}
	return used / float64(r.ports)
}

// setRooms sets the rooms.
func (w *whatIf) setRooms() {
	r, d := w.report, w.destination
	own := r.BoundPorts - d.BoundByOthers + min(max(r.BoundUnknown-d.MayBeBound, 0)+d.Reusable, r.BoundUnknown)
	if mayBind := r.BoundUnknown > 0 && 2*own > d.Held; !w.bindFirst() {
		taken := d.BoundByOthers + d.MayBeBound
		if w.change.Addresses > 0 {
			taken = max(taken, r.BoundPorts+r.BoundUnknown)
		}
		w.rooms = append(w.rooms, room{LimitPorts, r.CapacityPorts, Interval{float64(d.BoundByOthers), float64(taken)}, w.portsOfMore(w.change.Addresses)})
		if d.MayBeBound > 0 {
			w.doubt("Up to %d further ports may be lost: %s.", d.MayBeBound, Doubt(d.MayBeBound, 0, false))
		}
		if !mayBind {
			return
		}
		w.doubt("Clients may bind before they connect. Then they share the ports of their address for all destinations, and do not take over ports in TIME_WAIT. --exact tells.")
		w.hold.Most = max(w.hold.Most, w.holdOf(r.Settings, pool.No))
	}
	i := slices.IndexFunc(r.Sources, func(s pool.Source) bool { return s.Address == d.Source })
	if i < 0 {
		w.unbounded = true
		w.doubt("Clients bind before they connect, or may. Then they have the ports of %s, which is not among the listed addresses.", d.Source)
		return
	}
	s := r.Sources[i]
	others := float64(max(s.Ports-d.Held, 0))
	w.rooms = append(w.rooms, room{LimitSource, s.Capacity, Interval{others, others}, w.change.Addresses * s.Capacity})
}

// predict returns the Prediction.
func (w *whatIf) predict() Prediction {
	c := w.change
	load, addresses := c.load(), float64(1+c.Addresses)
	closes := w.closes.times(1 / c.requests()) // at the load of now
	closed := Interval{closes.Least * w.hold.Least * w.early(w.hold.Least), closes.Most * w.hold.Most}
	if t := w.sockets; t.Limit > 0 {
		closed.Least = min(closed.Least, float64(w.leftInTimeWait())/load) // further ones skip it
	}
	needs := Interval{w.open.Least + closed.Least, w.open.Most + closed.Most}

	p := Prediction{Closes: closes.times(load), LimitAt: math.Inf(1)}
	p.Utilization, p.Ceiling = Interval{Least: math.Inf(1)}, Interval{Least: math.Inf(1)}
	for _, r := range w.rooms {
		open := int(math.Round(load * float64(w.destination.Open)))
		least := outlook(int(addresses*(float64(r.ports)-r.taken.Most)), open, w.hold.Most)
		most := outlook(r.ports-int(r.taken.Least)+r.more, open, w.hold.Least)
		p.Ceiling = Interval{min(p.Ceiling.Least, least.Ceiling), max(p.Ceiling.Most, most.Ceiling)}
		p.Utilization.Least = min(p.Utilization.Least, r.utilization(r.taken.Least+load*needs.Least/addresses))
		p.Utilization.Most = max(p.Utilization.Most, r.utilization(r.taken.Most+load*needs.Most/addresses))
		p.reach(r.limit, max(addresses*(float64(r.ports)-r.taken.Most), 0)/needs.Most)
	}
	if len(w.rooms) == 0 {
		p.Utilization.Least, p.Ceiling.Least = 0, 0
	}
	if w.unbounded {
		p.Utilization.Most = math.Inf(1)
	}
	p.reach(LimitTimeWait, w.timeWaitAt(closes.Most))
	p.judge(w, load)
	w.assume()
	p.Sentences, p.Doubts = w.said, w.doubts
	return p
}

// reach notes that a limit is reached at a load.
func (p *Prediction) reach(l Limit, at float64) {
	if at < p.LimitAt {
		p.Limit, p.LimitAt = l, at
	}
}

// timeWaitAt returns times which load TIME_WAIT is full, at so many closes per second with the load of now. It is infinite if the ports of
// this destination are too few for that.
func (w *whatIf) timeWaitAt(closes float64) float64 {
	left := w.leftInTimeWait()
	if w.sockets.Limit == 0 || left > (1+w.change.Addresses)*w.report.CapacityPorts {
		return math.Inf(1)
	}
	return float64(left) / (closes * w.report.Settings.Hold(false, pool.No, 0))
}

// leftInTimeWait returns how many sockets of this destination TIME_WAIT can have.
func (w *whatIf) leftInTimeWait() int {
	others := max(w.sockets.Sockets-portsIn(w.destination, tcpstate.TimeWait), 0)
	return max(w.sockets.Limit-others, 0)
}

// judge sets the Level and the Alerts.
func (p *Prediction) judge(w *whatIf, load float64) {
	kind := Destination
	if len(w.rooms) == 0 || w.rooms[0].limit == LimitSource {
		kind = Source
	}
	of := func(utilization, closes, ceiling float64) Reached {
		values := map[Quantity]float64{Utilization: utilization}
		if ceiling > 0 {
			values[Load] = closes / ceiling
		}
		return reached(kind, values)
	}
	least, most := of(p.Utilization.Least, p.Closes.Least, p.Ceiling.Most), of(p.Utilization.Most, p.Closes.Most, p.Ceiling.Least)
	if p.Limit == LimitTimeWait && p.LimitAt <= load {
		most = append(most, reached(TimeWait, map[Quantity]float64{Overflows: 1})...)
	}
	p.Level, p.Alerts = max(least.Level(), min(most.Level(), Unknown)), append(least, most...).Alerts()
}

// assume says what the numbers assume.
func (w *whatIf) assume() {
	c := w.change
	if c.load() != 1 {
		w.say("%.4g times the load has %.4g times as many closes and open connections, if answers take as long as now.", c.load(), c.load())
	}
	if c.KeepAlive > 0 {
		w.say("Each connection has %d times as many requests as now, so there are fewer closes. As many connections stay open as now: those that clients keep open without a request come on top. If: %s", c.KeepAlive, keptOpen)
	}
	if c.Addresses > 0 && len(w.rooms) > 0 {
		alike := usedAlike
		if w.bindFirst() {
			alike = bindAlike
		}
		w.say("Each further address has %d ports. If: %s An address of this host that no client is told to use changes nothing.", w.rooms[0].more/c.Addresses, alike)
	}
}

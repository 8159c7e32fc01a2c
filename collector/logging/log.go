package logging

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxLines is how many lines of a kind are written in a period. Those who try something out by hand see each
	// line, and a client that floods the log gets it to a few megabytes a day.
	maxLines = 10
	period   = time.Minute

	// maxKinds is how many kinds of lines are told apart. The exporter has fewer.
	maxKinds = 64

	// maxWaiting is how many lines wait for a reader that is slow.
	maxWaiting = 256

	// patience is how long those who log something wait until it is written. Then nobody waits, until
	// the reader has caught up.
	patience = 100 * time.Millisecond
)

// A Log passes lines on to a handler, within bounds:
//
//   - Of each kind, it passes on the first lines of a minute. At the end of the minute, it says how many more there were.
//   - If the handler blocks, or returns errors, lines are left out too. It says so once it can.
//
// A line is passed on before the call that logs it returns, as long as the handler does not block. So a crash has
// all lines before it.
type Log struct {
	handler slog.Handler
	waiting chan *line
	slow    atomic.Bool // a line has waited for too long, and not all are written since then
	closed  chan struct{}

	mu    sync.Mutex
	kinds map[kind]*count
}

// A kind of lines is bounded apart from others.
type kind struct {
	message string
	self    bool // about our own network namespace: tenants cause no such lines
}

// others is the kind of all lines beyond maxKinds.
var others = kind{message: "others"}

// A count is that of the lines of a kind in a period.
type count struct {
	passed  int
	leftOut int

	// Of the last line that is left out.
	level slog.Level
	pc    uintptr
}

// A line is to be written.
type line struct {
	handler slog.Handler
	record  slog.Record
	kind    kind
	stands  int           // for so many lines
	written chan struct{} // closed when it is
}

// New returns a log whose lines a handler writes.
func New(handler slog.Handler) *Log {
	l := &Log{handler: handler, waiting: make(chan *line, maxWaiting), closed: make(chan struct{}), kinds: map[kind]*count{}}
	go l.write()
	return l
}

// Handler returns a handler for the lines of the log.
func (l *Log) Handler() slog.Handler { return handler{l, l.handler} }

// Close writes how many lines are left out so far. It waits until all lines are written, or the timeout is over. Later lines are lost.
func (l *Log) Close(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	l.mu.Lock()
	for k, c := range l.kinds {
		l.report(k, c)
	}
	l.mu.Unlock()
	last := &line{handler: slog.DiscardHandler, written: make(chan struct{})}
	select {
	case l.waiting <- last:
	case <-ctx.Done():
	}
	select {
	case <-last.written:
	case <-ctx.Done():
	}
	close(l.closed)
}

// handle passes on or leaves out a line.
func (l *Log) handle(h slog.Handler, r slog.Record) {
	l.mu.Lock()
	k, c := l.count(&r)
	if c.passed >= maxLines {
		c.leaveOut(&r, 1)
		l.mu.Unlock()
		return
	}
	c.passed++
	ln := &line{handler: h, record: shorten(r), kind: k, stands: 1, written: make(chan struct{})}
	passed := l.pass(ln)
	l.mu.Unlock()
	if !passed || l.slow.Load() {
		return
	}
	select {
	case <-ln.written:
	case <-time.After(patience):
		l.slow.Store(true)
	}
}

// count returns the kind of a line, and the count of the kind. The caller holds l.mu.
func (l *Log) count(r *slog.Record) (kind, *count) {
	k := kind{message: r.Message}
	r.Attrs(func(a slog.Attr) bool {
		k.self = a.Key == "netns" && a.Value.String() == "self"
		return !k.self
	})
	if l.kinds[k] == nil && len(l.kinds) >= maxKinds {
		k = others
	}
	return k, l.countOf(k)
}

// countOf returns the count of a kind. If there is none, a period begins. The caller holds l.mu.
func (l *Log) countOf(k kind) *count {
	c := l.kinds[k]
	if c == nil {
		c = &count{}
		l.kinds[k] = c
		time.AfterFunc(period, func() { l.endPeriod(k) })
	}
	return c
}

// endPeriod reports the lines of a kind that are left out.
func (l *Log) endPeriod(k kind) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.kinds[k]
	delete(l.kinds, k)
	l.report(k, c)
}

// report passes on how many lines of a kind are left out. The caller holds l.mu.
func (l *Log) report(k kind, c *count) {
	lines := c.leftOut
	if lines == 0 {
		return
	}
	c.leftOut = 0
	r := slog.NewRecord(time.Now(), c.level, "Lines are left out of the log", c.pc)
	r.Add("of", k.message, "lines", lines)
	if k.self {
		r.Add("netns", "self")
	}
	l.pass(&line{handler: l.handler, record: r, kind: k, stands: lines, written: make(chan struct{})})
}

// pass lets a line be written, and reports whether it will be. If too many are waiting, it is left out. The caller holds l.mu.
func (l *Log) pass(ln *line) bool {
	select {
	case l.waiting <- ln:
		return true
	default:
		l.countOf(ln.kind).leaveOut(&ln.record, ln.stands)
		return false
	}
}

// leaveOut counts lines that are not written.
func (c *count) leaveOut(r *slog.Record, lines int) {
	c.leftOut += lines
	c.level, c.pc = r.Level, r.PC
}

// write writes lines until the log is closed.
func (l *Log) write() {
	for {
		select {
		case ln := <-l.waiting:
			if err := ln.handler.Handle(context.Background(), ln.record); err != nil { // a disk is full
				l.mu.Lock()
				l.countOf(ln.kind).leaveOut(&ln.record, ln.stands)
				l.mu.Unlock()
			}
			if len(l.waiting) == 0 {
				l.slow.Store(false)
			}
			close(ln.written)
		case <-l.closed:
			return
		}
	}
}

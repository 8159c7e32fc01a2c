//go:build linux

package scan

import (
	"time"

	"ephemeral_port_exporter/collector/pool"
)

// steadyScans is how many scans must have seen the host close connections all the time before it
// counts that no socket had longer to go in TIME_WAIT.
const steadyScans = 10

// A timeWaitCheck compares --time-wait.length with what the kernel does. It warns once: the kernel
// does not change.
type timeWaitCheck struct {
	warned  bool
	steady  int // scans
	longest time.Duration
}

// observe adds what a scan saw. It returns a warning or "".
func (c *timeWaitCheck) observe(length time.Duration, seen pool.TimeWaitSeen) (warning string) {
	if c.warned {
		return ""
	}
	c.longest = max(c.longest, seen.Longest)
	if seen.Steady {
		c.steady++
	}
	switch {
	case c.longest > length+time.Second:
		warning = "--time-wait.length is too short: a socket had more time left in TIME_WAIT. Ages, close rates and ceilings are wrong"
	case c.steady >= steadyScans && c.longest < length-2*time.Second:
		warning = "--time-wait.length is too long: the host closes connections all the time, and no socket had that much time left in TIME_WAIT. Ages, close rates and ceilings are wrong"
	}
	c.warned = warning != ""
	return warning
}

// An overflowCounter remembers how many sockets of a namespace had skipped TIME_WAIT, at two scans. A scan is compared with
// the older one.
type overflowCounter struct{ older, newer overflowSample }

type overflowSample struct {
	at        time.Time
	overflows uint64
}

const (
	minOverflowWindow = time.Second      // in less, few are seen
	maxOverflowWindow = 10 * time.Second // the older scan is that long ago, if there is one, and no longer than necessary
)

// observe adds what a scan has counted. It returns how many there were lately, and within which time; 0 if there is
// nothing to compare with.
func (c *overflowCounter) observe(now overflowSample) (recent uint64, window time.Duration) {
	if now.overflows < c.newer.overflows {
		*c = overflowCounter{} // another namespace
	}
	base := c.older
	if base.at.IsZero() {
		base = c.newer
	}
	if c.newer.at.IsZero() || now.at.Sub(c.newer.at) >= maxOverflowWindow {
		c.older, c.newer = c.newer, now
	}
	window = now.at.Sub(base.at)
	if base.at.IsZero() || window < minOverflowWindow {
		return 0, 0
	}
	return now.overflows - base.overflows, window
}

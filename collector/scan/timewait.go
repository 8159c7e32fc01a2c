//go:build linux

package scan

import (
	"time"

	"ephemeral_port_exporter/collector/pool"
)

// The scans and sockets in TIME_WAIT after which the longest remaining time is significant.
const (
	enoughScans   = 10
	enoughSockets = 1000
)

// A timeWaitCheck compares --time-wait.length with the remaining times of sockets in TIME_WAIT.
// It warns once, because neither the flag nor the kernel changes.
type timeWaitCheck struct {
	warned         bool
	scans, sockets int
	longest        time.Duration // that a socket had left in TIME_WAIT
}

// observe adds the sockets of a scan. It returns a warning, or "".
func (c *timeWaitCheck) observe(length time.Duration, seen pool.TimeWaitSeen) (warning string) {
	if c.warned || seen.Sockets == 0 {
		return ""
	}
	c.scans++
	c.sockets += seen.Sockets
	c.longest = max(c.longest, seen.Longest)
	switch {
	case c.longest > length+time.Second:
		warning = "--time-wait.length is too short: a socket had more time left in TIME_WAIT. Reusable ports, close rates and ceilings are wrong"
	case c.scans >= enoughScans && c.sockets >= enoughSockets && c.longest < length*3/4:
		warning = "--time-wait.length seems too long: all sockets had much less time left in TIME_WAIT. If it is, reusable ports, close rates and ceilings are wrong"
	}
	c.warned = warning != ""
	return warning
}

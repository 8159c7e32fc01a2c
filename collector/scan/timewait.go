//go:build linux

package scan

import (
	"time"

	"ephemeral_port_exporter/collector/pool"
)

// How much must have been seen of TIME_WAIT before it counts that no socket had long to go.
const (
	enoughScans   = 10
	enoughSockets = 1000
)

// A timeWaitCheck compares what --time-wait.length says with what the kernel does. It says
// so once, for the kernel does not change.
type timeWaitCheck struct {
	warned         bool
	scans, sockets int
	longest        time.Duration
}

// observe takes note of a scan, and returns what to warn of, or "".
func (c *timeWaitCheck) observe(length time.Duration, seen pool.TimeWaitSeen) (warning string) {
	if c.warned || seen.Sockets == 0 {
		return ""
	}
	c.scans++
	c.sockets += seen.Sockets
	c.longest = max(c.longest, seen.Longest)
	switch {
	case c.longest > length+time.Second:
		warning = "--time-wait.length is too short: a socket had longer to go in TIME_WAIT. Ages, close rates and ceilings are wrong"
	case c.scans >= enoughScans && c.sockets >= enoughSockets && c.longest < length*3/4:
		warning = "--time-wait.length seems too long: no socket ever had nearly as long to go in TIME_WAIT. Ages, close rates and ceilings are wrong if it is"
	}
	c.warned = warning != ""
	return warning
}

package status

import (
	"cmp"
	"fmt"
	"math"

	"ephemeral_port_exporter/collector/pool"
)

// A level says how bad things are.
type level int

// The levels. The thresholds are those of the alerts in deploy/prometheus/rules.yml.
const (
	calm      level = iota
	warning         // half of the ports are in use, closes near the ceiling, or failed connects
	critical        // most ports are in use, closes at the ceiling, or ports run out within minutes
	exhausted       // connect() fails, or can fail at any moment
	unknown         // nothing could be read
)

// String returns the name that all formats use.
func (l level) String() string {
	return [...]string{"calm", "warning", "critical", "exhausted", "unknown"}[l]
}

// soon is the longest forecast that is a danger, in seconds.
const soon = 600

// destinationLevel returns the level of a destination to which this many connects have failed.
func destinationLevel(d *pool.Destination, failures uint64) level {
	switch load := loadOf(d); {
	case d.Utilization >= 0.98:
		return exhausted
	case d.Utilization >= 0.8, load >= 0.9, d.Exhaustion < soon:
		return critical
	case d.Utilization >= 0.5, load >= 0.8, failures > 0:
		return warning
	default:
		return calm
	}
}

// loadOf returns closes per second divided by the ceiling: at 1 the ports run out. Where no port is
// left to close, that is utilization's matter.
func loadOf(d *pool.Destination) float64 {
	if d.Ceiling == 0 {
		return 0
	}
	return d.CloseRate / d.Ceiling
}

// problem returns what is wrong with a destination, as the end of a sentence that begins with its
// address.
func problem(d *pool.Destination, failures uint64) string {
	switch {
	case d.Utilization >= 1:
		return "is out of ports"
	case d.Exhaustion < soon:
		return "runs out of ports in " + seconds(d.Exhaustion)
	case d.Utilization >= 0.5:
		return "has " + percent(d.Utilization) + " of its ports in use"
	case loadOf(d) >= 0.8:
		return "closes at " + percent(loadOf(d)) + " of its ceiling"
	default:
		return "had " + connects(failures) + " that failed, the last within 15 minutes"
	}
}

// alertsOf returns the alerts of deploy/prometheus/rules.yml whose chapters in the runbook are about
// what a destination has.
func alertsOf(d *pool.Destination, capacity int, failures uint64) []string {
	var alerts []string
	switch {
	case d.Utilization >= 0.98:
		alerts = append(alerts, "EphemeralPortsExhausted")
	case d.Utilization >= 0.8:
		alerts = append(alerts, "EphemeralPortsNearlyExhausted")
	case d.Utilization >= 0.5:
		alerts = append(alerts, "EphemeralPortsHalfUsed")
	}
	if loadOf(d) >= 0.9 {
		alerts = append(alerts, "EphemeralPortsRateNearCeiling")
	}
	if failures > 0 {
		alerts = append(alerts, "EphemeralPortsConnectFailing")
	}
	for i, state := range pool.States {
		if capacity == 0 || 5*d.Ports[i] < capacity {
			continue
		}
		switch state {
		case pool.CloseWait:
			alerts = append(alerts, "EphemeralPortsCloseWait")
		case pool.SynSent:
			alerts = append(alerts, "EphemeralPortsSynSent")
		}
	}
	return alerts
}

// worstFirst orders destinations: by level, then by the time that is left, then by utilization.
func worstFirst(a, b *destination) int {
	return cmp.Or(
		cmp.Compare(b.Level, a.Level), cmp.Compare(a.pool.Exhaustion, b.pool.Exhaustion),
		cmp.Compare(b.pool.Utilization, a.pool.Utilization), cmp.Compare(b.pool.Held, a.pool.Held),
		a.pool.Address.Compare(b.pool.Address), a.pool.Source.Compare(b.pool.Source), cmp.Compare(a.Netns, b.Netns),
	)
}

// bindsFirst reports whether most ports of a source are bound: its clients call bind() before
// connect(), and share one pool for all destinations.
func bindsFirst(s *pool.Source) bool { return 2*s.Bound > s.Ports }

// mayBindFirst reports whether that looks likely, where it is not known.
func mayBindFirst(s *pool.Source) bool { return s.Ports >= 10 && 2*s.BindParity > s.Ports }

// percent writes a ratio. It says 100% only if nothing is left.
func percent(ratio float64) string {
	if ratio > 0 && ratio < 0.01 {
		return "<1%"
	}
	return fmt.Sprintf("%.0f%%", math.Floor(ratio*100))
}

// seconds writes a time.
func seconds(s float64) string {
	switch {
	case s < 1:
		return "less than 1 s"
	case s < 120:
		return fmt.Sprintf("%.0f s", math.Floor(s))
	default:
		return fmt.Sprintf("%.0f min", math.Floor(s/60))
	}
}

// rate writes a number of connections per second.
func rate(r float64) string {
	if r < 100 {
		return fmt.Sprintf("%.1f", r)
	}
	return fmt.Sprintf("%.0f", r)
}

// plural writes a number with its noun.
func plural(n int, singular, plural string) string {
	if n == 1 {
		return "1 " + singular
	}
	return fmt.Sprintf("%d %s", n, plural)
}

func connects(n uint64) string { return plural(int(n), "connect", "connects") }

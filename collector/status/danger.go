package status

import (
	"cmp"
	"fmt"
	"math"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
)

// A level says how bad things are.
type level = advice.Level

// The levels.
const (
	calm      = advice.Calm
	warning   = advice.Warning
	critical  = advice.Critical
	exhausted = advice.Exhausted
	unknown   = advice.Unknown
)

// problem returns what is wrong with a destination, as the end of a sentence that begins with its
// address.
func (row *destination) problem() string {
	switch d := row.pool; {
	case d.Utilization >= 1:
		return "is out of ports"
	case row.reached.Has(advice.Exhaustion):
		return "runs out of ports in " + seconds(d.Exhaustion)
	case row.reached.Has(advice.Utilization):
		return "has " + percent(d.Utilization) + " of its ports in use"
	case row.reached.Has(advice.Load):
		return "closes at " + percent(advice.LoadOf(d)) + " of its ceiling"
	case row.reached.Has(advice.Failures):
		return "had " + connects(row.failures) + " that failed, the last within 15 minutes"
	case row.reached.Has(advice.InCloseWait):
		return "has many connections that an application has not closed"
	default:
		return "does not answer many attempts to connect"
	}
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

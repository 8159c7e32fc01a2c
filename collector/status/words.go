package status

import (
	"fmt"
	"math"
)

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

// leftOut says that the limits give n things of a kind no series, how many ports these hold, and how many of them the page does not
// list.
func leftOut(n int, kind string, ports, unlisted int) string {
	sentence := fmt.Sprintf("%d %ss have no series and hold %s in all.", n, kind, plural(ports, "port", "ports"))
	if n == 1 {
		sentence = fmt.Sprintf("1 %s has no series and holds %s.", kind, plural(ports, "port", "ports"))
	}
	switch {
	case unlisted == 1 && n == 1:
		sentence += " It is not listed."
	case unlisted == n:
		sentence += " They are not listed."
	case unlisted == 1:
		sentence += " 1 of them is not listed."
	case unlisted > 0:
		sentence += fmt.Sprintf(" %d of them are not listed.", unlisted)
	}
	return sentence + " See --destination.min-ports and --destination.limit."
}

func connects(n uint64) string { return plural(int(n), "connect", "connects") }

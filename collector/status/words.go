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

// leftOut says that the limits leave out n things of a kind, and how many ports these hold.
func leftOut(n int, kind string, ports int) string {
	holds := fmt.Sprintf("%d more %ss hold %s in all, and are", n, kind, plural(ports, "port", "ports"))
	if n == 1 {
		holds = fmt.Sprintf("1 more %s holds %s in all, and is", kind, plural(ports, "port", "ports"))
	}
	return holds + " not listed: see --destination.min-ports and --destination.limit."
}

func connects(n uint64) string { return plural(int(n), "connect", "connects") }

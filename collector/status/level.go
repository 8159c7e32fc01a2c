package status

import "ephemeral_port_exporter/collector/advice"

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

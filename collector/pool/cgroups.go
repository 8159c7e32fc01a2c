package pool

import "ephemeral_port_exporter/collector/internal/portset"

// cgroups numbers control groups from 1 on. 0 is none.
type cgroups struct {
	numbers    portset.Index[uint64, struct{}]
	last       uint64 // that was numbered
	lastNumber int
}

// number returns the number of a control group.
func (c *cgroups) number(cgroup uint64) int {
	if cgroup == 0 {
		return 0
	}
	if cgroup != c.last {
		i, _ := c.numbers.Add(cgroup)
		c.last, c.lastNumber = cgroup, i+1
	}
	return c.lastNumber
}

// of returns the control group with a number that is not 0.
func (c *cgroups) of(number int) uint64 { return c.numbers.At(number - 1).Key }

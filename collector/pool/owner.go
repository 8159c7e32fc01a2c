package pool

import (
	"cmp"
	"slices"
)

// MaxOwners is how many owners of a destination are reported at most.
const MaxOwners = 3

// An Owner is a control group that holds ports of a destination.
type Owner struct {
	Cgroup uint64 // Socket.Cgroup
	Ports  int    // held by its sockets
}

// maxOthers is how many control groups of a pool are counted besides the first. A socket of a
// further one counts as nobody's. The kernel lists sockets in a random order, so one that
// has a considerable part of the pool comes among the first, however many small ones there are.
const maxOthers = 128

// ownerCounts counts the ports of a pool by control group. Most pools have one.
type ownerCounts struct {
	first  uint64 // 0 if there is none
	ports  uint32 // of first
	others map[uint64]uint32
}

// add counts a port.
func (c *ownerCounts) add(cgroup uint64) {
	switch {
	case cgroup == c.first:
		c.ports++
	case c.first == 0:
		c.first, c.ports = cgroup, 1
	default:
		c.addOther(cgroup)
	}
}

// addOther counts a port of a control group that is not the first.
func (c *ownerCounts) addOther(cgroup uint64) {
	if n := c.others[cgroup]; n == 0 && len(c.others) >= maxOthers {
		return
	}
	if c.others == nil {
		c.others = map[uint64]uint32{}
	}
	c.others[cgroup]++
}

// largest returns those with most ports.
func (c *ownerCounts) largest() []Owner {
	if c.first == 0 {
		return nil
	}
	owners := []Owner{{c.first, int(c.ports)}}
	for cgroup, n := range c.others {
		owners = append(owners, Owner{cgroup, int(n)})
	}
	slices.SortFunc(owners, func(a, b Owner) int {
		return cmp.Or(cmp.Compare(b.Ports, a.Ports), cmp.Compare(a.Cgroup, b.Cgroup))
	})
	return slices.Clip(owners[:min(len(owners), MaxOwners)])
}

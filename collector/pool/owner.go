package pool

import (
	"cmp"

	"ephemeral_port_exporter/collector/internal/portset"
)

// MaxOwners is how many owners of a destination are reported at most.
const MaxOwners = 3

// An Owner is a control group that holds ports.
type Owner struct {
	Cgroup uint64 // Socket.Cgroup
	Ports  int    // held by its sockets
}

// ownerCounts counts the ports of a pool by control group.
type ownerCounts struct{ portset.Counts[uint64] }

// largest returns those with most ports.
func (c *ownerCounts) largest() []Owner {
	var owners []Owner
	for _, n := range c.Largest(MaxOwners, cmp.Compare[uint64]) {
		owners = append(owners, Owner{n.Key, n.Ports})
	}
	return owners
}

// boundOwners returns Report.BoundOwners.
func (t *Table) boundOwners() []Owner {
	var bound ownerCounts
	if t.bound.Size() == 0 {
		return nil
	}
	for n := range t.pools.all() {
		if c := t.countsOf(n, &t.room); 2*int(c.bound) > c.held {
			bound.Merge(&t.ownersOf(n).Counts)
		}
	}
	return bound.largest()
}

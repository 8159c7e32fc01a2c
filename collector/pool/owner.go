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

// ownerCounts counts the ports of a pool by control group.
type ownerCounts struct{ portCounts[uint64] }

// largest returns those with most ports.
func (c *ownerCounts) largest() []Owner {
	var owners []Owner
	for _, n := range c.portCounts.largest(cmp.Compare[uint64]) {
		owners = append(owners, Owner{n.key, n.ports})
	}
	return owners
}

// maxOthers is how many keys of a pool are counted besides the first. A port of a further one counts
// as nobody's. The kernel lists sockets and flows in a random order, so one that has a considerable
// part of the pool comes among the first, however many small ones there are.
const maxOthers = 128

// portCounts counts the ports of a pool by a key whose zero value stands for nobody. Most pools have
// one.
type portCounts[K comparable] struct {
	first  K // zero if there is none
	ports  uint32
	others map[K]*uint32 // pointers, so that a port costs one look into the map
}

// A portCount is how many ports a key has.
type portCount[K comparable] struct {
	key   K
	ports int
}

// add counts a port.
func (c *portCounts[K]) add(key K) {
	var nobody K
	switch {
	case key == c.first:
		c.ports++
	case c.first == nobody:
		c.first, c.ports = key, 1
	default:
		c.addOther(key)
	}
}

// addOther counts a port of a key that is not the first.
func (c *portCounts[K]) addOther(key K) {
	if n, ok := c.others[key]; ok {
		*n++
		return
	}
	if len(c.others) >= maxOthers {
		return
	}
	if c.others == nil {
		c.others = map[K]*uint32{}
	}
	n := uint32(1)
	c.others[key] = &n
}

// largest returns those with most ports, at most MaxOwners, in descending order, and then by key.
func (c *portCounts[K]) largest(compare func(a, b K) int) []portCount[K] {
	var nobody K
	if c.first == nobody {
		return nil
	}
	counts := []portCount[K]{{c.first, int(c.ports)}}
	for key, n := range c.others {
		counts = append(counts, portCount[K]{key, int(*n)})
	}
	slices.SortFunc(counts, func(a, b portCount[K]) int {
		return cmp.Or(cmp.Compare(b.ports, a.ports), compare(a.key, b.key))
	})
	return slices.Clip(counts[:min(len(counts), MaxOwners)])
}

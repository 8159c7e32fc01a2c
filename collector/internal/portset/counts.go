package portset

import (
	"cmp"
	"iter"
	"slices"
)

// maxOthers is how many keys of a pool are counted besides the first. A port of a further one counts
// as nobody's. The kernel lists sockets and flows in a random order, so one that has a considerable
// part of the pool comes among the first, however many small ones there are.
const maxOthers = 128

// Counts counts the ports of a pool by a key whose zero value stands for nobody. Most pools have
// one.
type Counts[K comparable] struct {
	first  K // zero if there is none
	ports  uint32
	others map[K]*uint32 // pointers, so that a port costs one look into the map
}

// A Count is how many ports a key has.
type Count[K comparable] struct {
	Key   K
	Ports int
}

// Add counts a port.
func (c *Counts[K]) Add(key K) { c.add(key, 1) }

// Merge counts the ports of another pool too.
func (c *Counts[K]) Merge(other *Counts[K]) {
	var nobody K
	if other.first == nobody {
		return
	}
	c.add(other.first, other.ports)
	for key, n := range other.others {
		c.add(key, *n)
	}
}

// add counts ports of a key.
func (c *Counts[K]) add(key K, ports uint32) {
	var nobody K
	switch {
	case key == c.first:
		c.ports += ports
	case c.first == nobody:
		c.first, c.ports = key, ports
	default:
		c.addOther(key, ports)
	}
}

// addOther counts ports of a key that is not the first.
func (c *Counts[K]) addOther(key K, ports uint32) {
	if n, ok := c.others[key]; ok {
		*n += ports
		return
	}
	if len(c.others) >= maxOthers {
		return
	}
	if c.others == nil {
		c.others = map[K]*uint32{}
	}
	c.others[key] = &ports
}

// Keys returns the keys that are counted, without nobody.
func (c *Counts[K]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		var nobody K
		if c.first == nobody || !yield(c.first) {
			return
		}
		for key := range c.others {
			if !yield(key) {
				return
			}
		}
	}
}

// Largest returns those with most ports, at most that many, in descending order, and then by key.
func (c *Counts[K]) Largest(most int, compare func(a, b K) int) []Count[K] {
	var nobody K
	if c.first == nobody {
		return nil
	}
	counts := []Count[K]{{c.first, int(c.ports)}}
	for key, n := range c.others {
		counts = append(counts, Count[K]{key, int(*n)})
	}
	slices.SortFunc(counts, func(a, b Count[K]) int {
		return cmp.Or(cmp.Compare(b.Ports, a.Ports), compare(a.Key, b.Key))
	})
	return slices.Clip(counts[:min(len(counts), most)])
}

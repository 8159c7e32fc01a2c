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
	others []other[K]
	index  map[K]int32 // of others; nil up to fewOthers: there can be very many pools with a few
}

// An other is a key besides the first.
type other[K comparable] struct {
	key   K
	ports uint32
}

const fewOthers = 16

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
	for key, n := range other.all() {
		c.add(key, n)
	}
}

// all returns the keys without nobody, and their ports.
func (c *Counts[K]) all() iter.Seq2[K, uint32] {
	return func(yield func(K, uint32) bool) {
		var nobody K
		if c.first == nobody || !yield(c.first, c.ports) {
			return
		}
		for _, o := range c.others {
			if !yield(o.key, o.ports) {
				return
			}
		}
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
	if i := c.find(key); i >= 0 {
		c.others[i].ports += ports
		return
	}
	switch len(c.others) {
	case maxOthers:
		return
	case 0:
		c.others = make([]other[K], 0, 2)
	case fewOthers:
		c.index = make(map[K]int32, 2*fewOthers)
		for i, o := range c.others {
			c.index[o.key] = int32(i)
		}
	}
	if c.index != nil {
		c.index[key] = int32(len(c.others))
	}
	c.others = append(c.others, other[K]{key, ports})
}

// find returns the place of a key among others, or -1.
func (c *Counts[K]) find(key K) int {
	if c.index != nil {
		if i, ok := c.index[key]; ok {
			return int(i)
		}
		return -1
	}
	for i := range c.others {
		if c.others[i].key == key {
			return i
		}
	}
	return -1
}

// Keys returns the keys that are counted, without nobody.
func (c *Counts[K]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		for key := range c.all() {
			if !yield(key) {
				return
			}
		}
	}
}

// Largest returns those with most ports, at most that many, in descending order, and then by key.
func (c *Counts[K]) Largest(most int, compare func(a, b K) int) []Count[K] {
	var counts []Count[K]
	for key, n := range c.all() {
		counts = append(counts, Count[K]{key, int(n)})
	}
	slices.SortFunc(counts, func(a, b Count[K]) int {
		return cmp.Or(cmp.Compare(b.Ports, a.Ports), compare(a.Key, b.Key))
	})
	return slices.Clip(counts[:min(len(counts), most)])
}

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
	others *others[K] // nil if there are none
}

// others are keys besides the first. There can be very many pools with a few, so these are in one piece.
type others[K comparable] struct {
	few   [fewOthers]K
	ports [fewOthers]uint32
	n     int           // elements of few in use
	more  map[K]*uint32 // pointers, so that a port costs one look into the map
}

const fewOthers = 3

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
		if c.first == nobody || !yield(c.first, c.ports) || c.others == nil {
			return
		}
		for i := range c.others.n {
			if !yield(c.others.few[i], c.others.ports[i]) {
				return
			}
		}
		for key, n := range c.others.more {
			if !yield(key, *n) {
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
	if c.others == nil {
		c.others = new(others[K])
	}
	o := c.others
	for i := range o.n {
		if o.few[i] == key {
			o.ports[i] += ports
			return
		}
	}
	if o.n < fewOthers {
		o.few[o.n], o.ports[o.n] = key, ports
		o.n++
		return
	}
	if before, ok := o.more[key]; ok {
		*before += ports
		return
	}
	if fewOthers+len(o.more) >= maxOthers {
		return
	}
	if o.more == nil {
		o.more = map[K]*uint32{}
	}
	n := ports // only what is kept moves to the heap
	o.more[key] = &n
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

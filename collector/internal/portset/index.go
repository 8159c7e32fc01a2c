package portset

import "hash/maphash"

// An Index finds items by their key. It numbers them from 0 on, in the order in which they were added. It needs 12 to 24 bytes for
// each besides the item, and keeps its memory when it is cleared. The zero value is empty.
type Index[K comparable, V any] struct {
	items Blocks[Item[K, V]]
	slots []uint64 // a hash table with linear probing: the upper half of a hash, and the number of the item plus 1; 0 is free
	seed  maphash.Seed
	need  need
}

// An Item is a key and what belongs to it. Keys must have no padding, so that one call hashes them.
type Item[K comparable, V any] struct {
	Key   K
	Value V
}

// leastSlots is the least number of slots, a power of two.
const leastSlots = 256

// Len returns the number of items.
func (x *Index[K, V]) Len() int { return x.items.Len() }

// At returns item i.
func (x *Index[K, V]) At(i int) *Item[K, V] { return x.items.At(i) }

// Find returns the number of an item.
func (x *Index[K, V]) Find(key K) (i int, ok bool) {
	if len(x.slots) == 0 {
		return 0, false
	}
	i, _, _ = x.search(key)
	return i, i >= 0
}

// Add returns the number of an item. It adds one with a zero value if there is none.
func (x *Index[K, V]) Add(key K) (i int, added bool) {
	if 3*x.Len() >= 2*len(x.slots) {
		x.grow()
	}
	i, slot, hash := x.search(key)
	if i >= 0 {
		return i, false
	}
	i = x.Len()
	x.items.Add(Item[K, V]{Key: key})
	x.slots[slot] = hash<<32 | uint64(i+1)
	return i, true
}

// search returns the number of an item and its hash, or -1 and the free slot for it.
func (x *Index[K, V]) search(key K) (i, slot int, hash uint64) {
	hash = x.hash(key)
	mask := len(x.slots) - 1
	for slot = int(hash) & mask; ; slot = (slot + 1) & mask {
		switch s := x.slots[slot]; {
		case s == 0:
			return -1, slot, hash
		case s>>32 == hash:
			if i := int(uint32(s)) - 1; x.items.At(i).Key == key {
				return i, slot, hash
			}
		}
	}
}

// hash returns the part of a key's hash that a slot has.
func (x *Index[K, V]) hash(key K) uint64 { return maphash.Comparable(x.seed, key) >> 32 }

// grow doubles the number of slots.
func (x *Index[K, V]) grow() {
	if x.slots == nil {
		x.seed = maphash.MakeSeed()
	}
	x.resize(max(2*len(x.slots), leastSlots))
}

// resize sets the number of slots, a power of two.
func (x *Index[K, V]) resize(n int) {
	old := x.slots
	x.slots = make([]uint64, n)
	for _, s := range old {
		if s == 0 {
			continue
		}
		slot := int(s>>32) & (n - 1)
		for x.slots[slot] != 0 {
			slot = (slot + 1) & (n - 1)
		}
		x.slots[slot] = s
	}
}

// Clear removes all items.
func (x *Index[K, V]) Clear() {
	if 16*x.Len() >= len(x.slots) {
		clear(x.slots)
	} else { // few items after many
		mask := len(x.slots) - 1
		for i := range x.Len() {
			for slot := int(x.hash(x.At(i).Key)) & mask; x.slots[slot] != 0; slot = (slot + 1) & mask {
				x.slots[slot] = 0
			}
		}
	}
	x.need.add(x.Len())
	x.items.Clear()
}

// Trim gives back memory that was not needed since the last calls. The Index must be clear.
func (x *Index[K, V]) Trim() {
	x.items.Trim()
	if n := x.need.trim(); 6*n < len(x.slots) && len(x.slots) > leastSlots {
		x.slots = nil
		size := leastSlots
		for 3*n >= 2*size {
			size *= 2
		}
		x.resize(size)
	}
}

package portset

import "iter"

// Lists are the ports of the sockets of many pools: 2 bytes for each socket, and some for each
// pool.
type Lists struct{ blocks Blocks[listBlock] }

// Clear makes all lists empty, and keeps their memory.
func (l *Lists) Clear() { l.blocks.Clear() }

// Trim gives back memory that was not needed since the last calls. The lists must be clear.
func (l *Lists) Trim() { l.blocks.Trim() }

// A listBlock is a part of one list.
type listBlock struct {
	ports  [14]uint16
	before int32 // index of the block before, in the same list
}

// A List is one of Lists. The zero value is an empty list.
type List struct {
	last int32 // index of the block
	n    int32
}

// Len returns how many ports were added to the list.
func (l List) Len() int { return int(l.n) }

// Add adds a port to one of the lists.
func (l *Lists) Add(list *List, port uint16) {
	i := int(list.n) % len(listBlock{}.ports)
	if i == 0 {
		l.blocks.Add(listBlock{before: list.last})
		list.last = int32(l.blocks.Len() - 1)
	}
	l.blocks.At(int(list.last)).ports[i] = port
	list.n++
}

// All returns the ports of one of the lists. A port is in it as often as it was added.
func (l *Lists) All(list List) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		at := list.last
		for n := list.n; n > 0; {
			block := l.blocks.At(int(at))
			used := (int(n)-1)%len(listBlock{}.ports) + 1
			for _, port := range block.ports[:used] {
				if !yield(port) {
					return
				}
			}
			n -= int32(used)
			at = block.before
		}
	}
}

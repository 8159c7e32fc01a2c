package portset

import "iter"

// Lists are the ports of the sockets of many pools: 2 bytes for each socket, and some for each
// pool. A long list takes 8 KiB, however long it is.
type Lists struct {
	blocks Blocks[listBlock]
	free   blockChain  // blocks that no list has any more
	long   []*longList // the first nLong are in use
	nLong  int
	need   need // of long lists
}

// A listBlock is a part of one list.
type listBlock struct {
	ports  [14]uint16
	before int32 // index of the block before, in the same chain
}

// A blockChain is some blocks, from the last one on.
type blockChain struct{ last, n int32 }

// longest is how many ports a list has in blocks. With more, it is a longList, which then takes less memory.
const longest = 4096

// A longList has each port once, and those that come again in blocks: a dump can have a socket twice.
type longList struct {
	ports Map
	again List
}

// A List is one of Lists. The zero value is an empty list.
type List struct {
	last int32 // index of the block, or ^index of the longList
	n    int32
}

// Len returns how many ports were added to the list.
func (l List) Len() int { return int(l.n) }

// Clear makes all lists empty, and keeps their memory.
func (l *Lists) Clear() {
	l.blocks.Clear()
	l.free = blockChain{}
	for _, long := range l.long[:l.nLong] {
		*long = longList{}
	}
	l.need.add(l.nLong)
	l.nLong = 0
}

// Trim gives back memory that was not needed since the last calls. The lists must be clear.
func (l *Lists) Trim() {
	l.blocks.Trim()
	if most := l.need.trim(); most < len(l.long) {
		clear(l.long[most:])
		l.long = l.long[:most]
	}
}

// Add adds a port to one of the lists.
func (l *Lists) Add(list *List, port uint16) {
	if list.n == longest && list.last >= 0 {
		l.lengthen(list)
	}
	if list.last >= 0 {
		l.append(list, port)
		return
	}
	l.long[^list.last].add(l, port)
	list.n++
}

// append adds a port to the blocks of a list.
func (l *Lists) append(list *List, port uint16) {
	i := int(list.n) % len(listBlock{}.ports)
	if i == 0 {
		list.last = l.addBlock(list.last)
	}
	l.blocks.At(int(list.last)).ports[i] = port
	list.n++
}

// addBlock returns the index of an empty block.
func (l *Lists) addBlock(before int32) int32 {
	i := l.free.last
	if l.free.n == 0 {
		i = int32(l.blocks.Len())
		l.blocks.Add(listBlock{before: before})
		return i
	}
	block := l.blocks.At(int(i))
	l.free = blockChain{block.before, l.free.n - 1}
	*block = listBlock{before: before}
	return i
}

// lengthen makes a list a longList, and frees its blocks.
func (l *Lists) lengthen(list *List) {
	if l.nLong == len(l.long) {
		l.long = append(l.long, new(longList))
	}
	index := l.nLong
	l.nLong++
	for port := range l.All(*list) {
		l.long[index].add(l, port)
	}
	first := list.last
	n := (list.n-1)/int32(len(listBlock{}.ports)) + 1
	for range n - 1 {
		first = l.blocks.At(int(first)).before
	}
	l.blocks.At(int(first)).before = l.free.last
	l.free = blockChain{list.last, l.free.n + n}
	list.last = ^int32(index)
}

// All returns the ports of one of the lists. A port is in it as often as it was added.
func (l *Lists) All(list List) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		if list.last < 0 {
			l.long[^list.last].each(l, yield)
			return
		}
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

// add adds a port.
func (long *longList) add(l *Lists, port uint16) {
	if long.ports.Has(port) {
		l.append(&long.again, port)
	} else {
		long.ports.Add(port)
	}
}

// each calls yield for the ports until it returns false.
func (long *longList) each(l *Lists, yield func(uint16) bool) {
	for port := range long.ports.All() {
		if !yield(port) {
			return
		}
	}
	for port := range l.All(long.again) {
		if !yield(port) {
			return
		}
	}
}

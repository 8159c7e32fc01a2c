package pool

import (
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// A portMap is a set of ports, with one bit for each port.
type portMap [1 << 16 / 64]uint64

func (m *portMap) has(port uint16) bool { return m[port/64]&(1<<(port%64)) != 0 }
func (m *portMap) add(port uint16)      { m[port/64] |= 1 << (port % 64) }
func (m *portMap) remove(port uint16)   { m[port/64] &^= 1 << (port % 64) }

// addRange adds the ports from low to high, both included, to an empty map.
func (m *portMap) addRange(low, high uint16) {
	first, last := low/64, high/64
	for i := first; i <= last; i++ {
		m[i] = ^uint64(0)
	}
	m[first] &= ^uint64(0) << (low % 64)
	m[last] &= ^uint64(0) >> (63 - high%64)
}

// addRanges adds the ports of ranges that may overlap.
func (m *portMap) addRanges(ranges []PortRange) {
	for _, r := range ranges {
		for p := int(r.Low); p <= int(r.High); p++ {
			m.add(uint16(p))
		}
	}
}

// String writes the ports as the kernel writes ip_local_reserved_ports.
func (m *portMap) String() string {
	var parts []string
	for low := 0; low < maxPorts; low++ {
		if !m.has(uint16(low)) {
			continue
		}
		high := low
		for high+1 < maxPorts && m.has(uint16(high+1)) {
			high++
		}
		if low == high {
			parts = append(parts, strconv.Itoa(low))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", low, high))
		}
		low = high
	}
	return strings.Join(parts, ",")
}

// addUnreserved adds the ports of the range that are not reserved to an empty map.
func (m *portMap) addUnreserved(s Settings) {
	m.addRange(s.PortRange.Low, s.PortRange.High)
	for _, r := range s.ReservedPorts {
		for p := max(int(r.Low), int(s.PortRange.Low)); p <= min(int(r.High), int(s.PortRange.High)); p++ {
			m.remove(uint16(p))
		}
	}
}

// maxPorts is one more than the greatest port.
const maxPorts = 1 << 16

// count returns the number of ports with the same parity as port that are at least from and less
// than to.
func (m *portMap) count(port uint16, from, to int) int {
	parity := uint64(0x5555555555555555) << (port % 2)
	n := 0
	for i := from / 64; i*64 < to; i++ {
		word := m[i] & parity
		if first := from - i*64; first > 0 {
			word &= ^uint64(0) << first
		}
		if after := to - i*64; after < 64 {
			word &= 1<<after - 1
		}
		n += bits.OnesCount64(word)
	}
	return n
}

// all returns the ports in ascending order.
func (m *portMap) all() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for i, word := range m {
			for ; word != 0; word &= word - 1 {
				if !yield(uint16(i*64 + bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}

// size returns the number of ports.
func (m *portMap) size() int {
	n := 0
	for _, word := range m {
		n += bits.OnesCount64(word)
	}
	return n
}

// common returns how many ports both have.
func (m *portMap) common(other *portMap) int {
	n := 0
	for i, word := range m {
		n += bits.OnesCount64(word & other[i])
	}
	return n
}

// maxSparse is the number of ports up to which a portSet keeps a sorted list. A larger set
// uses a portMap, which takes 8 KiB: insertion into a long list is slow.
const maxSparse = 128

// A portSet is a set of ports that needs little memory for few ports. A transparent proxy
// has one source address, and so one portSet, for every client.
type portSet struct {
	sparse []uint16 // sorted; nil once dense is set
	dense  *portMap

	parity [2]int // number of even ports, number of odd ports
}

// add adds a port to the set.
func (s *portSet) add(port uint16) {
	if s.dense != nil {
		if s.dense.has(port) {
			return
		}
		s.dense.add(port)
	} else {
		i, found := slices.BinarySearch(s.sparse, port)
		if found {
			return
		}
		s.sparse = slices.Insert(s.sparse, i, port)
		if len(s.sparse) > maxSparse {
			s.dense = new(portMap)
			for _, p := range s.sparse {
				s.dense.add(p)
			}
			s.sparse = nil
		}
	}

	s.parity[port%2]++
}

// count is like that of portMap.
func (s *portSet) count(port uint16, from, to int) int {
	if s.dense != nil {
		return s.dense.count(port, from, to)
	}
	n := 0
	for _, p := range s.sparse {
		if int(p) >= from && int(p) < to && p%2 == port%2 {
			n++
		}
	}
	return n
}

// has reports whether the set has the port.
func (s *portSet) has(port uint16) bool {
	if s.dense != nil {
		return s.dense.has(port)
	}
	_, found := slices.BinarySearch(s.sparse, port)
	return found
}

// all returns the ports in ascending order.
func (s *portSet) all() []uint16 {
	if s.dense == nil {
		return slices.Clone(s.sparse)
	}
	return slices.Collect(s.dense.all())
}

// common returns how many ports both sets have.
func (s *portSet) common(other *portSet) int {
	if s.dense == nil || other.dense == nil {
		if s.dense != nil {
			s, other = other, s
		}
		n := 0
		for _, p := range s.sparse {
			if other.has(p) {
				n++
			}
		}
		return n
	}
	return s.dense.common(other.dense)
}

// size returns the number of ports.
func (s *portSet) size() int { return s.parity[0] + s.parity[1] }

// parityOf returns how many of the ports have the same parity as port.
func (s *portSet) parityOf(port uint16) int { return s.parity[port%2] }

// portLists are the ports of the sockets of many pools: 2 bytes for each socket, and some for each
// pool.
type portLists []portBlock

// A portBlock is a part of one list.
type portBlock struct {
	ports  [14]uint16
	before int32 // index of the block before, in the same list
}

// A portList is one of portLists. The zero value is an empty list.
type portList struct {
	last int32 // index of the block
	n    int32
}

// add adds a port to one of the lists.
func (l *portLists) add(list *portList, port uint16) {
	i := int(list.n) % len(portBlock{}.ports)
	if i == 0 {
		*l = append(*l, portBlock{before: list.last})
		list.last = int32(len(*l) - 1)
	}
	(*l)[list.last].ports[i] = port
	list.n++
}

// all returns the ports of one of the lists. A port is in it as often as it was added.
func (l portLists) all(list portList) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		block := list.last
		for n := list.n; n > 0; {
			used := (int(n)-1)%len(portBlock{}.ports) + 1
			for _, port := range l[block].ports[:used] {
				if !yield(port) {
					return
				}
			}
			n -= int32(used)
			block = l[block].before
		}
	}
}

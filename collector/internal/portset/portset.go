// Package portset has sets, lists and counts of ports that need little memory.
package portset

import (
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// A Range is the ports from Low to High, both included.
type Range struct {
	Low, High uint16
}

// Size returns the number of ports, at least 1.
func (r Range) Size() int { return int(r.High) - int(r.Low) + 1 }

// Contains reports whether port is in the range.
func (r Range) Contains(port uint16) bool { return r.Low <= port && port <= r.High }

// A Map is a set of ports, with one bit for each port.
type Map [1 << 16 / 64]uint64

// Has reports whether the map has the port.
func (m *Map) Has(port uint16) bool { return m[port/64]&(1<<(port%64)) != 0 }

// Add adds a port.
func (m *Map) Add(port uint16) { m[port/64] |= 1 << (port % 64) }

// Remove removes a port.
func (m *Map) Remove(port uint16) { m[port/64] &^= 1 << (port % 64) }

// AddRange adds the ports of a range to an empty map.
func (m *Map) AddRange(r Range) {
	first, last := r.Low/64, r.High/64
	for i := first; i <= last; i++ {
		m[i] = ^uint64(0)
	}
	m[first] &= ^uint64(0) << (r.Low % 64)
	m[last] &= ^uint64(0) >> (63 - r.High%64)
}

// AddRanges adds the ports of ranges that may overlap.
func (m *Map) AddRanges(ranges []Range) {
	for _, r := range ranges {
		for p := int(r.Low); p <= int(r.High); p++ {
			m.Add(uint16(p))
		}
	}
}

// String writes the ports as the kernel writes ip_local_reserved_ports.
func (m *Map) String() string {
	var parts []string
	for run := range m.Runs() {
		if run.Low == run.High {
			parts = append(parts, strconv.Itoa(int(run.Low)))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", run.Low, run.High))
		}
	}
	return strings.Join(parts, ",")
}

// AddUnreserved adds the ports of a range that are not reserved to an empty map.
func (m *Map) AddUnreserved(r Range, reserved []Range) {
	m.AddRange(r)
	for _, out := range reserved {
		for p := max(int(out.Low), int(r.Low)); p <= min(int(out.High), int(r.High)); p++ {
			m.Remove(uint16(p))
		}
	}
}

// MaxPorts is one more than the greatest port.
const MaxPorts = 1 << 16

// Count returns the number of ports with the same parity as port that are at least from and less
// than to.
func (m *Map) Count(port uint16, from, to int) int {
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

// All returns the ports in ascending order.
func (m *Map) All() iter.Seq[uint16] { return m.In(Range{0, MaxPorts - 1}) }

// In returns the ports of a range in ascending order.
func (m *Map) In(r Range) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		first, last := int(r.Low/64), int(r.High/64)
		for i := first; i <= last; i++ {
			word := m[i]
			if i == first {
				word &= ^uint64(0) << (r.Low % 64)
			}
			if i == last {
				word &= ^uint64(0) >> (63 - r.High%64)
			}
			for ; word != 0; word &= word - 1 {
				if !yield(uint16(i*64 + bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}

// Runs returns the ranges of neighbours that are all in the map, in ascending order.
func (m *Map) Runs() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		run, found := Range{}, false
		for port := range m.All() {
			if found && port == run.High+1 {
				run.High = port
				continue
			}
			if found && !yield(run) {
				return
			}
			run, found = Range{port, port}, true
		}
		if found {
			yield(run)
		}
	}
}

// Size returns the number of ports.
func (m *Map) Size() int {
	n := 0
	for _, word := range m {
		n += bits.OnesCount64(word)
	}
	return n
}

// Common returns how many ports both have.
func (m *Map) Common(other *Map) int {
	n := 0
	for i, word := range m {
		n += bits.OnesCount64(word & other[i])
	}
	return n
}

// maxSparse is the number of ports up to which a Set keeps a sorted list. A larger set
// uses a Map, which takes 8 KiB: insertion into a long list is slow.
const maxSparse = 128

// A Set is a set of ports that needs little memory for few ports. A transparent proxy
// has one source address, and so one Set, for every client.
type Set struct {
	sparse []uint16 // sorted; nil once dense is set
	dense  *Map

	parity [2]int // number of even ports, number of odd ports
}

// Add adds a port to the set.
func (s *Set) Add(port uint16) {
	if s.dense != nil {
		if s.dense.Has(port) {
			return
		}
		s.dense.Add(port)
	} else {
		i, found := slices.BinarySearch(s.sparse, port)
		if found {
			return
		}
		s.sparse = slices.Insert(s.sparse, i, port)
		if len(s.sparse) > maxSparse {
			s.dense = new(Map)
			for _, p := range s.sparse {
				s.dense.Add(p)
			}
			s.sparse = nil
		}
	}

	s.parity[port%2]++
}

// AddAll adds the ports of another set.
func (s *Set) AddAll(other *Set) {
	if other.dense == nil {
		for _, port := range other.sparse {
			s.Add(port)
		}
		return
	}
	for port := range other.dense.All() {
		s.Add(port)
	}
}

// Is reports whether both sets are one, of which there are two copies.
func (s *Set) Is(other *Set) bool {
	if len(s.sparse) > 0 && len(other.sparse) > 0 {
		return &s.sparse[0] == &other.sparse[0]
	}
	return s.dense == other.dense && len(s.sparse) == len(other.sparse)
}

// Count returns what Map.Count returns.
func (s *Set) Count(port uint16, from, to int) int {
	if s.dense != nil {
		return s.dense.Count(port, from, to)
	}
	n := 0
	for _, p := range s.sparse {
		if int(p) >= from && int(p) < to && p%2 == port%2 {
			n++
		}
	}
	return n
}

// Has reports whether the set has the port.
func (s *Set) Has(port uint16) bool {
	if s.dense != nil {
		return s.dense.Has(port)
	}
	_, found := slices.BinarySearch(s.sparse, port)
	return found
}

// All returns the ports in ascending order.
func (s *Set) All() []uint16 {
	if s.dense == nil {
		return slices.Clone(s.sparse)
	}
	return slices.Collect(s.dense.All())
}

// Common returns how many ports both sets have.
func (s *Set) Common(other *Set) int {
	if s.dense == nil || other.dense == nil {
		if s.dense != nil {
			s, other = other, s
		}
		n := 0
		for _, p := range s.sparse {
			if other.Has(p) {
				n++
			}
		}
		return n
	}
	return s.dense.Common(other.dense)
}

// Size returns the number of ports.
func (s *Set) Size() int { return s.parity[0] + s.parity[1] }

// ParityOf returns how many of the ports have the same parity as port.
func (s *Set) ParityOf(port uint16) int { return s.parity[port%2] }

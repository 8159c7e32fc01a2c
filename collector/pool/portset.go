package pool

import (
	"math/bits"
	"slices"
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

// addUnreserved adds the ports of the range that are not reserved to an empty map.
func (m *portMap) addUnreserved(s Settings) {
	m.addRange(s.PortRange.Low, s.PortRange.High)
	for _, r := range s.ReservedPorts {
		for p := max(int(r.Low), int(s.PortRange.Low)); p <= min(int(r.High), int(s.PortRange.High)); p++ {
			m.remove(uint16(p))
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

// size returns the number of ports.
func (s *portSet) size() int { return s.parity[0] + s.parity[1] }

// parityOf returns how many of the ports have the same parity as port.
func (s *portSet) parityOf(port uint16) int { return s.parity[port%2] }

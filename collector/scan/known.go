//go:build linux

package scan

import (
	"cmp"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/pool"
)

// A knownNamespace is what a Scanner remembers of another network namespace as long as that
// exists. It decides how the next scan proceeds. Of it, only how often the kernel's counters began anew
// is part of exported numbers, and the page has what overflowCounter counts.
type knownNamespace struct {
	inode     uint64
	label     string
	cookie    uint64
	surveyed  uint64 // number of the last scan that entered it
	busy      bool   // in that scan
	collected uint64 // number of the last scan that began to read its sockets
	capacity  int    // ports of one pool if there were no listeners; -1 before it is read

	natBusy      bool          // in the last scan that entered it: it tracked many flows
	natCollected uint64        // number of the last scan that began to read its flows
	natTook      time.Duration // about, for that; 0 if there was none
	natDrops     dropCounter

	learned  pool.Knowledge // about its clients and peers
	counters conntrackCounters

	overflows overflowCounter

	workload    Workload
	workloadPID int   // the process of workload.Workload, while command is 0
	command     int   // the process of workload; 0 if that is not known
	examined    []int // processes among which none had sockets
}

// recall returns what is known of the namespace with that cookie, which can be nothing yet. A
// cookie of 0 is that of no namespace.
func (s *Scanner) recall(cookie, inode uint64) *knownNamespace {
	if k, ok := s.known[cookie]; ok && cookie != 0 {
		return k
	}
	return &knownNamespace{cookie: cookie, inode: inode, capacity: -1}
}

// knownByInode returns what is known of the namespaces of the last scan, by inode. Another
// namespace can have the inode by now: only the cookie tells.
func (s *Scanner) knownByInode() map[uint64]*knownNamespace {
	inodes := make(map[uint64]*knownNamespace, len(s.known))
	for _, k := range s.known {
		inodes[k.inode] = k
	}
	return inodes
}

// sortByNeed sorts namespaces for a survey: first those that were busy, then those that have not
// been surveyed for longest. So a flood of namespaces does not hide one that is busy, and each
// has its turn.
func sortByNeed(found []netns.Namespace, known map[uint64]*knownNamespace) {
	slices.SortStableFunc(found, func(a, b netns.Namespace) int {
		ka, kb := known[a.Inode], known[b.Inode]
		switch {
		case ka == nil && kb == nil:
			return 0
		case ka == nil:
			return cmp.Compare(1, rank(kb))
		case kb == nil:
			return cmp.Compare(rank(ka), 1)
		}
		return cmp.Or(cmp.Compare(rank(ka), rank(kb)), cmp.Compare(ka.surveyed, kb.surveyed))
	})
}

// rank is 0 for a namespace that was busy, 1 for one that was never surveyed, and 2 for others.
func rank(k *knownNamespace) int {
	switch {
	case k.busy || k.natBusy:
		return 0
	case k.surveyed == 0:
		return 1
	default:
		return 2
	}
}

// retain forgets all namespaces but these.
func (s *Scanner) retain(candidates []candidate) {
	s.known = make(map[uint64]*knownNamespace, len(candidates))
	for _, c := range candidates {
		if c.cookie != 0 {
			s.known[c.cookie] = c.known
		}
	}
}

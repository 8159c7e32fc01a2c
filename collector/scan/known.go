//go:build linux

package scan

// A knownNamespace is what a Scanner remembers of another network namespace as long as that
// exists. It decides how the next scan proceeds, and is never exported as a number.
type knownNamespace struct {
	inode    uint64
	label    string
	capacity int // ports of one pool if there were no listeners; -1 before it is read

	owner    Owner
	ownerPID int   // the process of owner.Owner
	command  int   // the process of owner.Command; 0 if that is not known
	examined []int // processes among which none had sockets
}

// recall returns what is known of the namespace with that cookie, which can be nothing yet. A
// cookie of 0 is that of no namespace.
func (s *Scanner) recall(cookie, inode uint64) *knownNamespace {
	if k, ok := s.known[cookie]; ok && cookie != 0 {
		return k
	}
	return &knownNamespace{inode: inode, capacity: -1}
}

// recallUnreached sets what is known of candidates that the scan did not enter, by their inode.
func (s *Scanner) recallUnreached(candidates []candidate) {
	var cookies map[uint64]uint64 // by inode
	for i := range candidates {
		c := &candidates[i]
		if c.known != nil {
			continue
		}
		if cookies == nil {
			cookies = make(map[uint64]uint64, len(s.known))
			for cookie, k := range s.known {
				cookies[k.inode] = cookie
			}
		}
		c.cookie = cookies[c.Inode]
		c.known = s.recall(c.cookie, c.Inode)
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

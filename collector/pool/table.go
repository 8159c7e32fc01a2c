package pool

import (
	"net/netip"
	"time"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// loopbackInterface is the index of the interface lo in every network namespace,
// LOOPBACK_IFINDEX of include/net/flow.h.
const loopbackInterface = 1

// A Table counts the sockets of one network namespace by pool and source. Its memory grows with the
// number of pools and sources, and by 2 bytes for each socket unless KnowBound was called.
type Table struct {
	settings   Settings
	rules      [2]timeWaitRule // for other destinations and for loopback
	usable     portset.Map     // ports that connect() may choose
	listening  portset.Set     // ports of listeners, also outside the range
	blocked    blockedPorts    // ports that listeners block
	bound      portset.Set     // ports in usable that connect() may not choose after all, because some socket is bound to them
	doubtful   portset.Set     // other ports of clients of whom it is not known whether they bind first
	marked     portset.Set     // ports that are bound or may be, also of more clients than can be
	held       *portset.Set    // ports in usable that sockets hold
	pools      pools
	entries    portset.Blocks[entries]    // of pools that have a few sockets
	counts     portset.Blocks[poolCounts] // of the others
	sources    portset.Index[sourceKey, *portset.Set]
	cgroups    cgroups
	sockets    int
	lastSource int
	seen       timeWaitSeconds
	phase      phase

	before     Knowledge // see Recall
	peers      peerAnswers
	use        timestampsUse
	boundKnown bool // see KnowBound
	unsure     bool // see AsksFinWait2
	inferred   bool // Infer had something to compare with
	allSince   bool // connections that may be earlier are not, see timestampsUse.learn
	settled    bool // bound and doubtful are complete
	lists      portset.Lists
	several    []portset.Set // by number of the source, see severalPools
	room       poolCounts    // of a pool that has none of its own
	entry      entry         // see entryOf

	reserved int // ports of the range that are in ip_local_reserved_ports
	capacity int // ports in usable
}

// NewTable returns an empty Table for a namespace with these settings. Block its listeners
// before the first Add.
func NewTable(s Settings) *Table {
	t := new(Table)
	t.Reset(s)
	return t
}

// Reset makes the Table one that NewTable returns. It keeps memory for as many pools and sockets as it had.
// What others have got from the Table stays as it is.
func (t *Table) Reset(s Settings) {
	old := *t
	*t = Table{
		settings: s,
		rules:    [2]timeWaitRule{s.timeWaitRule(false), s.timeWaitRule(true)},
		blocked:  newBlockedPorts(),
		held:     new(portset.Set),
		pools:    old.pools,
		entries:  old.entries,
		counts:   old.counts,
		sources:  old.sources,
		cgroups:  cgroups{numbers: old.cgroups.numbers},
		lists:    old.lists,
	}
	for _, kept := range t.kept() {
		kept.Clear()
	}
	t.usable.AddUnreserved(s.PortRange, s.ReservedPorts)
	t.capacity = t.usable.Size()
	t.reserved = s.PortRange.Size() - t.capacity
}

// Release empties the Table, and gives back memory that was not needed since the last calls.
func (t *Table) Release() {
	t.Reset(Settings{})
	for _, kept := range t.kept() {
		kept.Trim()
	}
}

// kept returns the parts of a Table that keep their memory.
func (t *Table) kept() [7]portset.Kept {
	return [...]portset.Kept{&t.pools.ipv4, &t.pools.ipv6, &t.entries, &t.counts, &t.sources, &t.cgroups.numbers, &t.lists}
}

// Block counts a listener.
func (t *Table) Block(l Listener) {
	port := l.Local.Port()
	t.listening.Add(port)
	if t.usable.Has(port) {
		t.usable.Remove(port)
		t.capacity--
	} else if !t.blocked.has(port) {
		return // reserved, or outside the range
	}
	t.blocked.add(l)
}

// Recall has the Table use what earlier ones learned. It must come before the first Add. now is when the settings had
// been read, on the clock of Socket.Seen. If the range has changed, it is not known any more what
// had a choice: connect() may prefer the other parity now. If it does, it is not known who binds either.
func (t *Table) Recall(k Knowledge, now time.Duration) {
	if k.portRange != t.settings.PortRange {
		k.forgetChoices(t.settings.PortRange.Low)
	}
	t.before = k
	t.peers = newPeerAnswers(k.peers)
	t.use = k.use.at(now, t.settings)
}

// KnowBound says that the reader knows of every socket whether its port is bound, so that there is
// nothing to Infer. It must come before the first Add.
func (t *Table) KnowBound() { t.boundKnown = true }

// Add counts a socket. The caller may reuse s afterwards.
func (t *Table) Add(s *Socket) {
	t.sockets++
	port := s.Local.Port()
	if !t.usable.Has(port) {
		t.addBlocked(s)
		return
	}
	n := t.pools.add(s)
	p := t.pools.at(n)
	if p.contents() == 0 {
		p.source = int32(t.sourceOf(s))
	}
	if s.State > tcpstate.Closing {
		return // a state that no kernel has today
	}
	t.sources.At(int(p.source)).Value.Add(port)
	t.held.Add(port)
	if s.Bound == Yes {
		t.bound.Add(port)
	}
	c := p.contents()
	if c&hasCounts != 0 || t.use.turned && !t.boundKnown { // an earlierPorts is about more than the entries
		counts := t.give(n)
		t.addTo(counts, t.entryOf(counts, s))
		return
	}
	if s.Mini || s.State == tcpstate.TimeWait {
		t.recallOf(n, t.countsOf(n, &t.room))
	}
	e := t.entryOf(&t.room, s)
	if short, ok := e.short(t.cgroups.number(e.cgroup)); !ok || !t.addEntry(p, short) {
		t.addTo(t.give(n), e)
	}
}

// addTo counts a socket in the counts of its pool, with its list.
func (t *Table) addTo(c *poolCounts, e *entry) {
	c.add(e)
	if e.cgroup != 0 {
		c.owners.Add(e.cgroup)
	}
	if !t.boundKnown {
		t.lists.Add(&c.lists[e.list], e.port)
	}
}

// entryOf returns what a socket adds to the counts of its pool, valid until the next call. Of c, it needs what is known of the pool only
// for a mini-socket, and if tcp_timestamps was switched on.
func (t *Table) entryOf(c *poolCounts, s *Socket) *entry {
	e := &t.entry
	*e = entry{port: s.Local.Port(), state: s.State, list: fixed, cgroup: s.Cgroup}
	if s.State == tcpstate.FinWait2 && !s.Mini {
		e.marks |= markHalfClosed
	}
	if s.Bound == Yes {
		e.marks |= markBound
	}
	earlier := t.isEarlier(c, s)
	switch {
	case s.State == tcpstate.TimeWait || s.Mini:
		t.setMini(e, c, s, earlier)
	case s.State != tcpstate.SynSent && s.State != tcpstate.SynRecv:
		e.list, e.device = open, s.Interface
		if earlier {
			e.marks |= markOpenEarlier
		}
	}
	return e
}

// AsksFinWait2 reports whether it matters for a pool what Settings.ReuseFinWait2 is, and it is Unknown.
func (t *Table) AsksFinWait2() bool { return t.unsure }

// setMini sets what a mini-socket adds. A port that is bound is not reusable. earlier is isEarlier.
func (t *Table) setMini(e *entry, c *poolCounts, s *Socket, earlier bool) {
	rule := t.rule(c.loopback || s.Interface == loopbackInterface)
	fact := c.answers.fact()
	if s.Timestamps != Unknown {
		fact = s.Timestamps
		switch {
		case c.loopback:
		case fact == Yes:
			e.marks |= markTimestamps
		default:
			e.marks |= markNoTimestamps
		}
	}
	age := rule.age(s)
	old := rule.oldEnough(s, age)
	kind := rule.kind(fact)
	unproven := s.Timestamps == Unknown && s.Seen-age < t.use.since
	if s.Bound == Yes || c.known.isBound(e.port) || unproven && t.use.turned {
		kind = expired
	}
	t.phase.add(s.Seen)
	t.use.last = max(t.use.last, s.Seen)
	if s.State == tcpstate.TimeWait {
		t.seen.add(s.Expires)
		t.use.closes.add(s.Seen-age, age)
	} else {
		switch {
		case kind == takenOver && rule.finWait2 == Yes:
			e.marks |= markFinWait2
		case kind == takenOver && rule.finWait2 == Unknown && old:
			e.marks |= markUnsure
			t.unsure = true
			kind = unanswered
		default:
			kind = unanswered
		}
	}
	if kind == takenOver && s.State == tcpstate.TimeWait && c.known.likelyBound(t.parityOf(e.port)) {
		kind = expired
		if old {
			e.list = presumed
			if unproven || earlier {
				e.marks |= markPresumedEarly
			}
		}
	}
	if kind == takenOver && old {
		e.list = reuse
		if unproven || earlier {
			e.marks |= markEarly
		}
		if rule.wholeSeconds && age < time.Second {
			e.marks |= markRecent
		}
		return
	}
	e.closed = binOf(kind, min(age, rule.times[kind].life), rule.times[kind].life)
}

// addBlocked counts a socket whose port connect() cannot choose. A port that is reserved or
// outside the range does not count. A socket that a listener could have accepted is inbound
// and does not count either. Otherwise the client bound the port before it connected: a
// listener on another address does not prevent that.
func (t *Table) addBlocked(s *Socket) {
	port := s.Local.Port()
	if t.blocked.has(port) && !t.blocked.deny(s.Local.Addr(), port) {
		t.sources.At(t.sourceOf(s)).Value.Add(port)
	}
}

// sourceOf returns the number of a socket's source address.
func (t *Table) sourceOf(s *Socket) int {
	local := s.Local.Addr()
	key := sourceKey{address: local.As16()}
	if isLinkLocal(local) {
		key.zone = s.Interface
	}
	if last := t.lastSource; last < t.sources.Len() && t.sources.At(last).Key == key {
		return last
	}
	i, added := t.sources.Add(key)
	if added {
		t.sources.At(i).Value = new(portset.Set)
	}
	t.lastSource = i
	return i
}

// rule returns the TIME_WAIT rule for loopback destinations or for other destinations.
func (t *Table) rule(loopback bool) *timeWaitRule {
	if loopback {
		return &t.rules[1]
	}
	return &t.rules[0]
}

// isLinkLocal reports whether several interfaces can have this address at the same time.
func isLinkLocal(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }

package pool

import (
	"cmp"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// poolCounts are the sockets of one pool.
type poolCounts struct {
	pool          int32 // number
	loopback      bool
	states        [tcpstate.Closing + 1]uint32 // by state
	held          int                          // the sum of states
	reusable      uint32                       // mini-sockets whose ports connect() may take over
	recent        uint32                       // of reusable, those younger than a second, with timeWaitRule.wholeSeconds
	finWait2      uint32                       // mini-sockets in FIN_WAIT2 that connect() takes over like those in TIME_WAIT
	unsure        uint32                       // mini-sockets in FIN_WAIT2 that connect() may take over if the kernel does that, and those of Doubt
	bound         uint32                       // on ports of Table.bound
	mayBound      uint32                       // on ports of Table.doubtful
	mayHold       uint32                       // of reusable, those on ports of Table.doubtful
	early         uint32                       // of reusable, those of connections that may have begun before timestamps were used
	presumedEarly uint32                       // the same of presumed
	halfClosed    uint32                       // in FIN_WAIT2, and no mini-sockets
	closed        closedPorts                  // those of mini-sockets without reusable ones

	openInterface uint32  // Socket.Interface of open connections; one that is bound to an interface decides
	openEarlier   bool    // all open ones are in earlier, and there are some
	answers       answers // whether the peer uses TCP timestamps; with a reader that knows, of connections in TIME_WAIT
	doubted       bool    // see Doubt

	known *clients // what earlier Tables learned

	before, earlier earlierPorts // at the last scan, and now

	owners ownerCounts

	open  int // connections
	lists [numLists]portset.List
}

// A list is one of those in which a pool has the ports of its sockets.
type list uint8

// The lists. A port is presumed if it is not reusable, and is unless Infer finds that it is bound, which it does in general.
const (
	open     list = iota // of open connections
	fixed                // of other sockets that are not reusable
	reuse                // of those that are
	presumed             // of others that are presumed to be bound
	numLists
)

// ports returns the number of ports that the pool's sockets hold by state, in the order of States.
func (c *poolCounts) ports() (ports [len(States)]int) {
	for i, state := range States {
		ports[i] = int(c.states[state])
	}
	return ports
}

// An entry is what a socket adds to the counts of its pool.
type entry struct {
	port   uint16
	state  tcpstate.State
	list   list
	closed closedBin
	marks  marks
	device uint32 // Socket.Interface
	cgroup uint64
}

// marks are what else is counted of a socket.
type marks uint16

// The marks.
const (
	markBound marks = 1 << iota
	markHalfClosed
	markRecent
	markEarly
	markPresumedEarly
	markFinWait2
	markUnsure
	markTimestamps
	markNoTimestamps
	markOpenEarlier // not in a short entry
)

// add counts a socket, without its owner and its list.
func (c *poolCounts) add(e *entry) {
	c.states[e.state]++
	c.held++
	switch e.list {
	case open:
		c.openInterface = cmp.Or(c.openInterface, e.device)
		c.openEarlier = e.marks&markOpenEarlier != 0 && (c.open == 0 || c.openEarlier)
		c.open++
	case reuse:
		c.reusable++
	}
	if e.closed != 0 {
		c.closed.add(e.closed)
	}
	if e.marks == 0 {
		return
	}
	for _, m := range [...]struct {
		mark  marks
		count *uint32
	}{
		{markBound, &c.bound}, {markHalfClosed, &c.halfClosed}, {markRecent, &c.recent}, {markEarly, &c.early},
		{markPresumedEarly, &c.presumedEarly}, {markFinWait2, &c.finWait2}, {markUnsure, &c.unsure},
	} {
		if e.marks&m.mark != 0 {
			*m.count++
		}
	}
	if e.marks&(markTimestamps|markNoTimestamps) != 0 {
		c.answers.add(e.marks&markTimestamps != 0)
	}
}

// A shortEntry is an entry in 8 bytes.
//
//	bits  0 to 15  port
//	bits 16 to 19  state
//	bits 20 to 21  list
//	bits 22 to 29  closed
//	bits 30 to 38  marks
//	bits 39 to 61  number of the control group in Table.cgroups
type shortEntry uint64

// Limits of a shortEntry.
const (
	maxShortMarks  = 1<<9 - 1
	maxShortCgroup = 1<<23 - 1
)

// short returns an entry in 8 bytes, if it fits. cgroup is the number of its control group.
func (e *entry) short(cgroup int) (s shortEntry, ok bool) {
	if e.device != 0 || e.marks > maxShortMarks || cgroup > maxShortCgroup {
		return 0, false
	}
	return shortEntry(e.port) | shortEntry(e.state)<<16 | shortEntry(e.list)<<20 | shortEntry(e.closed)<<22 | shortEntry(e.marks)<<30 | shortEntry(cgroup)<<39, true
}

// long returns the entry without its control group.
func (s shortEntry) long() entry {
	return entry{
		port: s.port(), state: tcpstate.State(s >> 16 & 0xf), list: s.list(), closed: closedBin(s >> 22), marks: marks(s >> 30 & maxShortMarks),
	}
}

func (s shortEntry) port() uint16 { return uint16(s) }
func (s shortEntry) list() list   { return list(s >> 20 & 3) }
func (s shortEntry) cgroup() int  { return int(s >> 39 & maxShortCgroup) }

// Most pools of a host with many have a socket or a few. These take 8 bytes for the only one, in the place of the counts, or 32 for
// each three of them. The counts of a pool are made of its entries when somebody asks for them.
const (
	entriesEach = 3
	maxEntries  = 3 * entriesEach // a pool with more has counts
)

// entries are those of one pool, in the order of its sockets.
type entries struct {
	entries [entriesEach]shortEntry
	next    int32 // index of the next ones in Table.entries
}

// contents say where the sockets of a pool are: with isOne, in the other bits; with hasCounts, in Table.counts, with the index in the
// lower half; else in Table.entries, from the index in the lower half on, and as many as the bits above it say.
type contents uint64

const (
	isOne     contents = 1 << 63
	hasCounts contents = 1 << 62
)

func (p *pool) contents() contents { return contents(p.sockets[1])<<32 | contents(p.sockets[0]) }

func (p *pool) setContents(c contents) { p.sockets = [2]uint32{uint32(c), uint32(c >> 32)} }

// index returns the index in the lower half.
func (c contents) index() int { return int(uint32(c)) }

// len returns the number of entries.
func (c contents) len() int {
	if c&isOne != 0 {
		return 1
	}
	return int(c >> 32)
}

// addEntry adds an entry to a pool that has no counts. It reports whether there was room for it.
func (t *Table) addEntry(p *pool, e shortEntry) bool {
	c := p.contents()
	n := c.len()
	switch n {
	case 0:
		p.setContents(isOne | contents(e))
		return true
	case maxEntries:
		return false
	case 1:
		t.entries.Add(entries{entries: [entriesEach]shortEntry{shortEntry(c &^ isOne), e}})
		p.setContents(2<<32 | contents(t.entries.Len()-1))
		return true
	}
	last := t.entries.At(c.index())
	for range (n - 1) / entriesEach {
		last = t.entries.At(int(last.next))
	}
	if n%entriesEach == 0 {
		last.next = int32(t.entries.Len())
		last = t.entries.Add(entries{})
	}
	last.entries[n%entriesEach] = e
	p.setContents(c + 1<<32)
	return true
}

// eachEntry calls f for the entries of a pool that has no counts.
func (t *Table) eachEntry(c contents, f func(e shortEntry)) {
	if c&isOne != 0 {
		f(shortEntry(c &^ isOne))
		return
	}
	at := c.index()
	for n := c.len(); n > 0; n -= entriesEach {
		block := t.entries.At(at)
		for _, e := range block.entries[:min(n, entriesEach)] {
			f(e)
		}
		at = int(block.next)
	}
}

// ownersOf returns the owners of a pool.
func (t *Table) ownersOf(n int32) *ownerCounts {
	c := t.pools.at(n).contents()
	if c&hasCounts != 0 {
		return &t.counts.At(c.index()).owners
	}
	var owners ownerCounts
	t.addOwners(c, &owners)
	return &owners
}

// addOwners adds those of a pool that has no counts.
func (t *Table) addOwners(c contents, owners *ownerCounts) {
	t.eachEntry(c, func(e shortEntry) {
		if number := e.cgroup(); number != 0 {
			owners.Add(t.cgroups.of(number))
		}
	})
}

// countsOf returns the counts of a pool. If it has none of its own, they are in room without its owners, and changes of them are lost.
func (t *Table) countsOf(n int32, room *poolCounts) *poolCounts {
	c := t.pools.at(n).contents()
	if c&hasCounts != 0 {
		return t.counts.At(c.index())
	}
	t.setUp(n, room)
	t.eachEntry(c, func(short shortEntry) {
		e := short.long()
		room.add(&e)
	})
	if t.allSince {
		room.early, room.presumedEarly = 0, 0
	}
	if t.settled {
		t.eachEntry(c, func(e shortEntry) { t.settle(room, e.list(), e.port()) })
	}
	return room
}

// setUp sets what is known of a pool without its sockets.
func (t *Table) setUp(n int32, c *poolCounts) {
	*c = poolCounts{pool: n, loopback: t.pools.isLoopback(n)}
	if !c.loopback {
		c.answers = t.peers.of(&t.pools, n)
	}
}

// give gives a pool counts of its own.
func (t *Table) give(n int32) *poolCounts {
	p := t.pools.at(n)
	old := p.contents()
	if old&hasCounts != 0 {
		return t.counts.At(old.index())
	}
	c := t.counts.Add(poolCounts{})
	t.countsOf(n, c)
	t.addOwners(old, &c.owners)
	t.recallOf(n, c)
	if !t.boundKnown {
		t.eachEntry(old, func(e shortEntry) { t.lists.Add(&c.lists[e.list()], e.port()) })
	}
	p.setContents(hasCounts | contents(t.counts.Len()-1))
	return c
}

// heldBy returns how many ports the sockets of a pool hold.
func (t *Table) heldBy(n int32) int {
	c := t.pools.at(n).contents()
	if c&hasCounts != 0 {
		return t.counts.At(c.index()).held
	}
	return c.len()
}

// eachSocket calls f for the port of each socket of a pool, with its list. They are not known with KnowBound.
func (t *Table) eachSocket(n int32, f func(l list, port uint16)) {
	content := t.pools.at(n).contents()
	switch {
	case content&isOne != 0:
		f(shortEntry(content).list(), shortEntry(content).port())
		return
	case content&hasCounts == 0:
		t.eachEntry(content, func(e shortEntry) { f(e.list(), e.port()) })
		return
	}
	c := t.counts.At(content.index())
	for l := range numLists {
		for port := range t.lists.All(c.lists[l]) {
			f(l, port)
		}
	}
}

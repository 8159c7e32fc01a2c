package pool

import (
	"cmp"
	"net/netip"
	"time"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// loopbackInterface is the index of the interface lo in every network namespace,
// LOOPBACK_IFINDEX of include/net/flow.h.
const loopbackInterface = 1

// A poolKey identifies a pool: connect() calls with the same key compete for the same ports.
// It has no pointers and no padding, because a map is searched for it for each socket.
type poolKey struct {
	source, destination [16]byte // IPv6 or IPv4-mapped
	zone                uint32   // interface index, for link-local addresses; else 0
	port                uint32
}

// A sourceKey identifies a source: bind(ip, 0) calls with the same key compete for the same
// ports.
type sourceKey struct {
	address [16]byte
	zone    uint32
}

// sourceKey returns the key of the source of the pool's sockets.
func (k poolKey) sourceKey() sourceKey {
	key := sourceKey{address: k.source}
	if isLinkLocal(netip.AddrFrom16(k.source)) {
		key.zone = k.zone
	}
	return key
}

// sourceAddr returns the source address.
func (k poolKey) sourceAddr() netip.Addr { return keyAddr(k.source, k.zone) }

// destinationAddr returns the destination.
func (k poolKey) destinationAddr() netip.AddrPort {
	return netip.AddrPortFrom(keyAddr(k.destination, k.zone), uint16(k.port))
}

// poolCounts are the sockets of one pool.
type poolCounts struct {
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
	loopback      bool
	source        *portset.Set
	closed        closedPorts // those of mini-sockets without reusable ones

	openInterface uint32  // Socket.Interface of open connections; one that is bound to an interface decides
	openEarlier   bool    // all open ones are in earlier, and there are some
	answers       answers // whether the peer uses TCP timestamps; with a reader that knows, of connections in TIME_WAIT
	doubted       bool    // see Doubt

	known *clients // what earlier Tables learned

	before, earlier earlierPorts // at the last scan, and now

	owners ownerCounts

	// The ports of open connections, of other sockets that are not reusable, of those that are, and of those that are unless Infer finds that they are
	// bound, which it does in general.
	open, fixed, reuse, presumed portset.List
}

// ports returns the number of ports that the pool's sockets hold by state, in the order of States.
func (c *poolCounts) ports() (ports [len(States)]int) {
	for i, state := range States {
		ports[i] = int(c.states[state])
	}
	return ports
}

// A Table counts the sockets of one network namespace by pool and source. Its memory grows with the
// number of pools and sources, and by 2 bytes for each socket unless KnowBound was called.
type Table struct {
	settings  Settings
	rules     [2]timeWaitRule   // for other destinations and for loopback
	usable    portset.Map       // ports that connect() may choose
	listening portset.Set       // ports of listeners, also outside the range
	blocked   blockedPorts      // ports that listeners block
	bound     portset.Set       // ports in usable that connect() may not choose after all, because some socket is bound to them
	doubtful  portset.Set       // other ports of clients of whom it is not known whether they bind first
	marked    portset.Set       // ports that are bound or may be, also of more clients than can be
	held      *portset.Set      // ports in usable that sockets hold
	pools     map[poolKey]int32 // index into counts
	counts    portset.Blocks[poolCounts]
	sources   map[sourceKey]*portset.Set
	sockets   int
	seen      timeWaitSeconds
	phase     phase

	before     Knowledge // see Recall
	use        timestampsUse
	boundKnown bool // see KnowBound
	inferred   bool // Infer had something to compare with
	lists      portset.Lists
	several    map[*portset.Set]*portset.Set // by ports of a source, see severalPools

	reserved int // ports of the range that are in ip_local_reserved_ports
	capacity int // ports in usable
}

// NewTable returns an empty Table for a namespace with these settings. Block its listeners
// before the first Add.
func NewTable(s Settings) *Table {
	t := &Table{
		settings: s,
		rules:    [2]timeWaitRule{s.timeWaitRule(false), s.timeWaitRule(true)},
		blocked:  newBlockedPorts(),
		held:     new(portset.Set),
		pools:    make(map[poolKey]int32),
		sources:  make(map[sourceKey]*portset.Set),
	}
	t.usable.AddUnreserved(s.PortRange, s.ReservedPorts)
	t.capacity = t.usable.Size()
	t.reserved = s.PortRange.Size() - t.capacity
	return t
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
	c := t.poolOf(s)
	if int(s.State) >= len(c.states) {
		return // a state that no kernel has today
	}
	c.states[s.State]++
	c.held++
	c.source.Add(port)
	t.held.Add(port)
	if s.Cgroup != 0 {
		c.owners.Add(s.Cgroup)
	}
	if s.State == tcpstate.FinWait2 && !s.Mini {
		c.halfClosed++
	}
	if s.Bound == Yes {
		t.bound.Add(port)
		c.bound++
	}

	list := &c.fixed
	earlier := t.isEarlier(c, s)
	switch {
	case s.State == tcpstate.TimeWait || s.Mini:
		list = t.addMini(c, s, earlier)
	case s.State != tcpstate.SynSent && s.State != tcpstate.SynRecv:
		list = &c.open
		c.openInterface = cmp.Or(c.openInterface, s.Interface)
		c.openEarlier = earlier && (c.open.Len() == 0 || c.openEarlier)
	}
	if !t.boundKnown {
		t.lists.Add(list, port)
	}
}

// AsksFinWait2 reports whether it matters for a pool what Settings.ReuseFinWait2 is, and it is Unknown.
func (t *Table) AsksFinWait2() bool {
	for i := range t.counts.Len() {
		if t.counts.At(i).unsure > 0 {
			return true
		}
	}
	return false
}

// addMini counts a mini-socket, and returns the list for its port. A port that is bound is not reusable. earlier is isEarlier.
func (t *Table) addMini(c *poolCounts, s *Socket, earlier bool) (list *portset.List) {
	rule, port := t.rule(c.loopback || s.Interface == loopbackInterface), s.Local.Port()
	if s.Timestamps != Unknown && !c.loopback {
		c.answers.add(s.Timestamps == Yes)
	}
	age := rule.age(s)
	old := rule.oldEnough(s, age)
	kind := rule.kind(cmp.Or(s.Timestamps, c.answers.fact()))
	unproven := s.Timestamps == Unknown && s.Seen-age < t.use.since
	if s.Bound == Yes || c.known.isBound(port) || unproven && t.use.turned {
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
			c.finWait2++
		case kind == takenOver && rule.finWait2 == Unknown && old:
			c.unsure++
			kind = unanswered
		default:
			kind = unanswered
		}
	}
	list = &c.fixed
	if kind == takenOver && s.State == tcpstate.TimeWait && c.known.likelyBound(t.parityOf(port)) {
		kind = expired
		if old {
			list = &c.presumed
			if unproven || earlier {
				c.presumedEarly++
			}
		}
	}
	if kind == takenOver && old {
		c.reusable++
		if unproven || earlier {
			c.early++
		}
		if rule.wholeSeconds && age < time.Second {
			c.recent++
		}
		return &c.reuse
	}
	c.closed.add(kind, min(age, rule.times[kind].life), rule.times[kind].life)
	return list
}

// poolOf returns the counts of a socket's pool.
func (t *Table) poolOf(s *Socket) *poolCounts {
	local, remote := s.Local.Addr(), s.Remote.Addr()
	key := poolKey{source: local.As16(), destination: remote.As16(), port: uint32(s.Remote.Port())}
	if isLinkLocal(local) || isLinkLocal(remote) {
		key.zone = s.Interface
	}
	i, ok := t.pools[key]
	if !ok {
		i = int32(t.counts.Len())
		t.pools[key] = i
		c := poolCounts{
			loopback: local.IsLoopback() || remote.IsLoopback(),
			source:   t.sourceOf(s),
		}
		if !c.loopback && len(t.before.peers) > 0 {
			c.answers = t.before.peers[key.destinationAddr()].answers
		}
		c.known, c.before = t.before.clientsOf(key), t.before.earlier[key]
		t.counts.Add(c)
	}
	return t.counts.At(int(i))
}

// addBlocked counts a socket whose port connect() cannot choose. A port that is reserved or
// outside the range does not count. A socket that a listener could have accepted is inbound
// and does not count either. Otherwise the client bound the port before it connected: a
// listener on another address does not prevent that.
func (t *Table) addBlocked(s *Socket) {
	port := s.Local.Port()
	if t.blocked.has(port) && !t.blocked.deny(s.Local.Addr(), port) {
		t.sourceOf(s).Add(port)
	}
}

// sourceOf returns the ports of a socket's source address.
func (t *Table) sourceOf(s *Socket) *portset.Set {
	local := s.Local.Addr()
	key := sourceKey{address: local.As16()}
	if isLinkLocal(local) {
		key.zone = s.Interface
	}
	set, ok := t.sources[key]
	if !ok {
		set = new(portset.Set)
		t.sources[key] = set
	}
	return set
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

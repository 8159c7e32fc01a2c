package pool

import "net/netip"

// connect() and bind(ip, 0) look for a free port in opposite orders. connect() first takes the ports
// with the parity of the low end of the range, here called those of connect parity. It takes the
// others, those of bind parity, when no port of connect parity is free for its destination.
// bind(ip, 0) takes the ports of bind parity first. So a client that has a new port of bind parity,
// while ports of connect parity are free, got it by bind(), and all plain connect() calls of the
// namespace have lost that port. See __inet_hash_connect of net/ipv4/inet_hashtables.c and
// inet_csk_find_open_port of net/ipv4/inet_connection_sock.c.
//
// With a range of the socket's own (IP_LOCAL_PORT_RANGE, Linux 6.3 and releases of 6.1), connect() has no order since Linux 6.8
// (commit 207184853dbd), and before that the order of the low end of that range. A dump does not show the option,
// so such a client can look as if it binds.
//
// The ports that a pool holds do not tell: a plain one that was more than half full can have any of
// them left. Only ports that are new since the last scan tell, where there was a choice at both
// times.

const (
	// choice is the part of the ports of one parity, 1 / choice, that must be free for a client
	// to have had a choice. Between two scans, ports can be taken and given back.
	choice = 4

	// certain is the score at which clients count as binding first. Each scan adds 1 at most,
	// unless the evidence is clear: clearPorts new ports of bind parity, and clearRatio times as
	// many as new ones of connect parity. What is left of a plain pool that was full is not like that.
	certain    = 3
	clearPorts = 5
	clearRatio = 4

	// contraryPorts is the number of new ports of connect parity, and none of bind parity, after which
	// the score is 0 again. Clients that take any port of a list have some in a row too.
	contraryPorts = 20

	// mixedRatio is how many times as many ports of connect parity as of bind parity clients hold at
	// most that take any port of a list. If there are more, others of the same pool use plain connect().
	mixedRatio = 2
)

// The parities of ports in the order in which connect() tries them; bind(ip, 0) does the opposite.
const (
	connectParity = iota
	bindParity
)

// Knowledge is what a Table has learned about its namespace for the next one: whether clients bind
// before they connect, and whether peers use timestamps. Nothing of it is a number to report. The
// zero value is to know nothing.
type Knowledge struct {
	portRange     PortRange // what follows is about the order of its ports
	sources       map[sourceKey]*knownSource
	connectChoice bool                    // connect() had a choice to a destination for which few ports were held
	timestamps    map[netip.AddrPort]Fact // by destination, see Question
}

// A knownSource is what is known of the clients with one source address.
type knownSource struct {
	ports      *portSet // that were held
	bindChoice [2]bool  // bind() had a choice, in each half of the range
	pools      map[poolKey]clients
	complete   bool    // no pool was forgotten
	plain      bool    // nobody binds: there was no port of bind parity, and nobody did before
	binds      bool    // some of the clients may bind first
	others     clients // of all pools together that are not in pools: most hold few ports
}

// clients is what is known of the clients of a pool, or of several together.
type clients struct {
	score         int  // evidence that they bind first, from 0 to certain
	contrary      int  // ports of connect parity that came since the last evidence, where others were free
	binds         bool // they bind first: from certain until the score is 0
	mixed         bool // if so, only their ports of bind parity count as bound
	connects      bool // plain connect() was seen
	connectChoice bool // connect() had a choice
}

// plain reports whether the clients are known not to bind.
func (c clients) plain() bool { return c.connects && !c.binds }

// binds reports of the ports of a pool, by parity, whether its clients bind them.
func (k Knowledge) binds(pool poolKey) (ports [2]bool) {
	source := k.sources[pool.sourceKey()]
	if source == nil {
		return ports
	}
	known, ok := source.pools[pool]
	if !ok {
		known = source.others
	}
	return [2]bool{connectParity: known.binds && !known.mixed, bindParity: known.binds}
}

// Keep forgets the sources and pools that a report does not contain, so that what is remembered is
// bounded like what is reported.
func (k Knowledge) Keep(r *Report) {
	type pool struct {
		source      netip.Addr
		destination netip.AddrPort
	}
	sources := map[netip.Addr]bool{}
	for _, s := range r.Sources {
		sources[s.Address] = true
	}
	pools := map[pool]bool{}
	destinations := map[netip.AddrPort]bool{}
	for _, d := range r.Destinations {
		pools[pool{d.Source, d.Address}] = true
		destinations[d.Address] = true
	}
	for destination := range k.timestamps {
		if !destinations[destination] {
			delete(k.timestamps, destination)
		}
	}
	for key, known := range k.sources {
		if !sources[keyAddr(key.address, key.zone)] {
			delete(k.sources, key)
			continue
		}
		for key := range known.pools {
			if !pools[pool{key.sourceAddr(), key.destinationAddr()}] {
				delete(known.pools, key)
				known.complete = false
			}
		}
	}
}

// A unit is a pool, or all others of one source together.
type unit struct {
	clients
	pools []int32 // index into Table.counts

	others     clients  // if it was one of the others of its source until now
	old        *portSet // held on the source at the last scan; nil if there is nothing to compare with
	bindChoice [2]bool  // bind() had a choice at both scans, in each half of the range

	held             [2]int // ports, by parity
	taken            int    // ports of connect parity that connect() could not choose, of the pool with most
	newBindParity    int    // ports of bind parity that nobody on the source held at the last scan
	newConnectParity int    // likewise of connect parity, where those of bind parity were free
}

// A unitKey identifies a unit.
type unitKey struct {
	source sourceKey
	pool   poolKey // zero for the others
}

// minOwn is the number of ports from which on a pool is told apart from the others of its source.
const minOwn = 10

// Infer finds the ports that clients bound, as far as that shows, and puts what it has learned about
// the clients into k, for the next Table. To forget the pools that are not reported, call Keep with
// the report. Infer must come after the last Add and before Report.
func (t *Table) Infer(k *Knowledge, limits Limits) {
	if t.boundKnown {
		return
	}
	minPorts := max(limits.MinPorts, minOwn)
	low := t.settings.PortRange.Low
	usable := t.usable.count(low, 0, maxPorts)
	sources, units := t.units(minPorts)

	// Ports that may be bound leave connect() no choice either.
	var doubtful portSet
	sum := 0 // of those of connect parity, if they are not listed
	for _, u := range units {
		t.countPorts(u)
		if u.others.binds && u.held[connectParity] <= mixedRatio*u.held[bindParity] {
			u.score, u.binds = u.others.score, true
		}
		if u.held[bindParity] == 0 && u.held[connectParity] >= clearPorts {
			u.connects = true // bind() leaves no port of bind parity
		}
		if u.binds {
			t.bindPorts(u)
		}
		if !u.plain() {
			t.eachPort(u, doubtful.add)
			sum += u.taken
		}
	}
	free := usable - doubtful.parityOf(low)
	if !t.listConnectParity {
		free = usable - sum
	}
	connectChoice := hasChoice(free, usable)
	for key, u := range units {
		taken := 0
		if u.plain() {
			taken = u.taken
		}
		bound := u.binds
		u.judge(hasChoice(free-taken, usable))
		if u.binds && !bound {
			t.bindPorts(u)
		}
		if !u.binds && !u.connects {
			t.unknown += u.held[bindParity]
		}
		source := sources[key.source]
		source.binds = source.binds || !u.plain() || u.score > 0
		if key.pool == (poolKey{}) {
			source.others = u.clients
		}
	}
	for pool, i := range t.pools {
		c := &t.counts[i]
		held := c.held()
		if held < minPorts {
			continue
		}
		known := sources[pool.sourceKey()]
		if known.pools == nil {
			known.pools = map[poolKey]clients{}
		}
		known.pools[pool] = known.others
		if u := units[unitKey{pool.sourceKey(), pool}]; u != nil {
			known.pools[pool] = u.clients
		} else if known.plain {
			taken := held - int(c.reusable)
			known.pools[pool] = clients{connects: true, connectChoice: hasChoice(free-taken, usable)}
		}
	}
	t.countBound()
	t.inferred = t.before.sources != nil
	k.portRange, k.sources, k.connectChoice = t.settings.PortRange, sources, connectChoice
}

// units returns the units of all pools of clients that may bind, with what is known of them, and
// what is known of sources now, without clients.
func (t *Table) units(minPorts int) (map[sourceKey]*knownSource, map[unitKey]*unit) {
	sources := make(map[sourceKey]*knownSource, len(t.sources))
	usable := t.countBindParity(&t.usable)
	doubt, doubts := make(map[*portSet]bool, len(t.sources)), false
	for key, s := range t.sources {
		known := &knownSource{ports: s, complete: true, others: clients{connects: true}}
		held := t.countBindParity(s)
		for half := range known.bindChoice {
			known.bindChoice[half] = hasChoice(usable[half]-held[half], usable[half])
		}
		before := t.before.sources[key]
		known.plain = held == [2]int{} && (before == nil || !before.binds)
		doubt[s] = !known.plain
		doubts = doubts || !known.plain
		sources[key] = known
	}

	units := map[unitKey]*unit{}
	if !doubts {
		return sources, units
	}
	for pool, i := range t.pools {
		c := &t.counts[i]
		if !doubt[c.source] {
			continue
		}
		key := unitKey{source: pool.sourceKey()}
		if c.held() >= minPorts && t.before.sources[key.source].canTell(pool) {
			key.pool = pool
		}
		u := units[key]
		if u == nil {
			u = newUnit(key, t.before, sources[key.source])
			units[key] = u
		}
		u.pools = append(u.pools, i)
	}
	return sources, units
}

// canTell reports whether a pool can be told apart: it is known, or it is known to be new.
func (s *knownSource) canTell(pool poolKey) bool {
	if s == nil || s.complete {
		return true
	}
	_, ok := s.pools[pool]
	return ok
}

// newUnit returns a unit without pools.
func newUnit(key unitKey, before Knowledge, now *knownSource) *unit {
	source := before.sources[key.source]
	if source == nil {
		return &unit{}
	}
	u := &unit{old: source.ports}
	if known, ok := source.pools[key.pool]; ok {
		u.clients = known
	} else if key.pool == (poolKey{}) {
		u.clients = source.others
		u.connectChoice = before.connectChoice
	} else {
		u.others = source.others
		u.connectChoice = before.connectChoice
	}
	for half := range u.bindChoice {
		u.bindChoice[half] = source.bindChoice[half] && now.bindChoice[half]
	}
	return u
}

// countPorts counts the ports of a unit.
func (t *Table) countPorts(u *unit) {
	t.eachPort(u, func(port uint16) {
		parity := t.parityOf(port)
		switch {
		case u.old == nil || u.old.has(port):
		case parity == bindParity:
			u.newBindParity++
		case u.bindChoice[t.halfOf(port)]:
			u.newConnectParity++
		}
		if parity == bindParity {
			u.held[bindParity]++
		}
	})
	for _, i := range u.pools {
		c := &t.counts[i]
		taken := c.held() - int(c.reusable)
		for port := range t.lists.all(c.fixed) {
			taken -= t.parityOf(port) // bindParity is 1
		}
		u.taken = max(u.taken, taken)
		u.held[connectParity] += c.held()
	}
	u.held[connectParity] -= u.held[bindParity]
	if !t.listConnectParity && u.newBindParity > 0 {
		u.newConnectParity = u.held[connectParity] // at most
	}
}

// judge draws the conclusion from the ports of a unit. connectChoice says whether connect() has a choice
// now.
func (u *unit) judge(connectChoice bool) {
	switch hadChoice := u.old != nil && u.connectChoice && connectChoice; {
	case hadChoice && u.newBindParity >= clearPorts && u.newBindParity >= clearRatio*u.newConnectParity:
		u.score, u.contrary = certain, 0
	case hadChoice && u.newBindParity > 0:
		u.score, u.contrary = min(u.score+1, certain), 0
	case u.newBindParity == 0 && u.newConnectParity > 0:
		u.connects = true
		if u.contrary += u.newConnectParity; u.contrary >= contraryPorts {
			u.score = 0
		}
	}
	u.binds = u.score == certain || u.binds && u.score > 0
	u.connectChoice = connectChoice
}

// bindPorts marks the ports of a unit whose clients bind first.
func (t *Table) bindPorts(u *unit) {
	u.mixed = u.connects && u.held[connectParity] > mixedRatio*u.held[bindParity]
	t.eachPort(u, func(port uint16) {
		if !u.mixed || t.parityOf(port) == bindParity {
			t.bound.add(port)
		}
	})
}

// countBound counts the marked ports of each pool.
func (t *Table) countBound() {
	if t.bound.size() == 0 {
		return
	}
	for i := range t.counts {
		c := &t.counts[i]
		for port := range t.lists.all(c.fixed) {
			if t.bound.has(port) {
				c.bound++
			}
		}
		for port := range t.lists.all(c.reuse) {
			if t.bound.has(port) {
				c.bound++
				c.reusable--
			}
		}
	}
}

// eachPort calls f for the port of each socket of a unit.
func (t *Table) eachPort(u *unit, f func(port uint16)) {
	for _, i := range u.pools {
		for port := range t.lists.all(t.counts[i].fixed) {
			f(port)
		}
		for port := range t.lists.all(t.counts[i].reuse) {
			f(port)
		}
	}
}

// hasChoice reports whether enough of the usable ports are free to tell what a client chose.
func hasChoice(free, usable int) bool { return free > 0 && free*choice >= usable }

// parityOf returns connectParity or bindParity.
func (t *Table) parityOf(port uint16) int { return int(port-t.settings.PortRange.Low) % 2 }

// halfOf returns the half of the range that a port is in, 0 or 1. With SO_REUSEADDR, bind(ip, 0)
// takes all ports of the lower half before any other.
func (t *Table) halfOf(port uint16) int {
	if int(port) < t.upperHalf() {
		return 0
	}
	return 1
}

// upperHalf returns the first port of the upper half of the range.
func (t *Table) upperHalf() int {
	low, high := int(t.settings.PortRange.Low), int(t.settings.PortRange.High)+1
	return low + (high-low)>>2<<1
}

// countBindParity counts the ports of bind parity in each half of the range.
func (t *Table) countBindParity(ports interface {
	count(parity uint16, from, to int) int
}) [2]int {
	parity := t.settings.PortRange.Low + 1
	return [2]int{ports.count(parity, 0, t.upperHalf()), ports.count(parity, t.upperHalf(), maxPorts)}
}

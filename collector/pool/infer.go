package pool

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

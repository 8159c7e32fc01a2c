package pool

import "ephemeral_port_exporter/collector/internal/portset"

// A unit is a pool, or all others of one source together, or all of the sources that do not tell by themselves.
type unit struct {
	clients
	evidence
	pools []int32 // by number
	n     int     // of pools

	doubtful   int          // its ports of connect parity that may be bound, at most
	others     clients      // if it was one of the others of its source until now
	before     verdicts     // at the last scan
	old        *portset.Set // held on the source at the last scan; nil if there is nothing to compare with
	bindChoice [2]bool      // bind() had a choice at both scans, in each half of the range; if there is only one, now
	bindFull   [2]bool      // nearly all ports of bind parity were held on the source at one of the scans, in each half of the range
	bindFree   bool         // bind() has a choice now
	several    bool         // not of one pool
	few        bool         // of the sources that do not tell by themselves
}

// A unitKey identifies a unit.
type unitKey struct {
	source sourceKey // zero for the sources that do not tell by themselves
	pool   poolKey   // zero for the others
}

// minOwn is the number of ports from which on a pool is told apart from the others of its source.
const minOwn = 10

// Infer finds the ports that clients bound, as far as that shows, and puts what it has learned about
// the clients into k, for the next Table. To forget the pools that are not reported, call Keep with
// the report. Infer must come after the last Add and before Report.
func (t *Table) Infer(k *Knowledge, limits Limits) {
	if t.use.learn(t.before.use) {
		t.allSince = true
		t.allSince = true
		for i := range t.counts.Len() {
			c := t.counts.At(i)
			c.early, c.presumedEarly = 0, 0
		}
	}
	k.use, k.earlier, k.scans = t.use, t.earlierConnections(), k.scans+1
	if t.boundKnown {
		return
	}
	minPorts := max(limits.MinPorts, minOwn)
	sources := t.surveySources()
	units := t.units(sources, minPorts)
	for _, u := range units {
		u.evidence = t.countPorts(u)
	}
	t.countOverflow(units)
	for _, u := range units {
		u.clients = u.presume(u.others, u.evidence)
		u.before = u.verdicts
	}
	supply := t.connectSupply(units)
	for _, u := range units {
		t.conclude(u, supply)
	}
	t.learn(sources, units, supply, minPorts)
	t.countBound()
	t.inferred = t.before.sources != nil
	k.portRange, k.sources, k.connectChoice, k.held, k.marked = t.settings.PortRange, sources, supply.choice(0), t.held, t.marked
	k.forgot = false // until Keep
	if few := units[unitKey{}]; few != nil {
		k.few = few.clients
	}
}

// surveySources returns what the ports of each source say, without its clients.
func (t *Table) surveySources() map[sourceKey]*knownSource {
	sources := make(map[sourceKey]*knownSource, t.sources.Len())
	usable := t.countBindParity(&t.usable)
	for i := range t.sources.Len() {
		key, s := t.sources.At(i).Key, t.sources.At(i).Value
		held := t.countBindParity(s)
		before := t.before.sources[key]
		known := &knownSource{
			ports:    s,
			complete: true,
			plain:    held == [2]int{} && (before == nil || !before.binds),
			others:   clients{connects: true},
		}
		for half := range known.bindChoice {
			known.bindChoice[half] = hasChoice(usable[half]-held[half], usable[half])
			known.bindFull[half] = isFull(usable[half]-held[half], usable[half])
		}
		known.bindFree = hasChoice(usable[0]+usable[1]-held[0]-held[1], usable[0]+usable[1])
		sources[key] = known
	}
	return sources
}

// units returns the units of all pools of clients that may bind, with what was known of them.
func (t *Table) units(sources map[sourceKey]*knownSource, minPorts int) map[unitKey]*unit {
	units := map[unitKey]*unit{}
	all := make([]sourceUnits, t.sources.Len())
	doubtful := false
	for i := range all {
		if now := sources[t.sources.At(i).Key]; !now.plain {
			all[i].now, doubtful = now, true
		}
	}
	if !doubtful {
		return units
	}
	for n := range t.pools.all() {
		s := &all[t.pools.at(n).source]
		if s.now == nil {
			continue
		}
		key := unitKey{source: t.sources.At(int(t.pools.at(n).source)).Key}
		if !s.begun {
			t.begin(s, key.source)
		}
		switch {
		case s.tells(n, t.heldBy(n) >= minPorts):
			key.pool = t.pools.key(n)
			u := newUnit(key, t.before, s.now)
			u.pools = []int32{n}
			units[key] = u
			continue
		case s.others != nil:
		case s.now.few && units[unitKey{}] != nil:
			s.others = units[unitKey{}]
		default:
			if s.now.few {
				key = unitKey{}
			}
			s.others = newUnit(key, t.before, s.now)
			s.others.several = true
			units[key] = s.others
		}
		s.others.n++
	}
	for n := range t.pools.all() {
		s := &all[t.pools.at(n).source]
		if s.now == nil || s.tells(n, t.heldBy(n) >= minPorts) {
			continue
		}
		if s.others.pools == nil {
			s.others.pools = make([]int32, 0, s.others.n)
		}
		s.others.pools = append(s.others.pools, n)
	}
	return units
}

// A sourceUnits is a source whose pools get units.
type sourceUnits struct {
	now, before *knownSource // now is nil if nobody binds
	begun       bool
	known       map[int32]struct{} // pools that were known, by number
	others      *unit
}

// begin sets what is known of a source that has pools.
func (t *Table) begin(s *sourceUnits, key sourceKey) {
	s.begun = true
	s.before = t.before.sources[key]
	s.now.few = !t.before.tells(key, s.now.ports.Size())
	if s.now.few || s.before == nil {
		return
	}
	s.known = make(map[int32]struct{}, len(s.before.pools))
	for pool := range s.before.pools {
		if n, ok := t.pools.find(pool); ok {
			s.known[n] = struct{}{}
		}
	}
}

// tells reports whether a pool can be told apart: it is known, or it is large and known to be new.
func (s *sourceUnits) tells(n int32, large bool) bool {
	if s.now.few {
		return false
	}
	if s.before == nil {
		return large
	}
	_, ok := s.known[n]
	return ok || large && s.before.complete
}

// newUnit returns a unit without pools.
func newUnit(key unitKey, before Knowledge, now *knownSource) *unit {
	if now.few { // on addresses with few ports, bind() has a choice
		u := &unit{clients: before.few, old: before.held, bindChoice: [2]bool{true, true}, bindFree: true, few: true}
		u.connectChoice = before.connectChoice
		return u
	}
	source := before.sources[key.source]
	if source == nil {
		u := &unit{others: before.few, bindChoice: now.bindChoice, bindFull: now.bindFull, bindFree: now.bindFree}
		if before.sources != nil && !before.forgot { // it had no ports
			u.old = new(portset.Set)
			u.connectChoice = before.connectChoice
		}
		return u
	}
	u := &unit{old: source.ports, bindFree: now.bindFree}
	if known, ok := source.pools[key.pool]; ok {
		u.clients = *known
	} else if key.pool == (poolKey{}) {
		u.clients = source.others
		u.connectChoice = before.connectChoice
	} else {
		u.others = source.others
		u.connectChoice = before.connectChoice
	}
	if source.few {
		u.others = before.few
	}
	u.mixed = u.mixed || u.others.mixed || u.others.plain.Size() > 0
	for half := range u.bindChoice {
		u.bindChoice[half] = source.bindChoice[half] && now.bindChoice[half]
		u.bindFull[half] = source.bindFull[half] || now.bindFull[half]
	}
	return u
}

// countPorts returns what the ports of a unit show.
func (t *Table) countPorts(u *unit) (e evidence) {
	e.bindShows = u.bindChoice[0] && u.bindChoice[1]
	t.eachPort(u, func(port uint16) {
		parity := t.parityOf(port)
		if parity == bindParity {
			e.held[bindParity]++
		}
		switch {
		case u.old == nil:
			if parity == connectParity && u.bindChoice[t.halfOf(port)] {
				e.unforced++
			}
		case u.old.Has(port):
		case parity == bindParity:
			e.newBindParity++
		case u.bindChoice[t.halfOf(port)]:
			e.newConnectParity++
		}
	})
	for _, n := range u.pools {
		taken := t.heldBy(n) // also what connect() may take over: when the new ports came, it may have been open
		e.held[connectParity] += taken
		t.eachSocket(n, func(l list, port uint16) {
			if l == open || l == fixed {
				taken -= t.parityOf(port) // bindParity is 1
			}
		})
		e.taken = max(e.taken, taken)
	}
	e.held[connectParity] -= e.held[bindParity]
	return e
}

// countOverflow finds out which pools are full, so that their ports of bind parity are what plain connect() takes then.
func (t *Table) countOverflow(units map[unitKey]*unit) {
	usable := t.usable.Count(t.settings.PortRange.Low, 0, portset.MaxPorts)
	for _, u := range units {
		if !u.several && (!u.connects || u.suspects.Size() > 0) && !hasChoice(usable-u.held[connectParity], usable) {
			u.overflows = u.bindFree || t.shares(u)
		}
	}
}

// shares reports whether other pools of its source hold many of the ports of bind parity that a pool holds: bind(ip, 0)
// gives each port once, unless Settings.AutobindReuse is set.
func (t *Table) shares(u *unit) bool {
	if t.settings.AutobindReuse {
		return false
	}
	several := t.severalPools(t.pools.at(u.pools[0]).source)
	var ports, shared portset.Set
	t.eachPort(u, func(port uint16) {
		if t.parityOf(port) == bindParity {
			ports.Add(port)
			if several.Has(port) {
				shared.Add(port)
			}
		}
	})
	return shared.Size() >= clearPorts && clearRatio*shared.Size() >= ports.Size()
}

// severalPools returns the ports that two or more pools of a source hold. It looks at the sockets once, for all sources.
func (t *Table) severalPools(source int32) *portset.Set {
	if t.several == nil {
		t.several = make([]portset.Set, t.sources.Len())
		one := make([]portset.Set, t.sources.Len())
		var ports portset.Map // a dump can have a socket twice
		for n := range t.pools.all() {
			source := t.pools.at(n).source
			t.eachSocket(n, func(_ list, port uint16) {
				if ports.Has(port) {
					return
				}
				ports.Add(port)
				if one[source].Has(port) {
					t.several[source].Add(port)
				}
				one[source].Add(port)
			})
			t.eachSocket(n, func(_ list, port uint16) { ports.Remove(port) })
		}
	}
	return &t.several[source]
}

// A supply is the ports of connect parity.
type supply struct {
	usable int
	free   int // for a destination to which none is held
}

// choice reports whether connect() has a choice to a destination to which some of the ports are taken.
func (s supply) choice(taken int) bool { return hasChoice(s.free-taken, s.usable) }

// connectSupply returns the supply. Ports that may be bound leave connect() no choice either.
func (t *Table) connectSupply(units map[unitKey]*unit) supply {
	low := t.settings.PortRange.Low
	usable := t.usable.Count(low, 0, portset.MaxPorts)
	var doubtful portset.Set
	for _, u := range units {
		t.eachPort(u, func(port uint16) {
			if t.parityOf(port) == connectParity && (!u.connects || u.was(port, (*verdicts).doubts) || u.isNew(port) && u.score > 0) {
				doubtful.Add(port)
				u.doubtful++
			}
		})
	}
	return supply{usable, usable - doubtful.Size()}
}

// conclude judges the new ports of a unit, and marks all that are bound, and that may be.
func (t *Table) conclude(u *unit, s supply) {
	hadChoice, taken := u.connectChoice, u.taken
	if !u.several {
		taken = max(taken-u.doubtful, 0) // the supply has lost these already
	}
	u.clients = u.judge(u.evidence, s.choice(taken))
	u.mixed = u.mixed || u.newConnectParity > 0
	if u.few { // plain connect() on one address says nothing of others
		u.connects = false
	}
	hadChoice = hadChoice && u.connectChoice
	onlyBind := u.binds() && !u.connects && !u.mixed && !u.few
	wasFull := u.connectFull
	u.connectFull = isFull(s.usable-taken, s.usable)
	unclear := u.score > 0 || !wasFull && !u.connectFull // a new port of bind parity can have come by each call
	u.verdicts = verdicts{}
	bindPort := t.settings.PortRange.Low + 1
	var kept portset.Set // suspects
	t.eachPortOnce(u, func(port uint16) {
		first, isNew := t.parityOf(port) == bindParity, u.isNew(port) || t.changedHands(u, port)
		likely := isNew && first && hadChoice || u.was(port, (*verdicts).isLikely)
		if u.before.isSuspect(port) {
			kept.Add(port)
		}
		switch {
		case u.was(port, (*verdicts).isBound), u.binds() && likely, isNew && onlyBind && (first || u.bindFull[t.halfOf(port)]):
			u.bound.Add(port)
		case u.score > 0 && likely:
			u.likely.Add(port)
		case (likely || u.was(port, (*verdicts).isSuspect)) && !t.isShared(u, port),
			!u.connects && (isNew || u.old == nil),
			first && (u.several && !u.was(port, (*verdicts).isPlain) || unclear && isNew): // of several pools, only some may be seen to connect
			u.suspects.Add(port)
		case !first && (u.was(port, (*verdicts).isBeside) || isNew && u.score > 0):
			u.beside.Add(port)
		default:
			u.plain.Add(port)
		}
	})
	if u.gone += u.before.suspects.ParityOf(bindPort) - kept.ParityOf(bindPort); u.score > 0 {
		u.gone = 0 // they need not be like those that connect
	}
	t.mark(&u.verdicts)
}

// mark marks ports.
func (t *Table) mark(v *verdicts) {
	for _, set := range []*portset.Set{&v.bound, &v.likely, &v.suspects, &v.beside} {
		t.marked.AddAll(set)
	}
	t.bound.AddAll(&v.bound)
	t.doubtful.AddAll(&v.likely)
	t.doubtful.AddAll(&v.suspects)
	beside := v.beside.All()
	for _, port := range beside[:min(len(beside), mixedRatio*v.size())] {
		t.doubtful.Add(port)
	}
}

// isShared reports whether two pools of the source hold a port, so that it is not bound.
func (t *Table) isShared(u *unit, port uint16) bool {
	// Among many small pools, one or the other always holds the port.
	return u.several && !u.few && !t.settings.AutobindReuse && t.severalPools(t.pools.at(u.pools[0]).source).Has(port)
}

// was reports whether a verdict holds of a port, also one of when the unit was one of the others.
func (u *unit) was(port uint16, verdict func(v *verdicts, port uint16) bool) bool {
	return u.old != nil && u.old.Has(port) && (verdict(&u.before, port) || verdict(&u.others.verdicts, port))
}

// changedHands reports whether others than those of the unit held a port at the last scan, and it was not known to be one of plain connect().
func (t *Table) changedHands(u *unit, port uint16) bool {
	return u.old != nil && t.before.marked.Has(port) && !u.was(port, (*verdicts).has)
}

// isNew reports whether a port was not held on the source at the last scan.
func (u *unit) isNew(port uint16) bool { return u.old != nil && !u.old.Has(port) }

// learn adds to sources what is known of their clients now.
func (t *Table) learn(sources map[sourceKey]*knownSource, units map[unitKey]*unit, s supply, minPorts int) {
	for key, u := range units {
		source := sources[key.source]
		if source == nil {
			continue
		}
		source.binds = source.binds || !u.onlyConnect() || u.score > 0 || u.size()+u.beside.Size() > 0
		if key.pool == (poolKey{}) {
			source.others = u.clients
		} else {
			learned := u.clients
			source.learn(key.pool, &learned)
		}
	}
	for _, source := range sources {
		if source.few {
			source.binds, source.others = true, clients{}
		}
	}
	plain := map[bool]*clients{false: {connects: true}, true: {connects: true, connectChoice: true}}
	others := map[*knownSource]*clients{}
	for i := range t.counts.Len() { // pools with as many ports have counts
		c := t.counts.At(i)
		pool := t.pools.key(c.pool)
		source := sources[pool.sourceKey()]
		if _, ok := units[unitKey{pool.sourceKey(), pool}]; ok || source.few || c.held < minPorts {
			continue
		}
		if source.plain {
			source.learn(pool, plain[s.choice(c.held-int(c.reusable))])
			continue
		}
		if others[source] == nil {
			copied := source.others
			others[source] = &copied
		}
		source.learn(pool, others[source])
	}
}

// learn sets what is known of the clients of a pool.
func (s *knownSource) learn(pool poolKey, c *clients) {
	if s.pools == nil {
		s.pools = map[poolKey]*clients{}
	}
	s.pools[pool] = c
}

// countBound counts the marked ports of each pool.
func (t *Table) countBound() {
	doubtful := t.doubtful.All()
	t.doubtful = portset.Set{}
	for _, port := range doubtful {
		if !t.bound.Has(port) {
			t.doubtful.Add(port)
		}
	}
	for i := range t.counts.Len() {
		c := t.counts.At(i)
		t.eachSocket(c.pool, func(l list, port uint16) { t.settle(c, l, port) })
	}
	t.settled = true
}

// settle counts a port that is bound, or may be.
func (t *Table) settle(c *poolCounts, l list, port uint16) {
	bound := t.bound.Has(port)
	if l == presumed && !bound {
		if c.doubted {
			c.unsure++
		} else if c.reusable++; c.presumedEarly > 0 {
			c.presumedEarly--
			c.early++
		}
	}
	switch {
	case bound:
		c.bound++
		switch {
		case l != reuse:
		case c.doubted:
			c.unsure--
		default:
			c.reusable--
		}
	case l == reuse || l == presumed:
		t.countDoubtful(c, port)
	case t.doubtful.Has(port):
		c.mayBound++
	}
}

// countDoubtful counts a port that is not held unless it is doubtful.
func (t *Table) countDoubtful(c *poolCounts, port uint16) {
	if t.doubtful.Has(port) {
		c.mayBound++
		if !c.doubted {
			c.mayHold++
		}
	}
}

// eachPort calls f for the port of each socket of a unit.
func (t *Table) eachPort(u *unit, f func(port uint16)) {
	for _, n := range u.pools {
		t.eachSocket(n, func(_ list, port uint16) { f(port) })
	}
}

// eachPortOnce calls f for each port of a unit.
func (t *Table) eachPortOnce(u *unit, f func(port uint16)) {
	if !u.several {
		t.eachPort(u, f)
		return
	}
	var ports portset.Map
	t.eachPort(u, ports.Add)
	for port := range ports.All() {
		f(port)
	}
}

// hasChoice reports whether enough of the usable ports are free to tell what a client chose.
func hasChoice(free, usable int) bool { return free > 0 && free*choice >= usable }

// isFull reports whether so few of the usable ports are free that clients take others.
func isFull(free, usable int) bool { return free*full <= usable }

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
	Count(parity uint16, from, to int) int
}) [2]int {
	parity := t.settings.PortRange.Low + 1
	return [2]int{ports.Count(parity, 0, t.upperHalf()), ports.Count(parity, t.upperHalf(), portset.MaxPorts)}
}

package pool

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/internal/limit"
)

// A Question is whether an open connection uses TCP timestamps (RFC 7323). connect() takes over a
// port in TIME_WAIT only if the old connection used them, whatever the sysctl says, and a dump does
// not tell. Most connections to one peer are alike. Those to several servers behind one address can differ.
type Question struct {
	Local, Remote netip.AddrPort
	Interface     uint32 // as in Socket

	pool    poolKey
	answers *answers // of the Table that asks
	assumed Fact     // what the Table counted with
	counted bool     // the answer may change what the Table counted
	further bool     // it is not the first one about its pool
	early   bool     // it is asked before the answer matters, see Matters
	earlier bool     // the connection may have begun while this host did not use timestamps
}

// A peer is what connections to one destination said lately.
type peer struct {
	answers
	lastWith, lastWithout time.Duration // when the last answer of each kind came, on the clock of Socket.Seen
}

// answers are how many connections use timestamps, and how many do not.
type answers struct{ with, without uint8 }

// maxAnswers is the number of answers at which both numbers are halved: later ones count for more.
const maxAnswers = 64

// add adds an answer. It forgets those of the other kind if none came for life.
func (p *peer) add(timestamps bool, now, life time.Duration) {
	switch {
	case timestamps && now-p.lastWithout > life:
		p.without = 0
	case !timestamps && now-p.lastWith > life:
		p.with = 0
	}
	if timestamps {
		p.lastWith = now
	} else {
		p.lastWithout = now
	}
	p.answers.add(timestamps)
}

// add adds an answer.
func (a *answers) add(timestamps bool) {
	if timestamps {
		a.with++
	} else {
		a.without++
	}
	if a.with+a.without >= maxAnswers {
		a.with, a.without = (a.with+1)/2, (a.without+1)/2
	}
}

// fact says whether the peer uses timestamps. It is Unknown if the answers differ.
func (a answers) fact() Fact {
	switch {
	case a.with > 0 && a.without == 0:
		return Yes
	case a.with == 0 && a.without > 0:
		return No
	default:
		return Unknown
	}
}

// differ reports whether some connections use timestamps and some do not.
func (a answers) differ() bool { return a.with > 0 && a.without > 0 }

// share is the share of connections that use timestamps, if the answers differ.
func (a answers) share() float64 {
	if !a.differ() {
		return 0
	}
	return float64(a.with) / float64(int(a.with)+int(a.without))
}

// adviceFrom is the utilization from which on a destination is in danger, as in package advice, which has a test of
// that. Below it, a peer is asked until it has answered, for what happens if tcp_tw_reuse is changed.
const adviceFrom = 0.5

// questionsEach is the number of connections of one pool that are asked at most, and questionsMore how many times as many
// questions there are in all as pools in a report.
const (
	questionsEach = 8
	questionsMore = 2
)

// Questions returns those whose answers would change a report with these limits, or its advice: first one for each pool, then
// further ones. There are none on loopback, where the reader knows, and where TIME_WAIT is not
// reusable anyway, unless advice might be to change that, or nobody has answered yet.
func (t *Table) Questions(limits Limits) []Question {
	type asked struct {
		pool, held int32
		early      bool
	}
	var all []asked
	rule := t.rule(false)
	if t.boundKnown {
		return nil
	}
	for n := range t.pools.all() {
		held := t.heldBy(n)
		if held < limits.Small() && t.pools.len() > limit.Listed || !t.hasOpen(n) || t.pools.isLoopback(n) {
			continue
		}
		early := !rule.reusable && utilization(held+t.bound.Size(), t.capacity) < adviceFrom
		if !rule.reusable && rule.reuse || early && t.countsOf(n, &t.room).answers != (answers{}) {
			continue
		}
		all = append(all, asked{n, int32(held), early})
	}
	slices.SortFunc(all, func(a, b asked) int { return cmp.Or(cmp.Compare(b.held, a.held), t.pools.compare(a.pool, b.pool)) })
	if turns := limits.Most / 2; len(all) > limits.Most { // the largest pools are asked, and others in turn
		largest, others := all[:limits.Most-turns], all[limits.Most-turns:]
		next := int(t.before.scans) * turns % len(others)
		all = slices.Concat(largest, others[next:], others[:next])[:limits.Most]
	}
	pools, about := make([]*poolCounts, len(all)), make([]Question, len(all))
	for i, a := range all {
		c, key := t.give(a.pool), t.pools.key(a.pool)
		pools[i] = c
		about[i] = Question{
			Local:     netip.AddrPortFrom(netip.AddrFrom16(key.source).Unmap(), 0),
			Remote:    netip.AddrPortFrom(netip.AddrFrom16(key.destination).Unmap(), uint16(key.port)),
			Interface: c.openInterface, pool: key, answers: &c.answers, assumed: c.answers.fact(), counted: rule.reusable, early: a.early,
		}
	}
	samples := make([][]uint16, len(all))
	for i, c := range pools {
		samples[i] = t.sample(c)
	}
	var questions []Question
	for round := range questionsEach {
		for i, sample := range samples {
			if round < len(sample) && (round == 0 || len(questions) < questionsMore*limits.Most) {
				q := about[i]
				q.Local = netip.AddrPortFrom(q.Local.Addr(), sample[round])
				q.earlier, q.further = pools[i].isOpenEarlier(sample[round]) || t.settings.Timestamps == 0, round > 0
				questions = append(questions, q)
			}
		}
	}
	return questions
}

// hasOpen reports whether a pool has open connections.
func (t *Table) hasOpen(n int32) bool {
	content := t.pools.at(n).contents()
	if content&hasCounts != 0 {
		return t.counts.At(content.index()).open > 0
	}
	found := false
	t.eachEntry(content, func(e shortEntry) { found = found || e.list() == open })
	return found
}

// sample returns some ports of open connections of a pool, at most questionsEach. They are others at each scan, and first those of
// connections that may not have begun while this host did not use timestamps.
func (t *Table) sample(c *poolCounts) (ports []uint16) {
	var ranks []uint64 // in ascending order
	for port := range t.lists.All(c.lists[open]) {
		x := (uint32(port) ^ t.before.scans<<16) * 0x9e3779b1
		rank := uint64((x ^ x>>15) * 0x85ebca6b)
		if c.isOpenEarlier(port) {
			rank |= 1 << 32
		}
		i, _ := slices.BinarySearch(ranks, rank)
		if i == questionsEach {
			continue
		}
		ranks, ports = slices.Insert(ranks, i, rank), slices.Insert(ports, i, port)
		n := min(len(ranks), questionsEach)
		ranks, ports = ranks[:n], ports[:n]
	}
	return ports
}

// isOpenEarlier reports whether an open connection is in earlier.
func (c *poolCounts) isOpenEarlier(port uint16) bool {
	_, ok := c.earlier[port]
	return ok
}

// Answer remembers an answer, for the Table that asked and the next ones. That a connection
// does not use timestamps tells nothing of the peer if this host did not want them. now is on the clock of Socket.Seen.
// life is for how long connections of another kind may be in TIME_WAIT after the last one was seen open.
func (k *Knowledge) Answer(q Question, timestamps bool, now, life time.Duration) {
	if q.earlier && !timestamps {
		return
	}
	if k.peers == nil {
		k.peers = map[netip.AddrPort]peer{}
	}
	destination := q.pool.destinationAddr()
	p := k.peers[destination]
	p.add(timestamps, now, life)
	k.peers[destination], *q.answers = p, p.answers
}

// Matters reports whether the answer may change a report or its advice now. If not, it is for what happens if tcp_tw_reuse is changed.
func (q Question) Matters() bool { return !q.early }

// Contradicts reports whether the Table that asked a question counted otherwise than the answers say.
func (k *Knowledge) Contradicts(q Question) bool {
	fact := k.peers[q.pool.destinationAddr()].fact()
	return q.counted && fact != q.assumed && (fact == No || q.assumed == No)
}

// Doubt says that the Table does not contain the answer to a question. Unless connect() is known to take over
// ports in TIME_WAIT of the pool, they count as held for as long as that lasts.
func (t *Table) Doubt(q Question) {
	n, ok := t.pools.find(q.pool)
	if !ok || !q.counted || q.further {
		return
	}
	c := t.give(n)
	if c.answers.fact() == Yes {
		return
	}
	c.doubted = true
	c.unsure += c.reusable
	c.reusable, c.early = 0, 0
}

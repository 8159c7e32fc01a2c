package pool

import (
	"cmp"
	"net/netip"
	"slices"
)

// A Question is whether an open connection uses TCP timestamps (RFC 7323). connect() takes over a
// port in TIME_WAIT only if the old connection used them, whatever the sysctl says, and a dump does
// not tell. But connections to one peer are alike.
type Question struct {
	Local, Remote netip.AddrPort
	Interface     uint32 // as in Socket

	pool    poolKey
	fact    *Fact // of the Table that asks
	counted bool  // the answer may change what the Table counted
	earlier bool  // the connection may have begun while this host did not use timestamps
}

// adviceFrom is the utilization from which on a destination is in danger, as in package advice, which has a test of
// that. Below it, advice about ports in TIME_WAIT may be about a peer that nobody asked, and says so.
const adviceFrom = 0.5

// Questions returns those whose answers would change a report with these limits, or its advice, one
// for each pool. There are none on loopback, where the reader knows, and where TIME_WAIT is not
// reusable anyway, unless advice might be to change that.
func (t *Table) Questions(limits Limits) []Question {
	type asked struct {
		Question
		held int
	}
	var all []asked
	rule := t.rule(false)
	for key, i := range t.pools {
		c := &t.counts[i]
		held := c.held()
		if c.open == 0 || c.loopback || t.boundKnown || held < limits.MinPorts {
			continue
		}
		if !rule.reusable && (rule.reuse || utilization(held+t.bound.Size(), t.capacity) < adviceFrom) {
			continue
		}
		local := netip.AddrPortFrom(netip.AddrFrom16(key.source).Unmap(), c.open)
		remote := netip.AddrPortFrom(netip.AddrFrom16(key.destination).Unmap(), uint16(key.port))
		all = append(all, asked{Question{local, remote, c.openInterface, key, &c.timestamps, rule.reusable, c.openEarlier || t.settings.Timestamps == 0}, held})
	}
	slices.SortFunc(all, func(a, b asked) int {
		return cmp.Or(cmp.Compare(b.held, a.held), a.Local.Compare(b.Local), a.pool.destinationAddr().Compare(b.pool.destinationAddr()))
	})
	questions := make([]Question, min(len(all), limits.Most))
	for i := range questions {
		questions[i] = all[i].Question
	}
	return questions
}

// Answer remembers an answer. It reports whether a Table that recalled k before counted otherwise. That a connection
// does not use timestamps tells nothing of the peer if this host did not want them.
func (k *Knowledge) Answer(q Question, timestamps bool) (changed bool) {
	if q.earlier && !timestamps {
		return false
	}
	fact := No
	if timestamps {
		fact = Yes
	}
	destination := q.pool.destinationAddr()
	before := k.timestamps[destination]
	if k.timestamps == nil {
		k.timestamps = map[netip.AddrPort]Fact{}
	}
	k.timestamps[destination] = fact
	*q.fact = fact
	return q.counted && fact != before && (fact == No || before == No)
}

// Doubt says that the Table does not contain the answer to a question. Unless connect() is known to take over
// ports in TIME_WAIT of the pool, they count as held for as long as that lasts.
func (t *Table) Doubt(q Question) {
	i, ok := t.pools[q.pool]
	if !ok || !q.counted || t.counts[i].timestamps == Yes {
		return
	}
	c := &t.counts[i]
	c.doubted = true
	c.unsure += c.reusable
	c.reusable, c.early = 0, 0
}

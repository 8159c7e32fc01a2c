package snat

import (
	"cmp"
	"math"
	"slices"

	"ephemeral_port_exporter/collector/internal/limit"
)

// clientBits is the length of the prefix of IPv6 whose addresses are one client's: it may have all of them.
const clientBits = 64

// setTurns sets the turn of pools that are in the order of byDanger: the addresses of a prefix take turns, and so do the
// prefixes.
func (t *Table) setTurns(candidates []candidate) {
	pools := make([]*candidate, len(candidates))
	for i := range candidates {
		pools[i] = &candidates[i]
	}
	if onlyIPv4 := t.takeTurns(pools, 128); onlyIPv4 {
		return // these have no prefixes
	}
	slices.SortStableFunc(pools, func(a, b *candidate) int { return cmp.Compare(a.turn, b.turn) })
	t.takeTurns(pools, clientBits)
}

// takeTurns sets the turn of pools for their clients, those of one prefix of IPv6 together. A pool of several clients comes with
// the first of them, and is one of each. It reports whether all clients have IPv4.
func (t *Table) takeTurns(pools []*candidate, bits int) (onlyIPv4 bool) {
	type turns struct{ n, last int } // last is the pool that was counted last, from 1 on
	var all []turns
	index := map[[16]byte]int{} // without pointers: it can be large
	var its []int               // clients of a pool, by index
	onlyIPv4 = true
	for i, p := range pools {
		its = its[:0]
		p.turn = i
		for number := range p.counts.clients.Keys() {
			client := t.client(number)
			if client.Is6() {
				onlyIPv4 = false
				prefix, _ := client.Prefix(bits) // the number of bits is right
				client = prefix.Addr()
			}
			key := client.As16()
			at, ok := index[key]
			if !ok {
				at = len(all)
				index[key] = at
				all = append(all, turns{})
			}
			its = append(its, at)
			p.turn = min(p.turn, all[at].n)
		}
		for _, at := range its {
			if t := &all[at]; t.last != i+1 {
				t.n, t.last = t.n+1, i+1
			}
		}
	}
	return onlyIPv4
}

// ShareLimit bounds several reports together: most is the limit for all their pools that are reported, and each keeps its
// worst. So it does of Others, of which there are few in all.
func ShareLimit(reports []*Report, most int) {
	lists := make([][]*Pool, len(reports))
	for i, r := range reports {
		for j := range r.Pools {
			lists[i] = append(lists[i], &r.Pools[j])
		}
	}
	kept := keep(lists, most)
	for i, r := range reports {
		r.Pools = nil
		for _, p := range lists[i] {
			if kept[p] {
				r.Pools = append(r.Pools, *p)
			} else {
				r.leaveOut(p)
				r.Others = append(r.Others, *p)
			}
		}
		slices.SortFunc(r.Others, func(a, b Pool) int { return byDanger(&a, &b) })
	}
	others := func(r *Report) []Pool { return r.Others }
	for i, n := range limit.Shares(reports, limit.Listed, others, func(a, b Pool) int { return byDanger(&a, &b) }) {
		reports[i].Others = reports[i].Others[:n]
	}
}

// A place is that of a pool among those of several lists.
type place struct {
	*Pool
	list  int
	first bool // of its list
	dealt int  // how many of its list and class come before it
}

// keep returns which pools are reported if all lists together may have that many. Each list is in the order of byDanger.
// Unless most is 0, each keeps its first. No client who fills many pools hides another one: half of the places are dealt
// to clients by turns, worst pools first; the others are for pools in danger, and then for the rest, both by turns
// again. In all of this, lists take turns, too.
func keep(lists [][]*Pool, most int) map[*Pool]bool {
	var places []place
	firsts := 0
	for i, list := range lists {
		for j, p := range list {
			places = append(places, place{Pool: p, list: i, first: j == 0})
			if j == 0 && most > 0 {
				firsts++
			}
		}
	}
	kept := map[*Pool]bool{}
	take := func(n int) {
		n = min(max(n, 0), len(places))
		for _, p := range places[:n] {
			kept[p.Pool] = true
		}
		places = places[n:]
	}
	deal(places, func(place) int { return 0 }, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.number(), b.number()), cmp.Compare(a.drawn(), b.drawn()), byDanger(a.Pool, b.Pool))
	})
	take(max(most/2, firsts))
	deal(places, func(p place) int { return p.rank() }, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.turn, b.turn), byDanger(a.Pool, b.Pool))
	})
	take(most - len(kept))
	return kept
}

// number returns the turn of a pool. The first of a list comes before all others.
func (p place) number() int {
	if p.first {
		return -1
	}
	return p.turn
}

// drawn returns the place of a pool among those of a turn: lots decide among pools in danger, as there can be as many as a
// client can have addresses. Those that are not in danger come after them.
func (p place) drawn() uint64 {
	if p.rank() == 0 {
		return p.lot
	}
	return math.MaxUint64
}

// deal sorts places by class. Within a class, lists take turns, and the order is that of each list.
func deal(places []place, class func(place) int, order func(a, b place) int) {
	slices.SortFunc(places, order)
	dealt := map[[2]int]int{}
	for i := range places {
		p := &places[i]
		key := [2]int{p.list, class(*p)}
		p.dealt = dealt[key]
		dealt[key]++
	}
	slices.SortStableFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(class(a), class(b)), cmp.Compare(a.dealt, b.dealt), byDanger(a.Pool, b.Pool))
	})
}

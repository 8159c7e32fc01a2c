package pool

import (
	"iter"

	"ephemeral_port_exporter/collector/internal/portset"
)

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
// The ports that a pool holds hardly tell: a plain one that was more than half full can have any of
// them left. Ports that are new since the last scan tell, where there was a choice at both
// times. So each port is judged once, when it is new, and the verdict stands until the port is given back: who comes later,
// and what he does, says nothing of ports that others hold. What was held before anything could be compared
// may be bound until it is given back.
//
// Some ports look like others: deploy/docs/model.md has the errors that are left, and their bounds.

const (
	// choice is the part of the ports of one parity, 1 / choice, that must be free for a client
	// to have had a choice. Between two scans, ports can be taken and given back.
	choice = 4

	// full is the part, 1 / full, of which at most is free when clients take ports of the other parity: those that are given
	// back are taken again first.
	full = 32

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
	// most that take any port of a list. Each number of a list is as likely as the next one.
	mixedRatio = 2
)

// The parities of ports in the order in which connect() tries them; bind(ip, 0) does the opposite.
const (
	connectParity = iota
	bindParity
)

// clients is what is known of the clients of a pool, or of several together.
type clients struct {
	score         int  // evidence that some of them bind first, from 0 to certain
	contrary      int  // ports of connect parity that came since the last evidence, where others were free
	connects      bool // plain connect() was seen
	mixed         bool // and it was seen of some of them, or of others of which they were a part
	connectChoice bool // connect() had a choice
	connectFull   bool // one of the pools held nearly all ports of connect parity

	verdicts
	gone int // suspects of bind parity that were given back
}

// verdicts are the ports that clients hold, as they were judged when they were new.
type verdicts struct {
	bound    portset.Set // they are bound
	likely   portset.Set // of bind parity: they are bound if it gets certain that some of the clients bind
	suspects portset.Set // they may be bound
	beside   portset.Set // of connect parity: some of them may be bound, see mixedRatio
	plain    portset.Set // plain connect() chose them
}

func (v *verdicts) isBound(port uint16) bool   { return v.bound.Has(port) }
func (v *verdicts) isLikely(port uint16) bool  { return v.likely.Has(port) }
func (v *verdicts) isSuspect(port uint16) bool { return v.suspects.Has(port) }
func (v *verdicts) isBeside(port uint16) bool  { return v.beside.Has(port) }
func (v *verdicts) isPlain(port uint16) bool   { return v.plain.Has(port) }

// doubts reports whether a port is not known to be one of plain connect().
func (v *verdicts) doubts(port uint16) bool {
	return v.isBound(port) || v.isLikely(port) || v.isSuspect(port) || v.isBeside(port)
}

// has reports whether the clients held a port.
func (v *verdicts) has(port uint16) bool { return v.doubts(port) || v.isPlain(port) }

// size returns how many ports are bound, or may be by themselves.
func (v *verdicts) size() int { return v.bound.Size() + v.likely.Size() + v.suspects.Size() }

// sets returns all of them.
func (v *verdicts) sets() [5]*portset.Set {
	return [...]*portset.Set{&v.bound, &v.likely, &v.suspects, &v.beside, &v.plain}
}

// join adds those of another group of clients to v, which shares no memory with it. It takes no time for what the other one shares with
// own: clients of many pools can have been judged together.
func (v *verdicts) join(other, own *verdicts) {
	for i, set := range v.sets() {
		if !other.sets()[i].Is(own.sets()[i]) {
			set.AddAll(other.sets()[i])
		}
	}
}

// clone returns a copy that shares no memory.
func (v *verdicts) clone() (all verdicts) {
	all.join(v, new(verdicts))
	return all
}

// binds reports whether it is certain that some of the clients bind first.
func (c clients) binds() bool { return c.score == certain }

// onlyConnect reports whether the clients are known not to bind.
func (c clients) onlyConnect() bool { return c.connects && !c.binds() }

// evidence is what the ports of clients show.
type evidence struct {
	held             [2]int // ports, by parity
	taken            int    // ports of connect parity that connect() possibly could not choose, of the pool with most
	newBindParity    int    // ports of bind parity that nobody on the source held at the last scan
	newConnectParity int    // the same of connect parity, where those of bind parity were free
	unforced         int    // ports of connect parity of a source that was not seen before, where those of bind parity are free
	bindShows        bool   // bind() would have taken ports of bind parity, in both halves of the range
	overflows        bool   // a pool holds most ports of connect parity, and others than bind() would have taken of bind parity
}

// likelyBound reports whether new ports of a parity are bound in general.
func (c *clients) likelyBound(parity int) bool {
	return c.binds() && (parity == bindParity || !c.connects)
}

// presume returns what is known of clients before their new ports are judged. others are those of
// which they were a part until now, if any.
func (c clients) presume(others clients, e evidence) clients {
	if others.binds() && e.held[connectParity] <= mixedRatio*e.held[bindParity] {
		c.score = certain
	}
	switch {
	case e.held[bindParity] == 0 && e.unforced >= clearPorts: // bind() leaves no port of bind parity
		c.connects = true
	case e.overflows && c.score == 0:
		c.connects = true
		if c.turnedOver(e) {
			c.verdicts, c.gone = c.clone(), 0
			c.plain.AddAll(&c.suspects)
			c.suspects = portset.Set{}
		}
	}
	return c
}

// forgetChoices has nothing count as chosen before now. If the parities have swapped, new ports tell the opposite.
func (c *clients) forgetChoices(swapped bool) {
	c.connectChoice, c.connectFull = false, false
	if swapped {
		c.score, c.contrary, c.gone = 0, 0, 0
	}
}

// take adds what is known of clients that are parts of c from now on.
func (c *clients) take(parts iter.Seq[*clients]) {
	all, n, plain := verdicts{}, 0, false
	for part := range parts {
		if n++; n == 1 {
			all = c.clone()
		}
		plain = plain || part.plain.Size() > 0
		c.mixed = c.mixed || c.plain.Size() > 0 || part.mixed || part.connects
		c.connects = c.connects && part.onlyConnect()
		all.join(&part.verdicts, &c.verdicts)
	}
	if n > 0 {
		c.verdicts, c.mixed = all, c.mixed || n > 1 && plain
	}
}

// turnedOver reports whether the suspects of bind parity come and go like the other ports: those of long-lived clients that
// bind stay while others fill the pool.
func (c clients) turnedOver(e evidence) bool {
	return c.gone >= clearPorts && c.gone*clearRatio >= e.held[bindParity]
}

// judge returns what is known of clients after their new ports. connectChoice says whether connect()
// has a choice now.
func (c clients) judge(e evidence, connectChoice bool) clients {
	switch hadChoice := c.connectChoice && connectChoice; {
	case hadChoice && e.newBindParity >= clearPorts && e.newBindParity >= clearRatio*e.newConnectParity:
		c.score, c.contrary = certain, 0
	case hadChoice && e.newBindParity > 0:
		c.score, c.contrary = min(c.score+1, certain), 0
	case e.newBindParity == 0 && e.bindShows:
		if c.contrary += e.newConnectParity; c.contrary >= contraryPorts {
			c.score = 0
		}
	}
	c.connects = c.connects || e.newConnectParity > 0
	c.connectChoice = connectChoice
	return c
}

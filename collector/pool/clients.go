package pool

import "ephemeral_port_exporter/collector/internal/portset"

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
// times. While neither has told, all ports of the clients may be bound. A new port tells nothing of older ones, which
// others of the same pool can hold: each of these stays suspect until it is given back.

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

// clients is what is known of the clients of a pool, or of several together.
type clients struct {
	score         int  // evidence that they bind first, from 0 to certain
	contrary      int  // ports of connect parity that came since the last evidence, where others were free
	binds         bool // they bind first: from certain until the score is 0
	mixed         bool // if so, only their ports of bind parity count as bound
	connects      bool // plain connect() was seen
	connectChoice bool // connect() had a choice

	suspects *portset.Set // ports that may be bound or were taken for that, and were not given back since; nil if there are none
	gone     int          // suspects of bind parity that were given back
}

// suspect reports whether a port is one of the suspects.
func (c clients) suspect(port uint16) bool { return c.suspects != nil && c.suspects.Has(port) }

// plain reports whether the clients are known not to bind.
func (c clients) plain() bool { return c.connects && !c.binds }

// evidence is what the ports of clients show.
type evidence struct {
	held             [2]int // ports, by parity
	taken            int    // ports of connect parity that connect() possibly could not choose, of the pool with most
	newBindParity    int    // ports of bind parity that nobody on the source held at the last scan
	newConnectParity int    // the same of connect parity, where those of bind parity were free
	unforced         int    // ports of connect parity of a source that was not seen before, where those of bind parity are free
	overflows        bool   // a pool holds most ports of connect parity, and others than bind() would have taken of bind parity
}

// presume returns what is known of clients before their new ports are judged. others are those of
// which they were a part until now, if any.
func (c clients) presume(others clients, e evidence) clients {
	if others.binds && e.held[connectParity] <= mixedRatio*e.held[bindParity] {
		c.score, c.binds = others.score, true
	}
	switch {
	case e.held[bindParity] == 0 && e.unforced >= clearPorts: // bind() leaves no port of bind parity
		c.connects = true
	case e.overflows && !c.binds && c.score == 0:
		c.connects = true
		if c.turnedOver(e) {
			c.suspects, c.gone = nil, 0
		}
	}
	if c.binds {
		c.mixed = c.mix(e)
	}
	return c
}

// forgetChoices has nothing count as chosen before now. If the parities have swapped, a port no longer tells who got it: those
// that were bound are suspects.
func (c *clients) forgetChoices(swapped bool) {
	c.connectChoice = false
	if swapped {
		c.score, c.contrary, c.gone, c.binds, c.mixed = 0, 0, 0, false, false
	}
}

// join adds what is known of clients that are a part of c from now on.
func (c *clients) join(part clients) {
	c.connects = c.connects && part.plain()
	if part.suspects == nil {
		return
	}
	suspects := new(portset.Set)
	for _, ports := range []*portset.Set{c.suspects, part.suspects} {
		if ports != nil {
			for _, port := range ports.All() {
				suspects.Add(port)
			}
		}
	}
	c.suspects = suspects
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
	case e.newBindParity == 0 && e.newConnectParity > 0:
		c.connects = true
		if c.contrary += e.newConnectParity; c.contrary >= contraryPorts {
			c.score = 0
		}
	}
	c.connectChoice = connectChoice
	switch {
	case c.score == 0:
		c.binds = false
	case c.score == certain && !c.binds:
		c.binds, c.mixed = true, c.mix(e)
	}
	return c
}

// mix reports whether others of the same pool use plain connect(), if the clients bind first.
func (c clients) mix(e evidence) bool {
	return c.connects && e.held[connectParity] > mixedRatio*e.held[bindParity]
}

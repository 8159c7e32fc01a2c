package pool

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

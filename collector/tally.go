package collector

import (
	"net/netip"

	"ephemeral_port_exporter/collector/sockdiag"
)

// A pool is what connect() calls that compete for the same ports have in common.
type pool struct {
	source      netip.Addr
	destination netip.AddrPort
	zone        uint32 // interface index, for link-local addresses; else 0
}

// A sourceAddr is what bind(ip, 0) calls that compete for the same ports have in
// common.
type sourceAddr struct {
	address netip.Addr
	zone    uint32
}

// poolCounts are the sockets of one pool.
type poolCounts struct {
	states   [sockdiag.Closing + 1]int // by state
	reusable int                       // of those in TIME_WAIT
	closed   int                       // of those in TIME_WAIT, entered in the close window
	loopback bool
	source   *portSet
}

// held returns the number of ports that the pool's sockets hold.
func (c *poolCounts) held() int {
	n := 0
	for _, count := range c.states {
		n += count
	}
	return n
}

// A tally folds the sockets of one namespace into pools and sources. Its memory
// goes with the number of those.
type tally struct {
	rules   [2]timeWaitRule              // for other destinations and for loopback
	usable  portMap                      // ports that connect() may choose
	blocked map[uint16][]sockdiag.Socket // listeners that withhold a port, by port
	pools   map[pool]*poolCounts
	sources map[sourceAddr]*portSet
	sockets int

	reserved int // ports of the range that ip_local_reserved_ports withholds
	capacity int // ports in usable
}

// newTally makes a tally for a namespace with these settings and listeners.
func newTally(s Settings, listeners []sockdiag.Socket) *tally {
	t := &tally{
		rules:   [2]timeWaitRule{s.timeWaitRule(false), s.timeWaitRule(true)},
		blocked: make(map[uint16][]sockdiag.Socket),
		pools:   make(map[pool]*poolCounts),
		sources: make(map[sourceAddr]*portSet),
	}
	t.usable.addRange(s.PortRange.Low, s.PortRange.High)
	for _, r := range s.ReservedPorts {
		for p := max(int(r.Low), int(s.PortRange.Low)); p <= min(int(r.High), int(s.PortRange.High)); p++ {
			t.usable.remove(uint16(p))
		}
	}
	unreserved := t.usable.size()
	t.reserved = s.PortRange.Size() - unreserved

	for _, l := range listeners {
		port := l.Local.Port()
		if !t.usable.has(port) && t.blocked[port] == nil {
			continue // reserved, or out of range
		}
		t.usable.remove(port)
		t.blocked[port] = append(t.blocked[port], l)
	}
	t.capacity = unreserved - len(t.blocked)
	return t
}

// add counts one socket that is in a port-holding state.
func (t *tally) add(s sockdiag.Socket) {
	t.sockets++
	port := s.Local.Port()
	if !t.usable.has(port) {
		t.addBlocked(s)
		return
	}

	key := pool{source: s.Local.Addr(), destination: s.Remote, zone: zone(s, s.Local.Addr(), s.Remote.Addr())}
	c, ok := t.pools[key]
	if !ok {
		c = &poolCounts{
			loopback: key.source.IsLoopback() || key.destination.Addr().IsLoopback() || s.Interface == loopbackIndex,
			source:   t.source(s),
		}
		t.pools[key] = c
	}
	if int(s.State) >= len(c.states) {
		return // a state that no kernel has today
	}
	c.states[s.State]++
	c.source.add(port)

	if s.State == sockdiag.TimeWait {
		rule := t.rule(c.loopback)
		age := rule.age(s.Expires)
		if rule.canReuse(age) {
			c.reusable++
		}
		if age < rule.closeWindow() {
			c.closed++
		}
	}
}

// addBlocked counts a socket whose port is not for connect() to choose. If a
// listener could have accepted it, it is inbound. Else its client has bound the
// port before it connected, which a listener on another address does not hinder.
func (t *tally) addBlocked(s sockdiag.Socket) {
	listeners := t.blocked[s.Local.Port()]
	if len(listeners) == 0 || deniesAny(listeners, s.Local.Addr()) {
		return
	}
	t.source(s).add(s.Local.Port())
}

// source returns the port set of a socket's source address.
func (t *tally) source(s sockdiag.Socket) *portSet {
	key := sourceAddr{address: s.Local.Addr(), zone: zone(s, s.Local.Addr())}
	set, ok := t.sources[key]
	if !ok {
		set = new(portSet)
		t.sources[key] = set
	}
	return set
}

// rule returns the TIME_WAIT rule for loopback destinations or for the others.
func (t *tally) rule(loopback bool) timeWaitRule {
	if loopback {
		return t.rules[1]
	}
	return t.rules[0]
}

// sourceCapacity returns how many ports bind(source, 0) can choose from: those of
// connect(), and those that only listeners on other addresses block.
func (t *tally) sourceCapacity(source netip.Addr) int {
	n := t.capacity
	for _, listeners := range t.blocked {
		if !deniesAny(listeners, source) {
			n++
		}
	}
	return n
}

// deniesAny reports whether one of the listeners keeps its port from bind(source, 0).
func deniesAny(listeners []sockdiag.Socket, source netip.Addr) bool {
	for _, l := range listeners {
		if denies(l, source) {
			return true
		}
	}
	return false
}

// zone returns the interface of a socket if one of the addresses is link-local: the
// same can be in use on several interfaces. Otherwise it returns 0.
func zone(s sockdiag.Socket, addresses ...netip.Addr) uint32 {
	for _, a := range addresses {
		if a.Is6() && a.IsLinkLocalUnicast() {
			return s.Interface
		}
	}
	return 0
}

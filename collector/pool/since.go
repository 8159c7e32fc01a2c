package pool

import (
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// A timestampsUse tells since when new connections use TCP timestamps, as far as that shows. A port in TIME_WAIT of a
// connection that did not use them is never reusable, also after tcp_timestamps was switched on. The other sysctls that
// decide take effect at the next connect().
type timestampsUse struct {
	off    bool          // they were not used at the last scan
	turned bool          // tcp_timestamps was switched on between two scans
	since  time.Duration // on the clock of Socket.Seen: they are used since then, or since earlier; 0 if that is not known
	closes closeSeconds
	last   time.Duration // on the same clock: when the kernel reported the last mini-socket of the scan
}

// at returns what is known at a scan with these settings.
func (u timestampsUse) at(now time.Duration, s Settings) timestampsUse {
	closes := closeSeconds{read: now}
	switch {
	case s.Timestamps == 0:
		return timestampsUse{off: true}
	case u.off:
		return timestampsUse{turned: true, since: now, closes: closes}
	case u.since == 0:
		return timestampsUse{since: now, closes: closes}
	}
	u.closes, u.last = closes, 0
	return u
}

// learn compares the connections closed in each second with those that the last scan counted. Some that have left
// TIME_WAIT early were taken over, so that they, and those closed later, used timestamps. It reports whether that is
// known of nearly all by now. After tcp_timestamps was switched on, that does not show: see earlierPorts.
func (u *timestampsUse) learn(before timestampsUse) (all bool) {
	if u.turned || u.since == 0 || before.since == 0 {
		return false
	}
	oldest := int64(u.closes.read/time.Second) - closeSecondsKept
	gone := 0 // of those closed before the second
	for second := oldest + 1; second <= int64(before.closes.read/time.Second); second++ {
		more := gone + int(before.closes.in(second)) - int(u.closes.in(second))
		left := min(gone, more) // the ages are exact to a tick or two: some may only have changed into this second
		if left >= clearPorts && 16*left >= int(before.closes.in(oldest+1)) {
			u.since = min(u.since, time.Duration(second)*time.Second)
			return second <= oldest+closeSecondsKept/10
		}
		gone = more
	}
	return false
}

// earlierPorts are the ports of connections of a pool that may have begun while tcp_timestamps was off, after it was
// switched on: the first packet decides for the life of a connection. The value says whether the connection was in
// TIME_WAIT at the last scan. They get fewer, as the connections end.
type earlierPorts map[uint16]bool

// isEarlier reports whether a connection may have begun while tcp_timestamps was off, and remembers this for the next
// Table. At the change, all may, also those in TIME_WAIT. If it has ended since the last scan, another may have its port now, which does not show. But no other one can
// have the port in TIME_WAIT: that lasts to its end without timestamps.
func (t *Table) isEarlier(c *poolCounts, s *Socket) bool {
	if !t.use.turned || t.boundKnown {
		return false
	}
	timeWait, port := s.State == tcpstate.TimeWait, s.Local.Port()
	entered := s.Seen - t.rule(c.loopback).age(s)
	if closed, ok := c.before[port]; !t.before.use.off && (!ok || closed && (!timeWait || entered > t.before.use.last+time.Second)) {
		return false
	}
	if c.earlier == nil {
		c.earlier = earlierPorts{}
	}
	c.earlier[port] = timeWait
	return true
}

// earlierConnections returns those of all pools, for the next Table.
func (t *Table) earlierConnections() map[poolKey]earlierPorts {
	all := map[poolKey]earlierPorts{}
	for i := range t.counts.Len() { // pools with such ports have counts
		if c := t.counts.At(i); c.earlier != nil {
			all[t.pools.key(c.pool)] = c.earlier
		}
	}
	return all
}

// closeSecondsKept is how many seconds closeSeconds tell apart: less than TIME_WAIT lasts.
const closeSecondsKept = 58

// closeSeconds count the sockets in TIME_WAIT by the second in which they entered it.
type closeSeconds struct {
	read   time.Duration // when they were counted
	counts [64]uint32
}

// add adds a socket.
func (c *closeSeconds) add(entered, age time.Duration) {
	if age < closeSecondsKept*time.Second && entered > 0 {
		c.counts[entered/time.Second%64]++
	}
}

// in returns how many sockets entered in a second.
func (c *closeSeconds) in(second int64) uint32 { return c.counts[second&63] }

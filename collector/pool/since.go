package pool

import "time"

// A timestampsUse tells since when new connections use TCP timestamps, as far as that shows. A port in TIME_WAIT of a
// connection that did not use them is never reusable, also after tcp_timestamps was switched on. The other sysctls that
// decide take effect at the next connect().
type timestampsUse struct {
	off    bool          // they were not used at the last scan
	turned bool          // tcp_timestamps was switched on between two scans
	since  time.Duration // on the clock of Socket.Seen: they are used since then, or since earlier; 0 if that is not known
	closes closeSeconds
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
	u.closes = closes
	return u
}

// learn compares the connections closed in each second with those that the last scan counted. Some that have left
// TIME_WAIT early were taken over, so that they, and those closed later, used timestamps. It reports whether that is
// known of nearly all by now.
func (u *timestampsUse) learn(before timestampsUse) (all bool) {
	if u.since == 0 || before.since == 0 {
		return false
	}
	oldest := int64(u.closes.read/time.Second) - closeSecondsKept
	gone := 0
	for second := oldest + 1; second <= int64(before.closes.read/time.Second); second++ {
		gone += int(before.closes.in(second)) - int(u.closes.in(second))
		if gone >= clearPorts && 16*gone >= int(before.closes.in(oldest+1)) { // the ages are exact to a tick or two
			u.since = min(u.since, time.Duration(second+1)*time.Second)
			return second < oldest+closeSecondsKept/10
		}
	}
	return false
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

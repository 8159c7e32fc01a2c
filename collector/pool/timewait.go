package pool

import "time"

const (
	// defaultReuseDelay is the delay of kernels before 6.14. Later kernels have the
	// sysctl tcp_tw_reuse_delay.
	defaultReuseDelay = time.Second

	// maxCloseWindow is the greatest close window.
	maxCloseWindow = 10 * time.Second
)

// A timeWaitRule tells how long TIME_WAIT keeps a port of one destination.
type timeWaitRule struct {
	length   time.Duration // of TIME_WAIT: after it the kernel frees the port
	reuse    bool          // tcp_tw_reuse lets connect() take over the port earlier
	reusable bool          // and so does tcp_timestamps
	delay    time.Duration // age in TIME_WAIT after which connect() may do so
}

// timeWaitRule returns the rule for loopback connections, or for all others. A connection is
// loopback if its source address, its destination address or its bound device is.
//
// The rule follows tcp_twsk_unique in net/ipv4/tcp_ipv4.c, with one difference: the kernel
// checks whether the old connection used timestamps. A dump does not contain that, so the rule
// uses the sysctl instead where it is not known.
func (s Settings) timeWaitRule(loopback bool) timeWaitRule {
	delay := s.TWReuseDelay
	if delay == 0 {
		delay = defaultReuseDelay
	}
	reuse := s.TWReuse == 1 || s.TWReuse == 2 && loopback
	return timeWaitRule{
		length:   s.TimeWaitLength,
		reuse:    reuse,
		reusable: reuse && s.Timestamps != 0,
		delay:    delay,
	}
}

// hold returns how long a closed connection holds its port before connect() can choose it
// again.
func (r timeWaitRule) hold() time.Duration {
	if r.reusable {
		return min(r.delay, r.length)
	}
	return r.length
}

// closeWindow returns the age up to which TIME_WAIT sockets count for the close rate. It is at
// most hold(): an older socket may be gone, because connect() took over its port.
func (r timeWaitRule) closeWindow() time.Duration {
	return min(r.hold(), maxCloseWindow)
}

// age returns how long ago a socket entered TIME_WAIT.
func (r timeWaitRule) age(expires time.Duration) time.Duration {
	return max(r.length-expires, 0)
}

// canReuse reports whether connect() may take over a port in TIME_WAIT of that age. timestamps
// says whether the old connection used them. The kernel does not ask whether new ones do.
func (r timeWaitRule) canReuse(age time.Duration, timestamps Fact) bool {
	reusable := r.reusable
	if timestamps != Unknown {
		reusable = r.reuse && timestamps == Yes
	}
	return reusable && age > r.delay
}

// utilization returns used / capacity, from 0 to 1. It is 1 without capacity: the next
// connect() fails. It is never above 1, although a dump is not atomic and can contain a socket
// twice.
func utilization(used, capacity int) float64 {
	if capacity <= 0 {
		return 1
	}
	return min(float64(used)/float64(capacity), 1)
}

// perSecond returns the rate of n events in the time d.
func perSecond(n int, d time.Duration) float64 { return float64(n) / d.Seconds() }

// timeWaitSeconds are the whole seconds that sockets in TIME_WAIT had to go.
type timeWaitSeconds struct {
	longest time.Duration
	seen    [4]uint64 // a bit for each second up to 255
}

// add adds a socket that the kernel frees in that time.
func (w *timeWaitSeconds) add(expires time.Duration) {
	w.longest = max(w.longest, expires)
	second := min(uint64(expires/time.Second), 255)
	w.seen[second/64] |= 1 << (second % 64)
}

// report returns what was seen. It is not steady if TIME_WAIT lasts longer than 255 s.
func (w *timeWaitSeconds) report() TimeWaitSeen {
	steady := w.longest >= time.Second && w.longest < 256*time.Second
	for second := range int(min(w.longest, 256*time.Second) / time.Second) {
		steady = steady && w.seen[second/64]&(1<<(second%64)) != 0
	}
	return TimeWaitSeen{Longest: w.longest, Steady: steady}
}

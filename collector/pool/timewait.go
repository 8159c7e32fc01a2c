package pool

import "time"

const (
	// defaultReuseDelay is what kernels before 6.14 wait, where later ones have
	// the sysctl tcp_tw_reuse_delay.
	defaultReuseDelay = time.Second

	// maxCloseWindow is the longest time over which closes are counted.
	maxCloseWindow = 10 * time.Second
)

// A timeWaitRule says what TIME_WAIT does to the ports of one destination.
type timeWaitRule struct {
	length   time.Duration // until the kernel frees the port by itself
	reusable bool          // connect() may take the port over before that
	delay    time.Duration // how old TIME_WAIT must be for it
}

// timeWaitRule returns the rule for connections of which the source address, the
// destination address or the bound device is loopback, or for all others. It follows
// tcp_twsk_unique in net/ipv4/tcp_ipv4.c, with one difference: the kernel asks whether
// the old connection used timestamps, which a dump does not tell. The sysctl stands in.
func (s Settings) timeWaitRule(loopback bool) timeWaitRule {
	delay := s.TWReuseDelay
	if delay == 0 {
		delay = defaultReuseDelay
	}
	return timeWaitRule{
		length:   s.TimeWaitLength,
		reusable: s.Timestamps != 0 && (s.TWReuse == 1 || s.TWReuse == 2 && loopback),
		delay:    delay,
	}
}

// hold is how long a closed connection keeps its port from the next connect().
func (r timeWaitRule) hold() time.Duration {
	if r.reusable {
		return min(r.delay, r.length)
	}
	return r.length
}

// closeWindow is the age up to which TIME_WAIT sockets are counted for the close
// rate: where they can be taken over, older ones may be gone already.
func (r timeWaitRule) closeWindow() time.Duration {
	return min(r.hold(), maxCloseWindow)
}

// age returns how long ago a socket entered TIME_WAIT.
func (r timeWaitRule) age(expires time.Duration) time.Duration {
	return max(r.length-expires, 0)
}

// canReuse reports whether connect() may take over a port in TIME_WAIT of that age.
func (r timeWaitRule) canReuse(age time.Duration) bool {
	return r.reusable && age > r.delay
}

// utilization returns used / capacity, in [0, 1]. A dump is not atomic and can show
// a socket twice, hence the bound. Where there is no port at all, the next connect()
// fails.
func utilization(used, capacity int) float64 {
	if capacity <= 0 {
		return 1
	}
	return min(float64(used)/float64(capacity), 1)
}

// perSecond returns n / d.
func perSecond(n int, d time.Duration) float64 { return float64(n) / d.Seconds() }

package pool

import "time"

// defaultReuseDelay is the delay of kernels before 6.14. Later kernels have the sysctl
// tcp_tw_reuse_delay.
const defaultReuseDelay = time.Second

// A timeWaitRule tells how long closed connections keep the ports of one destination.
type timeWaitRule struct {
	times    [closeKinds]closeTimes
	reuse    bool          // tcp_tw_reuse lets connect() take over a port in TIME_WAIT
	reusable bool          // and so does tcp_timestamps
	delay    time.Duration // age in TIME_WAIT after which connect() may do so
}

// closeTimes are the times of closed connections of one kind.
type closeTimes struct {
	life time.Duration // from closing until the port is due to be freed
	hold time.Duration // until it is free at the latest: the kernel's timers are late
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
	reuse := (s.TWReuse == 1 || s.TWReuse == 2 && loopback) && delay < s.TimeWaitLength
	timer := func(d time.Duration) closeTimes { return closeTimes{d, d + timerLateness(d, s.Tick)} }
	return timeWaitRule{
		times: [closeKinds]closeTimes{
			takenOver:  {delay, delay},
			expired:    timer(s.TimeWaitLength),
			unanswered: timer(s.finWait2Length()),
		},
		reuse:    reuse,
		reusable: reuse && s.Timestamps != 0,
		delay:    delay,
	}
}

// finWait2Length returns how long a mini-socket stays in FIN_WAIT2. The kernel keeps a whole socket
// for the time by which tcp_fin_timeout exceeds TIME_WAIT, and a mini-socket for that time once more
// (tcp_rcv_state_process in net/ipv4/tcp_input.c, tcp_keepalive_timer in net/ipv4/tcp_timer.c).
func (s Settings) finWait2Length() time.Duration {
	length := s.FinTimeout
	if length > s.TimeWaitLength {
		length -= s.TimeWaitLength
	}
	return max(length, time.Second) // the kernel has a minimum too, 3.5 retransmission timeouts
}

// timerLateness returns by how much a timer of the kernel can be late. The timer wheel of
// kernel/time/timer.c (Linux 4.8) sorts timers of 63 × 8ⁿ ticks and more into slots of 8ⁿ⁺¹ ticks,
// and fires them at the end of their slot: 60 s are 62 s with CONFIG_HZ=250, 64 s with 1000 and 65 s
// with 100.
func timerLateness(d, tick time.Duration) time.Duration {
	slot := tick
	for least := 63 * tick; tick > 0 && d >= least; least *= 8 {
		slot *= 8
	}
	return slot
}

// kind returns what will free the port of a socket in TIME_WAIT. timestamps says whether the old
// connection used them. The kernel does not ask whether new ones do.
func (r *timeWaitRule) kind(timestamps Fact) closeKind {
	if timestamps == Unknown && r.reusable || timestamps == Yes && r.reuse {
		return takenOver
	}
	return expired
}

// hold returns how long a closed connection holds its port before connect() can choose it
// again. timestamps says whether the peer uses them.
func (r *timeWaitRule) hold(timestamps Fact) time.Duration { return r.times[r.kind(timestamps)].hold }

// age returns how long ago a socket entered TIME_WAIT.
func (r *timeWaitRule) age(expires time.Duration) time.Duration {
	return max(r.times[expired].life-expires, 0)
}

// finWait2Age likewise returns how long ago a mini-socket entered FIN_WAIT2.
func (r *timeWaitRule) finWait2Age(expires time.Duration) time.Duration {
	return max(r.times[unanswered].life-expires, 0)
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

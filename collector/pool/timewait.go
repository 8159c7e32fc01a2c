package pool

import (
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// lateReuseDelay is the age at which every port in TIME_WAIT is reusable before Linux 4.19: two whole
// seconds of the wall clock have passed by then, which get_seconds() - tw_ts_recent_stamp > 1 asks for.
// Some are reusable a second earlier.
const lateReuseDelay = 2 * time.Second

// A timeWaitRule tells how long closed connections keep the ports of one destination.
type timeWaitRule struct {
	times    [closeKinds]closeTimes
	reuse    bool          // tcp_tw_reuse lets connect() take over a port in TIME_WAIT
	reusable bool          // and so does tcp_timestamps
	delay    time.Duration // age in TIME_WAIT after which connect() may do so

	// wholeSeconds is set without tcp_tw_reuse_delay, from Linux 4.19 to 6.13. Then connect() may take over a
	// port as soon as the second of CLOCK_MONOTONIC is another than that of the last timestamp: all
	// ports closed in one second are reusable from the next on, after 1 s at most, which is delay.
	wholeSeconds bool

	finWait2 Fact // connect() takes over mini-sockets in FIN_WAIT2 too
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
	delay, wholeSeconds := s.TWReuseDelay, false
	switch {
	case delay == 0 && s.TWReuseLate:
		delay = lateReuseDelay
	case delay == 0:
		delay, wholeSeconds = time.Second, true
	}
	reuse := (s.TWReuse == 1 || s.TWReuse == 2 && loopback) && delay < s.TimeWaitLength
	timer := func(d time.Duration) closeTimes { return closeTimes{d, d + timerLateness(d, s.Tick)} }
	return timeWaitRule{
		times: [closeKinds]closeTimes{
			takenOver:  {delay, delay},
			expired:    timer(s.TimeWaitLength),
			unanswered: timer(s.finWait2Length()),
		},
		reuse:        reuse,
		reusable:     reuse && s.Timestamps != 0,
		delay:        delay,
		wholeSeconds: wholeSeconds,
		finWait2:     s.ReuseFinWait2,
	}
}

// Reusable reports whether connect() may take over ports in TIME_WAIT, of loopback connections or of others.
func (s Settings) Reusable(loopback bool) bool { return s.timeWaitRule(loopback).reusable }

// ReusableEachSecond says how connect() does that: it takes over the ports of a whole second at its end, and not
// each one when it is old enough.
func (s Settings) ReusableEachSecond() bool { return s.timeWaitRule(false).wholeSeconds }

// Hold returns for how many seconds a closed connection holds its port at most, of loopback connections or of
// others. timestamps says whether the peer uses TCP timestamps, and unansweredShare is that of connections that it
// does not close.
func (s Settings) Hold(loopback bool, timestamps Fact, unansweredShare float64) float64 {
	rule := s.timeWaitRule(loopback)
	answered := rule.hold(timestamps).Seconds()
	return answered + unansweredShare*(rule.times[unanswered].hold.Seconds()-answered)
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
// again, at most. timestamps says whether the peer uses them.
func (r *timeWaitRule) hold(timestamps Fact) time.Duration { return r.times[r.kind(timestamps)].hold }

// age returns how long ago a mini-socket entered its state.
func (r *timeWaitRule) age(s *Socket) time.Duration {
	life := r.times[expired].life
	if s.State == tcpstate.FinWait2 {
		life = r.times[unanswered].life
	}
	return max(life-s.Expires, 0)
}

// oldEnough reports whether connect() may take over the port of a mini-socket of that age, as far as that
// depends on time.
//
// Where the reader does not know the second of the last timestamp, it is that in which the socket entered
// its state: the segment that made it do so has the last timestamp in general, and never a later one.
func (r *timeWaitRule) oldEnough(s *Socket, age time.Duration) bool {
	if !r.wholeSeconds {
		return age > r.delay
	}
	last := s.LastTimestamp
	if last == 0 {
		last = uint32(max(s.Seen-age, 0) / time.Second)
	}
	return int32(uint32(s.Seen/time.Second)-last) > 0 // time_after32 of linux/jiffies.h
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

// A phase is the mean of how much of the second of CLOCK_MONOTONIC had passed when mini-sockets were
// reported.
type phase struct {
	sum     time.Duration
	sockets int
}

// add adds a mini-socket.
func (p *phase) add(seen time.Duration) {
	p.sum += seen % time.Second
	p.sockets++
}

// seconds returns the phase, from 0 to 1.
func (p *phase) seconds() float64 {
	if p.sockets == 0 {
		return 0
	}
	return p.sum.Seconds() / float64(p.sockets)
}

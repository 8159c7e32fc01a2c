package pool

import (
	"math"
	"time"
)

// CloseWindow is the greatest age of the connections that Destination.CloseRate counts. It is less where ports are taken over earlier.
const CloseWindow = 10 * time.Second

const (
	// The forecast uses a more recent rate where it can: that of the last second, or of as many
	// seconds as it takes to count minRecent connections, up to the close window.
	minRecentWindow = time.Second
	minRecent       = 100

	// minPeak is of how many connections a peak must be.
	minPeak = 20
)

// A load is what closing connections first does to a pool.
type load struct {
	flows [closeKinds]flow

	// second is how much of the second of CLOCK_MONOTONIC had passed, if connect() takes over ports at the
	// end of each one; else it is negative.
	second float64

	// unansweredPorts estimates how many ports in FIN_WAIT2 belong to the flow of unanswered
	// connections. The others go on to TIME_WAIT.
	unansweredPorts float64
}

// A flow is the closed connections of one kind.
type flow struct {
	closeTimes
	older  [ageBins + 2]int // see closedPorts.older
	rate   float64          // connections per second
	recent float64          // the same for the forecast
	peak   float64          // the highest of the close window and of each shorter time until now
	window int              // the bins of recent, 0 if no other ones tell
}

// newLoad returns the load of a pool. second is how much of the second of CLOCK_MONOTONIC had passed when its
// sockets were reported.
//
// A peer that closes late moves a connection from FIN_WAIT2 to TIME_WAIT, and a dump does not tell
// how long that took. So that each counts once, a connection counts when it comes to TIME_WAIT or
// when FIN_WAIT2 ends. If clearly more have come to FIN_WAIT2 than that, these are new, and the
// difference counts as well.
func newLoad(rule *timeWaitRule, counts *poolCounts, second float64) load {
	l := load{second: -1}
	for kind := range l.flows {
		f := &l.flows[kind]
		f.closeTimes = rule.times[kind]
		f.older = counts.closed.older(closeKind(kind))
	}

	closes, variance := 0., 0. // to TIME_WAIT
	for _, kind := range []closeKind{takenOver, expired} {
		f := &l.flows[kind]
		if kind == takenOver && rule.wholeSeconds {
			l.second = second
			f.rate = secondRate(f.older[0], int(counts.recent), second)
			f.recent, f.peak = f.rate, f.rate
			closes += f.rate
			variance += f.rate
			continue
		}
		window := f.bins(CloseWindow)
		n := min(f.bins(minRecentWindow), window)
		for n < window && f.younger(n) < minRecent {
			n++
		}
		f.rate = f.younger(window) / f.seconds(window)
		f.recent, f.window = f.younger(n)/f.seconds(n), n
		f.peak = f.rate
		for n := min(f.bins(minRecentWindow), window); n < window; n++ {
			if f.younger(n) >= minPeak {
				f.peak = max(f.peak, f.younger(n)/f.seconds(n))
			}
		}
		closes += f.rate
		variance += f.rate / f.seconds(window)
	}

	f := &l.flows[unanswered]
	const window = ageBins / 6 // a peer that closes at all has mostly done so before the last sixth
	came := f.younger(window) / f.seconds(window)
	f.rate = float64(f.older[ageBins-window]-f.older[ageBins]) / f.seconds(window)
	if surplus := came - closes; surplus > 3*math.Sqrt(variance+came/f.seconds(window)) {
		f.rate = max(f.rate, surplus)
	}
	f.recent, f.peak = f.rate, f.rate
	if counts.doubted {
		f := &l.flows[takenOver]
		f.closeTimes, f.older, f.window, l.second = rule.times[expired], [ageBins + 2]int{}, 0, -1
	}
	l.unansweredPorts = min(f.rate*f.hold.Seconds(), float64(f.older[0]))
	return l
}

// mix has only a share of the closed connections give up their ports early, because the others did not use timestamps.
func (l *load) mix(share float64) {
	early, late := &l.flows[takenOver], l.flows[expired].hold
	early.hold = late - time.Duration(share*float64(late-early.hold))
	l.second = -1
}

// secondRate returns how many connections per second come to TIME_WAIT where connect() takes over their
// ports at the end of each second. now counts those of this second, of which so much has passed, and before those
// of the part of the last one that makes up a whole second. Some of the latter are missing: their ports have been taken
// over. So they count only while this second alone tells too little. Ports that were taken over are no more than
// those of this second, so the rate is no higher than with as many: else a burst in the first moments
// of a second would be taken for the rate of all of it.
func secondRate(now, before int, second float64) float64 {
	if second >= 0.5 || second > 0 && now >= minRecent {
		return min(float64(now)/second, float64(2*now+before))
	}
	return float64(now + before)
}

// closeRate returns how many connections per second this host closes first.
func (l *load) closeRate() float64 {
	rate := 0.
	for kind := range l.flows {
		rate += l.flows[kind].rate
	}
	return rate
}

// peakRate returns the highest rate of the close window and of each shorter time until now, from a second and minPeak connections on.
func (l *load) peakRate() float64 {
	rate := 0.
	for kind := range l.flows {
		rate += l.flows[kind].peak
	}
	return rate
}

// hold returns for how many seconds a closed connection holds its port, and which share of them holds
// it in FIN_WAIT2. If there are none that tell, it is the time without.
func (l *load) hold(without time.Duration) (seconds, unansweredShare float64) {
	rate, held := l.closeRate(), 0. // held: how many ports the rate will hold in the end
	for kind := range l.flows {
		held += l.flows[kind].rate * l.flows[kind].hold.Seconds()
	}
	if rate == 0 {
		return without.Seconds(), 0
	}
	return held / rate, l.flows[unanswered].rate / rate
}

// Ceiling returns the close rate that a number of ports sustains while some of them stay open, and
// closed connections hold theirs for some seconds.
func Ceiling(ports, open int, hold float64) float64 { return max(float64(ports-open), 0) / hold }

// forecasts returns exhaustion at the recent rate, and a forecast that is sure: at a rate that has lasted for as long as
// it looks ahead. A burst, and the first moments of a rise, lead to the first one only.
func (l *load) forecasts(used, ports int) (recent, sure float64) {
	recent = l.exhaustion(used, ports)
	if recent == 0 || math.IsInf(recent, 1) {
		return recent, recent
	}
	if l.ended(used, ports) {
		return recent, math.Inf(1)
	}
	sure = recent
	for longer := true; longer && !math.IsInf(sure, 1); {
		longer = false
		for kind := range l.flows {
			f := &l.flows[kind]
			if n := min(int(math.Ceil(sure/f.seconds(1))), ageBins); f.window > 0 && f.window < n {
				f.recent, f.window = f.younger(n)/f.seconds(n), n
				longer = true
			}
		}
		sure = max(sure, l.exhaustion(used, ports))
	}
	return recent, sure
}

// ended reports whether the closes of the recent rate have ended since: in the last second, or up to half of the time of that rate, so few
// closed that the ports suffice at the highest rate which goes with that.
func (l *load) ended(used, ports int) bool {
	for n := 1; ; n++ {
		since, more := *l, false
		for kind := range since.flows {
			if f := &since.flows[kind]; f.window > 0 {
				count := f.younger(min(n, f.window))
				f.recent = min(f.recent, (count+2*math.Sqrt(count)+2)/f.seconds(min(n, f.window)))
				more = more || 2*(n+1) <= f.window
			}
		}
		if math.IsInf(since.exhaustion(used, ports), 1) {
			return true
		}
		if !more {
			return false
		}
	}
}

// exhaustion returns after how many seconds a number of ports are in use, of which used are so now,
// if connections close at the recent rate and the number of open ones stays. It is infinite if that never
// happens.
func (l *load) exhaustion(used, ports int) float64 {
	if used >= ports {
		return 0
	}
	var horizon time.Duration // then as many ports are freed as are taken
	for kind := range l.flows {
		f := &l.flows[kind]
		if f.recent == 0 {
			continue
		}
		horizon = max(horizon, f.hold)
		if l.wholeSeconds(closeKind(kind)) {
			horizon = max(horizon, 2*f.hold) // the whole of the next second
		}
	}
	const steps = 120
	before := 0.
	for i := range steps + 1 {
		t := horizon.Seconds() * float64(i) / steps
		n := float64(used) - float64(ports)
		for kind := range l.flows {
			f := &l.flows[kind]
			if l.wholeSeconds(closeKind(kind)) {
				n += f.secondGrowth(t, 1-l.second)
				continue
			}
			freed := f.freed(t)
			if closeKind(kind) == unanswered && f.older[0] > 0 {
				freed *= l.unansweredPorts / float64(f.older[0])
			}
			n += f.recent*min(t, f.hold.Seconds()) - freed
		}
		if i > 0 && n >= 0 {
			return t - n/(n-before)*horizon.Seconds()/steps
		}
		before = n
	}
	return math.Inf(1)
}

// wholeSeconds reports whether ports of that kind become reusable all at once, at the end of each second.
func (l *load) wholeSeconds(kind closeKind) bool { return kind == takenOver && l.second >= 0 }

// secondGrowth returns by how many the ports in use grow within t seconds, if this second ends after end. From the
// end of a second on, it does not fall again: what counts is the most that each second reaches.
func (f *flow) secondGrowth(t, end float64) float64 {
	if t < end {
		return f.recent * t
	}
	return f.recent*min(t-end, 1) - float64(f.older[0])
}

// bins returns how many bins a time has, at least 1.
func (f *flow) bins(d time.Duration) int {
	return min(max(int(ageBins*float64(d)/float64(f.life)), 1), ageBins)
}

// seconds returns the time of some bins.
func (f *flow) seconds(bins int) float64 { return f.life.Seconds() * float64(bins) / ageBins }

// younger returns how many connections are in the first bins.
func (f *flow) younger(bins int) float64 { return float64(f.older[0] - f.older[bins]) }

// freed returns how many of the ports are freed within t seconds. Those that the kernel is late to
// free count at once.
func (f *flow) freed(t float64) float64 {
	bin := min(max((f.hold.Seconds()-t)/f.life.Seconds(), 0), 1) * ageBins
	i := int(bin)
	if i == ageBins {
		return float64(f.older[i])
	}
	return float64(f.older[i]) - (bin-float64(i))*float64(f.older[i]-f.older[i+1])
}

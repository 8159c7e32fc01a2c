package history

import (
	"cmp"
	"math"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/advice"
)

// A past is what is remembered of a pool. Times are since the start of the History.
type past struct {
	samples [Steps]sample // of a step, at its number modulo Steps
	step    int           // number of the newest
	listed  time.Duration // when a Snapshot listed the pool
	scan    uint64        // number of that Snapshot
	read    time.Duration // when it was known last how bad things were
	unread  bool          // it never was: read is when nobody knew
	level   advice.Level  // at read
	since   [levels]since // of the levels from Warning on
}

// levels is how many levels are worse than calm.
const levels = int(advice.Exhausted - advice.Calm)

// A since says from when on a pool is on a level, or on a worse one.
type since struct {
	seconds int32
	on      bool
	earlier bool // it may have been before
	gaps    bool // nobody looked for some time
}

// A sample is what is known of a step: the ports in use of a capacity, at least and at most. Without a reading, capacity is 0, and used is 1 if
// a scan failed to read it.
type sample struct{ used, most, capacity uint16 }

// sampleOf returns the sample of a pool. If it can have no ports, all are in use.
func sampleOf(used, most, capacity int) sample {
	capacity = min(max(capacity, 1), math.MaxUint16)
	used = min(max(used, 0), capacity)
	return sample{uint16(used), uint16(min(max(most, used), capacity)), uint16(capacity)}
}

func (s sample) ok() bool { return s.capacity > 0 }

// utilization returns what it is at least and at most.
func (s sample) utilization() (least, most float64) {
	return float64(s.used) / float64(s.capacity), float64(s.most) / float64(s.capacity)
}

// worse returns the worst of each number. If the capacity has changed, it returns the sample with the greater utilization.
func (s sample) worse(other sample) sample {
	switch {
	case s.capacity == other.capacity:
		return sample{max(s.used, other.used), max(s.most, other.most), s.capacity}
	case worstFirst(s, other) < 0:
		return s
	default:
		return other
	}
}

// worstFirst orders samples: by utilization at most, then by ports, as tenants can have small pools that are full. Those without a
// reading are last.
func worstFirst(a, b sample) int {
	return cmp.Or(
		cmp.Compare(int(b.most)*max(int(a.capacity), 1), int(a.most)*max(int(b.capacity), 1)), cmp.Compare(b.used, a.used),
	)
}

// enter returns the sample of a time, which becomes the newest.
func (p *past) enter(now time.Duration) *sample {
	step := int(now / Step)
	for p.step = max(p.step, step-Steps); p.step < step; {
		p.step++
		p.samples[p.step%Steps] = sample{}
	}
	return &p.samples[p.step%Steps]
}

// add adds what a scan has read.
func (p *past) add(now time.Duration, read sample, level advice.Level) {
	if s := p.enter(now); s.ok() {
		*s = s.worse(read) // so that a spike stays
	} else {
		*s = read
	}
	p.judge(now, level)
}

// fail adds that a scan could not read the pool.
func (p *past) fail(now time.Duration) {
	if s := p.enter(now); !s.ok() {
		s.used = 1
	}
}

// judge adds how bad things are. A level that is not known may be a worse one.
func (p *past) judge(now time.Duration, level advice.Level) {
	late := now-p.read > patience
	for i := range p.since {
		s, of := &p.since[i], advice.Calm+1+advice.Level(i)
		mayBe := level == advice.Unknown && of > advice.Unknown
		mayHaveBeen := p.unread || late || p.level == advice.Unknown && of > advice.Unknown
		switch {
		case level >= of && !s.on:
			*s = since{seconds: int32(now / time.Second), on: true, earlier: mayHaveBeen}
		case level >= of || mayBe && s.on:
			s.gaps = s.gaps || late
		case !mayBe:
			*s = since{}
		}
	}
	p.read, p.level, p.unread = now, level, false
}

// worst returns the worst sample of the window.
func (p *past) worst(now time.Duration) sample {
	p.enter(now)
	return slices.MinFunc(p.samples[:], worstFirst)
}

// A Past is what is remembered of a pool until a Snapshot.
type Past struct {
	until time.Time     // of the Snapshot
	now   time.Duration // the same since the start of the History
	past  past
}

// A Reading is the worst of what was read in a Step.
type Reading struct {
	OK          bool      // there was one; else the rest is not known
	Failed      bool      // there was none, although a scan tried
	Time        time.Time // when the Step began
	Ports       int       // in use
	Utilization float64   // from 0 to 1
	Possible    float64   // what Utilization is at most
}

// Readings returns those of the last Steps, the newest last.
func (p *Past) Readings() (readings [Steps]Reading) {
	last := int(p.now / Step)
	for i := range readings {
		r, step := &readings[i], last-Steps+1+i
		r.Time = p.at(time.Duration(step) * Step)
		if step < 0 || step > p.past.step || step <= p.past.step-Steps {
			continue
		}
		s := p.past.samples[step%Steps]
		if r.OK = s.ok(); !r.OK {
			r.Failed = s.used > 0
			continue
		}
		r.Ports = int(s.used)
		r.Utilization, r.Possible = s.utilization()
	}
	return readings
}

// at returns a time since the start of the History by the clock that the Snapshot was read at.
func (p *Past) at(t time.Duration) time.Time { return p.until.Add(t - p.now) }

// A Since says from when on a pool is on a level, or on a worse one.
type Since struct {
	Time    time.Time
	Earlier bool // perhaps it was before that already
	Start   bool // Time is the first scan of the exporter
	Gaps    bool // for some time since then, nobody looked
}

// Since returns since when the pool is on a level. ok is false if it is not, or if the level is calm.
func (p *Past) Since(level advice.Level) (s Since, ok bool) {
	if level <= advice.Calm {
		return Since{}, false
	}
	of := p.past.since[level-advice.Calm-1]
	return Since{
		Time:    p.at(time.Duration(of.seconds) * time.Second),
		Earlier: of.earlier, Start: of.earlier && of.seconds == 0, Gaps: of.gaps,
	}, of.on
}

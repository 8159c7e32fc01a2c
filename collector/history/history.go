// Package history remembers the last 15 minutes of the pools that Snapshots list: how many ports were in use, and since when
// a pool is as badly off as it is. It takes a fixed amount of memory at most. It reads nothing itself.
package history

import (
	"context"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

const (
	// Step is the time that one Reading stands for: the worst of the scans in it.
	Step = 15 * time.Second

	// Steps is how many Readings a pool has.
	Steps = 60

	// MaxPools is how many pools are remembered at most: those in most danger of a Snapshot that lists more. Those that the
	// last one lists come before others.
	MaxPools = 512

	// patience is longer than the time between two scrapes of nearly all Prometheus servers. After more, nobody knows what was between.
	patience = 2 * time.Minute
)

// A Kind says what a pool is.
type Kind uint8

// The kinds.
const (
	TCP    Kind = iota // a pool.Destination
	NAT                // a snat.Pool
	Source             // a pool.Source whose clients bind before they connect
	UDP                // a pool.UDPPool
	kinds
)

// An ID names a pool for as long as its network namespace exists. Fields that a Kind does not have are zero.
type ID struct {
	Kind    Kind
	Inode   uint64 // of the namespace, as its Name
	Netns   string
	Family  string // protocol of NAT, family of UDP
	Source  netip.Addr
	Address netip.AddrPort
}

// OfTCP returns the ID of a destination.
func OfTCP(n *scan.Namespace, d *pool.Destination) ID {
	return ID{Kind: TCP, Inode: n.Inode, Netns: n.Name, Source: d.Source, Address: d.Address}
}

// OfNAT returns the ID of a pool of source NAT.
func OfNAT(n *scan.Namespace, p *snat.Pool) ID {
	return ID{Kind: NAT, Inode: n.Inode, Netns: n.Name, Family: string(p.Protocol), Source: p.Source, Address: p.Address}
}

// OfSource returns the ID of a source.
func OfSource(n *scan.Namespace, s *pool.Source) ID {
	return ID{Kind: Source, Inode: n.Inode, Netns: n.Name, Source: s.Address}
}

// OfUDP returns the ID of a pool of UDP ports.
func OfUDP(n *scan.Namespace, p *pool.UDPPool) ID {
	return ID{Kind: UDP, Inode: n.Inode, Netns: n.Name, Family: string(p.Family)}
}

// A History remembers pools. Its zero value is ready to use, by several goroutines at once.
type History struct {
	mu     sync.Mutex
	start  time.Time     // of the first scan
	last   time.Duration // of the last scan, since start
	scans  uint64
	pools  map[ID]*past
	listed []listed // of the Snapshot that is being recorded

	// Of this Snapshot and of the one before, what is known of the pools that they do not list, by the inode of the namespace.
	rest, restBefore map[uint64]rest
}

// A listed pool is what a Snapshot says of it.
type listed struct {
	id    ID
	now   sample
	level advice.Level
}

// A rest is what a Snapshot knows of the pools of a namespace that it does not list.
type rest struct {
	place int // of the namespace
	of    [kinds]knowledge
}

// A knowledge is what is known of a pool that a Snapshot does not list.
type knowledge uint8

const (
	nothing knowledge = iota // its namespace was not read
	unsure                   // limits leave it out, whatever it holds
	lower                    // it is calm
	none                     // it holds no port
)

// Scan returns a function that scans, and records what it finds.
func (h *History) Scan(scanHost func(context.Context) scan.Snapshot) func(context.Context) scan.Snapshot {
	return func(ctx context.Context) scan.Snapshot {
		s := scanHost(ctx)
		h.Record(&s)
		return s
	}
}

// Record adds what a Snapshot says. Snapshots come in the order of their Time. Times between them are those of the monotonic clock,
// which the Time of a scan has.
func (h *History) Record(s *scan.Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pools == nil {
		h.start, h.pools, h.rest, h.restBefore = s.Time, map[ID]*past{}, map[uint64]rest{}, map[uint64]rest{}
	}
	now := s.Time.Sub(h.start)
	for id, p := range h.pools {
		if now-p.listed >= Steps*Step {
			delete(h.pools, id)
		}
	}
	h.scans++
	h.survey(s)
	h.makeRoom(now)
	for i := range h.listed {
		l := &h.listed[i]
		p := h.pools[l.id]
		if p == nil {
			p = &past{read: h.last, unread: h.restBefore[l.id.Inode].of[l.id.Kind] < lower}
			h.pools[l.id] = p
		}
		p.listed, p.scan = now, h.scans
		p.add(now, l.now, l.level)
	}
	for id, p := range h.pools {
		if p.scan != h.scans {
			h.addUnlisted(s, id, p, now)
		}
	}
	h.last = now
}

// survey sets what a Snapshot lists, and what it knows of the rest.
func (h *History) survey(s *scan.Snapshot) {
	h.listed = h.listed[:0]
	h.rest, h.restBefore = h.restBefore, h.rest
	clear(h.rest)
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		known := rest{place: i}
		switch n.TCP.Outcome {
		case scan.Idle:
			known.of[TCP], known.of[Source] = lower, lower
		case scan.Collected:
			r := &n.TCP.Report
			for j := range r.Destinations {
				d := &r.Destinations[j]
				h.list(OfTCP(n, d), sampleOf(used(d), used(d)+d.MayBeBound+d.MayBeHeld, r.CapacityPorts), advice.ReachedTCP(r, d, false).Level())
			}
			for j := range r.Sources {
				if src := &r.Sources[j]; r.BoundKnown && src.BindsFirst() {
					h.list(OfSource(n, src), sampleOf(src.Ports, src.Ports, src.Capacity), advice.ReachedSource(r, src).Level())
				}
			}
			known.of[TCP], known.of[Source] = restOfTCP(r), lower
		}
		switch n.UDP.Outcome {
		case scan.Idle:
			known.of[UDP] = lower
		case scan.Collected:
			for j := range n.UDP.Report.Pools {
				u := &n.UDP.Report.Pools[j]
				if level := advice.ReachedUDP(u).Level(); n.Name == scan.Self || level > advice.Calm { // as on the page
					h.list(OfUDP(n, u), sampleOf(u.Ports, u.Ports, n.UDP.Report.CapacityPorts), level)
				}
			}
			known.of[UDP] = lower
		}
		if n.NAT.Outcome == scan.Collected {
			r := &n.NAT.Report
			for _, pools := range [][]snat.Pool{r.Pools, r.Others} {
				for j := range pools {
					p := &pools[j]
					used := p.Held - p.Reusable
					most := used
					if !p.Known() {
						most = p.Capacity
					}
					h.list(OfNAT(n, p), sampleOf(used, most, p.Capacity), advice.ReachedSNAT(p).Level())
				}
			}
			known.of[NAT] = restOfNAT(r)
		}
		h.rest[n.Inode] = known
	}
}

func (h *History) list(id ID, now sample, l advice.Level) {
	h.listed = append(h.listed, listed{id, now, l})
}

// calmBelow is a utilization below that of all thresholds of a level, except for those of rates.
const calmBelow = 0.2

// restOfTCP returns what is known of the destinations that a report does not list. They are in less danger than those it lists
// without series.
func restOfTCP(r *pool.Report) knowledge {
	if r.Unlisted() == 0 {
		return none
	}
	if n := len(r.Destinations); n > 0 && r.Destinations[n-1].Unreported && r.Destinations[n-1].PossibleUtilization < calmBelow {
		return lower
	}
	return unsure
}

// restOfNAT returns the same of pools of source NAT.
func restOfNAT(r *snat.Report) knowledge {
	if r.UnreportedPools == len(r.Others) {
		return none
	}
	if n := len(r.Others); n > 0 && r.Others[n-1].Utilization < calmBelow {
		return lower
	}
	return unsure
}

// makeRoom leaves out listed pools that are too many, and forgets others so that those listed have room.
func (h *History) makeRoom(now time.Duration) {
	if len(h.listed) > MaxPools {
		slices.SortFunc(h.listed, func(a, b listed) int { return worstFirst(a.now, b.now) })
		h.listed = h.listed[:MaxPools]
	}
	more := len(h.pools) - MaxPools
	for i := range h.listed {
		if p := h.pools[h.listed[i].id]; p != nil {
			p.scan = h.scans
		} else {
			more++
		}
	}
	if more <= 0 {
		return
	}
	type unlisted struct {
		id    ID
		worst sample
	}
	var others []unlisted
	for id, p := range h.pools {
		if p.scan != h.scans {
			others = append(others, unlisted{id, p.worst(now)})
		}
	}
	slices.SortFunc(others, func(a, b unlisted) int { return worstFirst(b.worst, a.worst) })
	for _, o := range others[:more] {
		delete(h.pools, o.id)
	}
}

// addUnlisted adds what a Snapshot knows of a pool that it does not list.
func (h *History) addUnlisted(s *scan.Snapshot, id ID, p *past, now time.Duration) {
	known := h.rest[id.Inode]
	switch known.of[id.Kind] {
	case nothing:
		p.fail(now)
	case lower:
		p.judge(now, advice.Calm)
	case none:
		n := &s.Namespaces[known.place]
		if id.Kind == NAT {
			p.add(now, sampleOf(0, 0, n.NAT.Report.CapacityPorts), advice.Calm)
			return
		}
		// Bound ports are missing to a destination without connections too.
		r := &n.TCP.Report
		empty := sampleOf(r.BoundPorts, r.BoundPorts+r.BoundUnknown, r.CapacityPorts)
		d := pool.Destination{Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1)}
		d.Utilization, d.PossibleUtilization = empty.utilization()
		p.add(now, empty, advice.ReachedTCP(r, &d, false).Level())
	}
}

// used returns how many ports of a destination are in use.
func used(d *pool.Destination) int { return d.Held - d.Reusable + d.BoundByOthers }

// Of returns what is remembered of a pool until a Snapshot. ok is false if that is nothing.
func (h *History) Of(id ID, s *scan.Snapshot) (p Past, ok bool) {
	if h == nil {
		return Past{}, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	of := h.pools[id]
	if of == nil {
		return Past{}, false
	}
	return Past{until: s.Time, now: s.Time.Sub(h.start), past: *of}, true
}

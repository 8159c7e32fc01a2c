package status

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// A traced pool is what a trace tells of a pool: which control groups close its connections, and which fail to connect.
type traced struct {
	closers  []*scan.ClosedPool // those with most recent closes first
	failing  []*scan.FailedPool // those with most failures first
	failures uint64
	shown    bool // beside a destination
}

// A poolKey is what a trace tells of a pool. netns is empty if that is not known.
type poolKey struct {
	netns       string
	source      netip.Addr
	destination netip.AddrPort
}

func keyOf(netns string, source netip.Addr, destination netip.AddrPort) poolKey {
	return poolKey{netns, source.WithZone(""), netip.AddrPortFrom(destination.Addr().WithZone(""), destination.Port())}
}

// tracedPools are the pools of a trace.
type tracedPools map[poolKey]*traced

func newTracedPools(t *scan.Trace) tracedPools {
	pools := tracedPools{}
	if t == nil {
		return pools
	}
	for i := range t.Pools {
		f := &t.Pools[i]
		of := pools.of(keyOf(f.Netns, f.Source, f.Destination))
		of.failing = append(of.failing, f)
		of.failures += f.Failures
	}
	for i := range t.Closes {
		c := &t.Closes[i]
		of := pools.of(keyOf(c.Netns, c.Source, c.Destination))
		of.closers = append(of.closers, c)
	}
	return pools
}

// of returns a pool, which it adds if it is new.
func (t tracedPools) of(key poolKey) *traced {
	if t[key] == nil {
		t[key] = &traced{}
	}
	return t[key]
}

// take returns what is traced of a pool, which a destination shows from now on.
func (t tracedPools) take(netns string, source netip.Addr, destination netip.AddrPort) (all traced) {
	for _, netns := range []string{netns, ""} {
		if p := t[keyOf(netns, source, destination)]; p != nil {
			p.shown = true
			all.failures += p.failures
			all.failing = append(all.failing, p.failing...)
			all.closers = append(all.closers, p.closers...)
		}
	}
	slices.SortStableFunc(all.failing, func(a, b *scan.FailedPool) int { return cmp.Compare(b.Failures, a.Failures) })
	slices.SortStableFunc(all.closers, func(a, b *scan.ClosedPool) int { return cmp.Compare(b.Recent, a.Recent) })
	all.closers = slices.DeleteFunc(all.closers, func(c *scan.ClosedPool) bool { return c.Recent == 0 })
	return all
}

// maxNamed is how many control groups a sentence names.
const maxNamed = 3

// named joins what is said of the first control groups, and counts the others.
func named[T any](all []T, say func(T) string) string {
	var names []string
	for i, of := range all {
		if i == maxNamed {
			return fmt.Sprintf("%s and %s", strings.Join(names, ", "), plural(len(all)-maxNamed, "other", "others"))
		}
		names = append(names, say(of))
	}
	return strings.Join(names, ", ")
}

// last says which process of a control group was the last one to do something, after what is known besides.
func last(p scan.Process, c cleaner) string {
	if p.PID == 0 {
		return ""
	}
	return fmt.Sprintf(", last %s with pid %d", c.name(p.Command), p.PID)
}

// who says which control groups have to do with the ports of a destination.
type who struct {
	InRow     []string // beside the destination, who fills the pool first
	Sentences []string
	culprit   string // who fills most of it, as the end of a sentence; empty if not known
}

// blame names who fills most of the pool, after what is wrong with it.
func (d *destination) blame() string {
	if d.who.culprit == "" || d.reached.Has(advice.Possible) { // who fills it is not known either then
		return ""
	}
	return "; " + d.who.culprit
}

// blamable reports whether a control group says who it is: the root has what is in no other, which is all on some hosts.
func blamable(g *scan.Group) bool { return g.Path != "/" }

// inUse returns how many ports connect() cannot choose, those that other clients have bound included.
func inUse(d *pool.Destination) int { return d.Held - d.Reusable + d.BoundByOthers }

// newWho returns who fills a pool, and whose connects to it fail.
func newWho(d *pool.Destination, owners []scan.Owner, t traced, of *scan.Trace, c cleaner) (w who) {
	closed := d.Held - d.Open // ports of connections that ended, which no process has any more
	names := ownerNames(owners, c)
	held := ""
	if len(names) > 0 {
		held = "Held by " + strings.Join(names, ", ")
	}
	var fills *scan.Group // most of it
	if 2*closed > d.Held {
		fills = w.addClosers(d, closed, t.closers, held, of, c)
	} else if held != "" {
		w.Sentences = append(w.Sentences, held+".")
	}
	used := float64(inUse(d))
	if fills == nil && len(owners) > 0 {
		if share := float64(owners[0].Ports) / used; share > 0.5 && blamable(&owners[0].Group) {
			fills = &owners[0].Group
			w.culprit = fmt.Sprintf("%s holds %s of those in use", ownerName(fills, c), percent(share))
		}
	}
	if share := float64(d.BoundByOthers) / used; share > 0.5 && d.Utilization >= 0.5 {
		w.culprit = fmt.Sprintf("other clients have bound %s of those in use", percent(share))
	}
	if len(w.InRow) > 0 && held != "" { // beside those who closed
		names = []string{"held by " + strings.Join(names, ", ")}
	}
	w.InRow = append(w.InRow, names...)
	if len(t.failing) > 0 {
		w.Sentences = append(w.Sentences, "Failed connects are of "+named(t.failing, func(f *scan.FailedPool) string {
			return fmt.Sprintf("%s (%d%s)", ownerName(&f.Cgroup, c), f.Failures, last(f.Last, c))
		})+".")
		if w.culprit == "" && blamable(&t.failing[0].Cgroup) {
			w.culprit = "connects of " + ownerName(&t.failing[0].Cgroup, c) + " failed"
		}
		if victim := &t.failing[0].Cgroup; fills != nil && victim.Path != fills.Path {
			w.Sentences = append(w.Sentences, fmt.Sprintf("%s fills the pool, so that %s cannot connect: what helps has to change the first.", ownerName(fills, c), ownerName(victim, c)))
		}
	}
	return w
}

// addClosers adds who closed the connections of a pool in which closed ones hold most ports. held says who has its open ones. It
// returns the control group that fills more than half of the pool with these, or nothing.
func (w *who) addClosers(d *pool.Destination, closed int, closers []*scan.ClosedPool, held string, t *scan.Trace, c cleaner) (fills *scan.Group) {
	if t == nil || t.Err != nil || !t.ClosesCounted {
		tells := "--trace tells who closes them"
		if t != nil {
			tells = "who closed them is not counted now"
		}
		sentence := fmt.Sprintf("Connections that this host closed first have %d of %d ports. No process and no control group has them any more: %s.", closed, d.Held, tells)
		if held != "" {
			sentence = fmt.Sprintf("%s: these have %d of %d ports. The others are of connections that ended, which no control group has any more: %s.", held, d.Open, d.Held, tells)
		}
		w.Sentences = append(w.Sentences, sentence)
		return nil
	}
	seen := uint64(0)
	for _, of := range closers {
		seen += of.Recent
	}
	// Older closes, and those that are not attributed, may be of others.
	all := max(seen, uint64(closed-d.Reusable))
	share := func(of *scan.ClosedPool) float64 { return float64(of.Recent) / float64(all) }
	if seen > 0 {
		by := named(closers, func(of *scan.ClosedPool) string {
			return fmt.Sprintf("%s (%s%s)", ownerName(&of.Cgroup, c), percent(share(of)), last(of.Last, c))
		})
		unknown, window := float64(all-seen)/float64(all), seconds(t.Window.Seconds())
		switch {
		case unknown > 0.5:
			w.Sentences = append(w.Sentences, fmt.Sprintf("Who closed %s of its connections first in the last %s is not known. The others were closed by %s.", percent(unknown), window, by))
		case unknown > 0.1:
			w.Sentences = append(w.Sentences, fmt.Sprintf("Closed first in the last %s by %s; who closed %s is not known.", window, by, percent(unknown)))
		default:
			w.Sentences = append(w.Sentences, fmt.Sprintf("Closed first in the last %s by %s.", window, by))
		}
		if most := closers[0]; 2*share(most)*float64(closed-d.Reusable) > float64(inUse(d)) && blamable(&most.Cgroup) {
			fills = &most.Cgroup
			w.culprit = fmt.Sprintf("%s closed %s of its connections", ownerName(fills, c), percent(share(most)))
		}
		inRow := "closed by " + named(closers, func(of *scan.ClosedPool) string {
			return fmt.Sprintf("%s (%s)", ownerName(&of.Cgroup, c), percent(share(of)))
		})
		if unknown > 0.5 {
			inRow = fmt.Sprintf("who closed %s is not known", percent(unknown))
		}
		w.InRow = append(w.InRow, inRow)
	} else {
		w.Sentences = append(w.Sentences, "Who closed its connections first is not known: that was before the exporter started, or their closes are not attributed.")
	}
	if held != "" {
		w.Sentences = append(w.Sentences, held+".")
	}
	return fills
}

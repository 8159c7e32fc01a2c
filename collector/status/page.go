package status

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// A page is what all formats show of a Snapshot. Its strings are ready to be shown.
type page struct {
	Info
	View View
	Time time.Time

	Level    level
	Headline string
	Problems []string // besides the headline's

	Destinations []*destination
	Sources      []source
	UDP          []*udpPool
	NAT          []*natPool
	Conntrack    []conntrack // counts of connection tracking where they matter
	Namespaces   []namespace
	Idle         []namespace
	Outcomes     string    // how many network namespaces there are of each outcome
	Settings     []setting // of our own namespace; none if that could not be read
	Failed       []failed  // pools with failed connects that are not among Destinations
	LeftOut      []string  // by limits
	Notes        []string  // on what the numbers do not contain

	Others bool // other namespaces are watched too
	Counts bool // failed connects are counted
}

// A destination is a row of the table of destinations.
type destination struct {
	pool      *pool.Destination
	namespace *scan.Namespace
	failures  uint64
	advice    *advice.Advice // nil unless it is in danger
	reached   advice.Reached

	Level                        level
	Address, Source, Netns       string
	Used, Closes, Ceiling        string
	Over                         bool // closes are near the ceiling or above
	Forecast, Failures           string
	Owners                       []string // control groups that hold its ports, those with most first
	NoOwner                      string   // why there are none, if all its ports are in TIME_WAIT
	Held, Capacity, BoundByOther int
	Free                         int
	Reusable                     int
	States                       []stateCount // that are not 0
	Timestamps                   string
	Bar                          []segment
	Commands                     []Command
	Enter                        string   // why there are no commands
	Alerts                       []string // whose chapters of the runbook apply
	Diagnosis                    string   // empty unless it is in danger
	Cures                        []cure
	Link                         string // to this destination alone
}

// Key identifies the row to the script of the page.
func (d *destination) Key() string { return d.Netns + " " + d.Source + " " + d.Address }

// Description says what the bar shows.
func (d *destination) Description() string { return describe(d.Bar) }

// describe says what a bar shows.
func describe(bar []segment) string {
	var parts []string
	for _, s := range bar {
		parts = append(parts, fmt.Sprintf("%s %s", percent(s.Width/100), s.Kind))
	}
	return cmp.Or(strings.Join(parts, ", "), "no ports")
}

// A stateCount is how many ports are in a state.
type stateCount struct {
	State string
	Ports int
}

// A cure is a change that helps a destination.
type cure struct {
	Title, Anchor, Sentence, Condition string
	Gain                               string // now and then, in numbers
	Command                            string
}

func newCure(n *scan.Namespace, of advice.Cure) cure {
	row := cure{Title: of.Title, Anchor: of.Anchor(), Sentence: of.Sentence, Condition: of.Condition}
	if enter, ok := enterCommand(n); ok && of.Command != "" {
		row.Command = enter + of.Command
	}
	row.Gain = fmt.Sprintf("Now %s. Then %s.", outlook(of.Now), outlook(of.Then))
	return row
}

// outlook writes how many connections a destination can have at once, and for each second.
func outlook(o advice.Outlook) string {
	if math.IsInf(o.Ceiling, 1) {
		return plural(o.Ports, "port", "ports") + ", and any number per second"
	}
	return plural(o.Ports, "port", "ports") + ", " + rate(o.Ceiling) + " per second"
}

// A source is a row of the table of addresses whose clients bind before they connect.
type source struct {
	pool                   *pool.Source
	Netns, Address, Used   string
	Ports, Bound, Capacity string
	Certain                bool // that most clients bind first
}

// A namespace is a row of the table of network namespaces.
type namespace struct {
	scan                       *scan.Namespace
	Name, Owner, Outcome, Used string
	Range, Capacity, Reuse     string
	TimeWait, Err              string
}

// A setting is a sysctl or what follows from it.
type setting struct{ Name, Value, Meaning string }

// A failed is a pool with failed connects.
type failed struct {
	pool            *scan.FailedPool
	Netns, Owner    string // empty if not known
	Address, Source string
	Failures        string
}

// newPage returns the page of a Snapshot.
func newPage(s *scan.Snapshot, info Info, v View, c cleaner) *page {
	p := &page{Info: info, View: v, Time: s.Time, Others: s.OthersRead, Counts: s.ConnectFailures != nil}
	p.Host = c.name(info.Host)
	failures := failuresByPool(s.ConnectFailures)
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		for j := range n.TCP.Report.Destinations {
			d := &n.TCP.Report.Destinations[j]
			var failed uint64
			for _, netns := range []string{n.Name, ""} {
				if f := failures[keyOf(netns, d.Source, d.Address)]; f != nil {
					f.shown = true
					failed += f.failures
				}
			}
			if !v.Destination.IsValid() || d.Address == v.Destination {
				row := newDestination(n, d, failed, p.Counts, c)
				for _, o := range s.Resolve(d.Owners) {
					row.Owners = append(row.Owners, fmt.Sprintf("%s (%d)", c.name(o.Path), o.Ports))
				}
				p.Destinations = append(p.Destinations, row)
			}
		}
		p.addSources(n, c)
		p.addUDP(s, n, c)
		p.addNAT(n, c)
		if known := n.TCP.Outcome != scan.Skipped || n.TCP.Err != nil; p.Others && v.shows(n) && n.Name != "" && known {
			list := &p.Namespaces
			if n.TCP.Outcome == scan.Idle {
				list = &p.Idle
			}
			*list = append(*list, newNamespace(n, c))
		}
	}
	p.Outcomes = outcomes(s.Namespaces)
	slices.SortFunc(p.Destinations, worstFirst)
	slices.SortStableFunc(p.UDP, worstUDPFirst)
	slices.SortFunc(p.NAT, worstNATFirst)
	slices.SortStableFunc(p.Namespaces, func(a, b namespace) int {
		return cmp.Or(cmp.Compare(rank(a.scan), rank(b.scan)), cmp.Compare(b.scan.TCP.Report.MaxUtilization, a.scan.TCP.Report.MaxUtilization))
	})
	p.addFailed(s.ConnectFailures, failures, c)
	p.addLeftOut(s, c)
	p.Settings = settingsOf(&s.Namespaces[0])
	p.judge(s, c)
	return p
}

// outcomes writes how many namespaces there are of each outcome.
func outcomes(namespaces []scan.Namespace) string {
	counts := map[scan.Outcome]int{}
	for i := range namespaces {
		counts[namespaces[i].TCP.Outcome]++
	}
	var parts []string
	for _, o := range scan.Outcomes {
		if counts[o] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[o], o))
		}
	}
	return strings.Join(parts, ", ")
}

// rank orders namespaces: our own, those that could not be read, the others.
func rank(n *scan.Namespace) int {
	switch {
	case n.Name == scan.Self:
		return 0
	case n.TCP.Err != nil:
		return 1
	default:
		return 2
	}
}

// A poolKey is what failed connects tell of a pool. netns is empty if that is not known.
type poolKey struct {
	netns       string
	source      netip.Addr
	destination netip.AddrPort
}

func keyOf(netns string, source netip.Addr, destination netip.AddrPort) poolKey {
	return poolKey{netns, source.WithZone(""), netip.AddrPortFrom(destination.Addr().WithZone(""), destination.Port())}
}

// A failedPool is a pool with failed connects, of all control groups.
type failedPool struct {
	failures uint64
	shown    bool // beside a destination
}

func failuresByPool(f *scan.ConnectFailures) map[poolKey]*failedPool {
	pools := map[poolKey]*failedPool{}
	if f == nil {
		return pools
	}
	for _, p := range f.Pools {
		key := keyOf(p.Netns, p.Source, p.Destination)
		if pools[key] == nil {
			pools[key] = &failedPool{}
		}
		pools[key].failures += p.Failures
	}
	return pools
}

func newDestination(n *scan.Namespace, d *pool.Destination, failures uint64, counts bool, c cleaner) *destination {
	capacity := n.TCP.Report.CapacityPorts
	row := &destination{
		pool: d, namespace: n,
		Address: d.Address.String(), Source: d.Source.String(), Netns: c.name(n.Name),
		Used: percent(d.Utilization), Closes: rate(d.CloseRate), Ceiling: rate(d.Ceiling),
		Held: d.Held, Capacity: capacity, BoundByOther: d.BoundByOthers, Reusable: d.Reusable,
		Free:     max(capacity-(d.Held-d.Reusable)-d.BoundByOthers, 0),
		Forecast: forecast(d), Timestamps: timestamps(d.Timestamps),
		Bar: newBar(d, capacity), Commands: destinationCommands(n, d),
		Link: View{Format: HTML, Destination: d.Address}.URL(),
	}
	if timeWait := d.Ports[slices.Index(pool.States[:], pool.TimeWait)]; d.Held > 0 && timeWait == d.Held {
		row.NoOwner = "All its ports are in TIME_WAIT: these connections belong to no process and no control group any more."
	}
	row.failures = failures
	if counts {
		row.Failures = strconv.FormatUint(row.failures, 10)
	}
	if row.Commands == nil {
		row.Enter = fmt.Sprintf("Enter the network namespace with inode %d first: its path is not known, or no shell should see it.", n.Inode)
	}
	row.reached = advice.ReachedTCP(&n.TCP.Report, d, row.failures > 0)
	row.Over = row.reached.Has(advice.Load)
	row.Level, row.Alerts = row.reached.Level(), row.reached.Alerts()
	if row.advice = advice.TCP(&n.TCP.Report, d, row.failures > 0); row.advice != nil {
		row.Diagnosis = row.advice.Diagnosis
		for _, cure := range row.advice.Cures {
			row.Cures = append(row.Cures, newCure(n, cure))
		}
	}
	for i, state := range pool.States {
		if d.Ports[i] > 0 {
			row.States = append(row.States, stateCount{state.String(), d.Ports[i]})
		}
	}
	slices.SortStableFunc(row.States, func(a, b stateCount) int { return cmp.Compare(b.Ports, a.Ports) })
	return row
}

// forecast writes when the ports run out at the present rate.
func forecast(d *pool.Destination) string {
	switch {
	case d.Utilization >= 1:
		return "now"
	case d.Exhaustion < 24*3600:
		return seconds(d.Exhaustion)
	default:
		return "-"
	}
}

// timestamps writes whether TIME_WAIT to a peer may be reusable.
func timestamps(f pool.Fact) string {
	switch f {
	case pool.Yes:
		return "The peer uses TCP timestamps."
	case pool.No:
		return "The peer does not use TCP timestamps: its ports in TIME_WAIT are never reusable."
	default:
		return ""
	}
}

// addSources adds the sources of a namespace whose clients bind first.
func (p *page) addSources(n *scan.Namespace, c cleaner) {
	if p.View.Destination.IsValid() {
		return
	}
	r := &n.TCP.Report
	for i := range r.Sources {
		s := &r.Sources[i]
		row := source{
			pool: s, Netns: c.name(n.Name), Address: s.Address.String(), Used: percent(s.Utilization),
			Ports: strconv.Itoa(s.Ports), Bound: strconv.Itoa(s.Bound), Capacity: strconv.Itoa(s.Capacity),
			Certain: r.BoundKnown,
		}
		if !row.Certain {
			row.Bound = "unknown"
		}
		if row.Certain && bindsFirst(s) || !row.Certain && mayBindFirst(s) {
			p.Sources = append(p.Sources, row)
		}
	}
}

func newNamespace(n *scan.Namespace, c cleaner) namespace {
	row := namespace{scan: n, Name: c.name(n.Name), Outcome: string(n.TCP.Outcome), Owner: ownerOf(&n.Workload, c)}
	if n.TCP.Err != nil {
		row.Err = c.sentence(n.TCP.Err.Error())
		return row
	}
	row.TimeWait = "unknown"
	if n.TimeWait.Err == nil {
		row.TimeWait = strconv.Itoa(n.TimeWait.Sockets)
	}
	if n.TCP.Outcome != scan.Collected {
		return row
	}
	s := n.TCP.Report.Settings
	row.Used = percent(n.TCP.Report.MaxUtilization)
	row.Range = fmt.Sprintf("%d-%d", s.PortRange.Low, s.PortRange.High)
	row.Capacity = strconv.Itoa(n.TCP.Report.CapacityPorts)
	row.Reuse = strconv.Itoa(s.TWReuse)
	return row
}

// ownerOf writes what a namespace belongs to.
func ownerOf(o *scan.Workload, c cleaner) string {
	var parts []string
	if o.Command != "" {
		parts = append(parts, c.name(o.Command))
	}
	if o.PodUID != "" {
		parts = append(parts, "pod "+c.name(o.PodUID))
	}
	if o.ContainerID != "" {
		parts = append(parts, "container "+c.name(o.ContainerID[:min(12, len(o.ContainerID))]))
	}
	return strings.Join(parts, ", ")
}

// addFailed adds the pools with failed connects that no destination shows.
func (p *page) addFailed(f *scan.ConnectFailures, byPool map[poolKey]*failedPool, c cleaner) {
	if f == nil {
		return
	}
	for i := range f.Pools {
		pool := &f.Pools[i]
		if byPool[keyOf(pool.Netns, pool.Source, pool.Destination)].shown ||
			p.View.Destination.IsValid() && pool.Destination != keyOf("", pool.Source, p.View.Destination).destination {
			continue
		}
		p.Failed = append(p.Failed, failed{
			pool: pool, Netns: c.name(pool.Netns), Owner: c.name(pool.Cgroup.Path), Address: pool.Destination.String(), Source: pool.Source.String(), Failures: strconv.FormatUint(pool.Failures, 10),
		})
	}
	slices.SortStableFunc(p.Failed, func(a, b failed) int { return cmp.Compare(b.pool.Failures, a.pool.Failures) })
}

// settingsOf returns the settings of our own namespace.
func settingsOf(n *scan.Namespace) []setting {
	if n.TCP.Err != nil {
		return nil
	}
	r, s := &n.TCP.Report, &n.TCP.Report.Settings
	var settings []setting
	add := func(name, value, meaning string) { settings = append(settings, setting{name, value, meaning}) }
	add("ip_local_port_range", fmt.Sprintf("%d %d", s.PortRange.Low, s.PortRange.High), plural(s.PortRange.Size(), "port", "ports"))
	add("ip_local_reserved_ports", strconv.Itoa(r.ReservedPorts), "of them withheld")
	add("listeners", strconv.Itoa(r.BlockedPorts), "further ports withheld, whatever the address")
	add("capacity", strconv.Itoa(r.CapacityPorts), "ports for each pool")
	if r.BoundKnown {
		bound := "of them lost to connect(), because bind() took them"
		if r.BoundUnknown > 0 {
			bound += fmt.Sprintf("; up to %d more may be", r.BoundUnknown)
		}
		add("bound ports", strconv.Itoa(r.BoundPorts), bound)
	}
	reuse := map[int]string{0: "ports in TIME_WAIT are never reused", 1: "ports in TIME_WAIT are reused", 2: "ports in TIME_WAIT are reused on loopback only"}[s.TWReuse]
	add("tcp_tw_reuse", strconv.Itoa(s.TWReuse), reuse)
	if s.TWReuseDelay > 0 {
		add("tcp_tw_reuse_delay", strconv.FormatInt(s.TWReuseDelay.Milliseconds(), 10), "ms before that")
	} else if s.TWReuse != 0 {
		add("tcp_tw_reuse_delay", "-", "this kernel has none: ports are reused from the next second on")
	}
	timestamps := "on"
	if s.Timestamps == 0 {
		timestamps = "off: ports in TIME_WAIT are never reused"
	}
	add("tcp_timestamps", strconv.Itoa(s.Timestamps), timestamps)
	add("tcp_fin_timeout", strconv.FormatFloat(s.FinTimeout.Seconds(), 'g', -1, 64), "s in FIN_WAIT2; it does not shorten TIME_WAIT")
	if n.TimeWait.Outcome == scan.Collected {
		add("TIME_WAIT", strconv.Itoa(n.TimeWait.Sockets), fmt.Sprintf("sockets, at most %d (tcp_max_tw_buckets)", n.TimeWait.Limit))
	}
	return settings
}

// addLeftOut adds what limits left out, and what the numbers do not contain.
func (p *page) addLeftOut(s *scan.Snapshot, c cleaner) {
	destinations, ports, sources, skipped, natPools, natPorts, unsure := 0, 0, 0, 0, 0, 0, 0
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		r := &n.TCP.Report
		destinations += r.UnreportedDestinations
		ports += r.UnreportedPorts
		sources += r.UnreportedSources
		of := 0
		for i := range r.Destinations {
			of += r.Destinations[i].ReusableUnknown
		}
		if n.TCP.TimestampsErr == nil {
			unsure += of
		} else if of > 0 {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %s in TIME_WAIT may be free, but count as used: it could not be read whether their destinations use TCP timestamps. %s",
				c.name(n.Name), plural(of, "port", "ports"), c.sentence(n.TCP.TimestampsErr.Error())))
		}
		natPools += n.NAT.Report.UnreportedPools
		natPorts += n.NAT.Report.UnreportedPorts
		if n.TCP.Outcome == scan.Skipped {
			skipped++
		}
		switch {
		case r.BoundKnown && 100*r.BoundUnknown > r.CapacityPorts:
			p.Notes = append(p.Notes, fmt.Sprintf("%s: up to %d ports may be bound besides those counted, because their clients have not been seen choosing. Utilization can be higher by these.",
				c.name(n.Name), r.BoundUnknown))
		case n.TCP.Err == nil && !r.BoundKnown && slices.ContainsFunc(r.Sources, func(s pool.Source) bool { return mayBindFirst(&s) }):
			p.Notes = append(p.Notes, c.name(n.Name)+": clients may bind before they connect. One collection cannot tell, so utilization may miss the ports that they hold.")
		}
	}
	if destinations > 0 {
		p.LeftOut = append(p.LeftOut, fmt.Sprintf("%s with %s in all: --destination.min-ports and --destination.limit.",
			plural(destinations, "destination", "destinations"), plural(ports, "port", "ports")))
	}
	if sources > 0 {
		p.LeftOut = append(p.LeftOut, fmt.Sprintf("%s: --destination.limit.", plural(sources, "source address", "source addresses")))
	}
	if natPools > 0 {
		p.LeftOut = append(p.LeftOut, fmt.Sprintf("%s of source NAT with %s in all: --destination.min-ports and --destination.limit.",
			plural(natPools, "pool", "pools"), plural(natPorts, "port", "ports")))
	}
	if skipped > 0 {
		p.LeftOut = append(p.LeftOut, fmt.Sprintf("%s, whose turn comes in a later collection: --namespaces.limit.", plural(skipped, "network namespace", "network namespaces")))
	}
	if unsure > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("%s in FIN_WAIT2 may be free, but count as used: whether connect() takes these over is not known of this kernel, which is older than 6.12.",
			plural(unsure, "port", "ports")))
	}
	if note := natNote(&s.Namespaces[0]); note != "" {
		p.Notes = append(p.Notes, note)
	}
	if s.CgroupsErr != nil {
		p.Notes = append(p.Notes, "Some owners have no path: "+c.sentence(s.CgroupsErr.Error()))
	}
	if f := s.ConnectFailures; f != nil && f.Unattributed > 0 {
		p.LeftOut = append(p.LeftOut, fmt.Sprintf("The addresses of %s that failed: --destination.limit.", connects(f.Unattributed)))
	}
}

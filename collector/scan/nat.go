//go:build linux

package scan

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/cilium"
	"ephemeral_port_exporter/collector/conntrack"
	"ephemeral_port_exporter/collector/internal/capability"
	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/snat"
)

const (
	// natIdleFactor is 1 / 10%: the ports of source NAT are not counted in another namespace that tracks
	// fewer flows than 10% of the ports of one pool. Tracked flows are many where no port is short.
	natIdleFactor = 10

	// A namespace with fewer flows than smallFlows is small, and a scan counts the ports of source
	// NAT in maxSmall such at most: the kernel walks the flows of the whole host for each.
	smallFlows = 1024

	// natFlowCost is about how long it takes to read a flow.
	natFlowCost = 4 * time.Microsecond
)

// openNAT finds out whether flows can be listed. The error says what is missing to the process. A
// kernel that has no connection tracking is none: that is logged, and can change.
func (s *Scanner) openNAT() error {
	missing, err := capability.Missing(capability.NetAdmin)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return &PermanentError{fmt.Errorf("--snat cannot list the flows of connection tracking without %s: grant this to the process, or run without --snat", capability.Join(missing))}
	}
	// Mainline commit 458972550287 of Linux 6.5 (nf_nat_used_tuple_harder). A distribution can have it in an older
	// kernel. That does not show: the compiler inlines the function, so it is in no list of symbols, and ctnetlink
	// does not get as far, as its new flows are not in SYN_SENT. Only packets through a rule tell, in a network
	// namespace that CAP_NET_ADMIN alone may not make. So closed flows then count as held, which is the worse case.
	s.natTakesOver = s.cfg.SNATTakeover || !s.kernel.before(6, 5)
	if !s.natTakesOver {
		s.cfg.Logger.Info("Ports of closed TCP connections count as held by source NAT: Linux takes them over since 6.5, see --snat.takeover for older kernels that do", "kernel", s.kernel)
	}

	if maps, err := cilium.Open(s.cfg.BPFFS); err == nil {
		s.ciliumRead = true
		maps.Close()
	}
	if _, err := s.proc.Conntrack(); errors.Is(err, fs.ErrNotExist) {
		if !s.ciliumRead {
			s.cfg.Logger.Warn("The kernel tracks no flows, so there is no source NAT to watch; scans look again", "err", err)
		}
		return nil
	}
	conn, err := s.dialConntrack(time.Now().Add(s.cfg.Timeout))
	if err != nil {
		return s.natError(err)
	}
	defer conn.Close()
	return s.natError(conn.Check())
}

// natError explains why no scan will list flows. It returns nil for an error that may not happen
// again.
func (s *Scanner) natError(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("--snat cannot list the flows: %w", err)
	case errors.Is(err, conntrack.ErrUnsupported):
		s.cfg.Logger.Warn("The flows of source NAT cannot be listed; scans try again", "err", err)
	}
	return nil
}

// A dropCounter remembers how many packets source NAT of a namespace, or that of Cilium, had dropped at its last scan.
type dropCounter struct {
	scanned bool
	last    uint64
	rose    time.Time // of the last scan that saw more than the one before
}

// recentDrops is how long drops count as recent: as long as in the alerts. So scrapes and pages that come one after the
// other tell the same.
const recentDrops = 5 * time.Minute

// observe adds what a scan has counted. It reports whether some were dropped lately. Those before the first scan can be
// of any age.
func (c *dropCounter) observe(drops uint64, now time.Time) (lately bool) {
	if c.scanned && drops > c.last {
		c.rose = now
	}
	c.scanned, c.last = true, drops
	return !c.rose.IsZero() && now.Sub(c.rose) < recentDrops
}

// addNAT counts the ports of source NAT in the calling thread's namespace. Nothing is known of one
// that tracks no flows.
func (s *Scanner) addNAT(n *Namespace, drops *dropCounter, deadline time.Time) {
	if n.Conntrack.Err != nil {
		n.NAT.Result = n.Conntrack.Result
		return
	}
	start := time.Now()
	lately := drops.observe(n.Conntrack.InsertFailed, start)
	var maps *cilium.Maps
	if n.Name == Self && s.cfg.BPFFS != "" {
		if maps = s.openCilium(n); maps != nil {
			defer maps.Close()
		}
	}
	if n.Conntrack.Entries == 0 && maps == nil {
		return
	}
	table, err := s.fillNATTable(n, lately, maps, deadline)
	if err != nil {
		n.NAT.Result = failure(err)
		return
	}
	n.NAT = NAT{Result: Result{Outcome: Collected}, Report: table.Report(s.cfg.Limits), Duration: time.Since(start)}
}

// fillNATTable returns a table of the calling thread's namespace, valid until the next call. drops is snat.Settings.Drops. maps are those of Cilium, or
// nil. If these cannot be read, the table is that of the kernel alone.
func (s *Scanner) fillNATTable(n *Namespace, drops bool, maps *cilium.Maps, deadline time.Time) (*snat.Table, error) {
	if !time.Now().Before(deadline) {
		return nil, os.ErrDeadlineExceeded
	}
	settings, err := s.natSettings(drops)
	if err != nil {
		return nil, err
	}
	table := s.natTable
	table.Reset(settings)
	if maps != nil && !maps.Empty() {
		settings.Cilium = s.ciliumSettings(maps)
		table.Reset(settings)
		until := deadline
		if n.Conntrack.Entries > 0 {
			until = half(deadline)
		}
		if s.addCilium(n, maps, table, until); n.Cilium.Err != nil {
			table.Reset(settings)
		}
	}
	if n.Conntrack.Entries == 0 {
		return table, nil
	}
	if err := s.addFlows(table, deadline); err != nil {
		return nil, err
	}
	return table, nil
}

// addFlows adds the flows of connection tracking to a table. After an error, some of them may have been added.
func (s *Scanner) addFlows(table *snat.Table, deadline time.Time) error {
	own, err := ownAddresses()
	if err != nil {
		return err
	}
	before, err := s.proc.Conntrack()
	if err != nil {
		return err
	}
	conn, err := s.dialConntrack(deadline)
	if err != nil {
		return err
	}
	defer conn.Close()
	var row snat.Flow
	err = conn.Flows(func(f *conntrack.Flow) {
		// Other flows that are not translated keep an address that is not ours: they take no port of a pool.
		if f.Status&conntrack.SrcNAT != 0 || own[f.Original.Source.Addr()] {
			setNATRow(&row, f)
			table.Add(&row)
		}
	})
	if err != nil {
		return err
	}
	after, err := s.proc.Conntrack()
	if err != nil {
		return err
	}
	if after.Buckets != before.Buckets {
		return fmt.Errorf("%w: nf_conntrack_buckets changed from %d to %d", conntrack.ErrInterrupted, before.Buckets, after.Buckets)
	}
	return nil
}

// natSettings returns the settings of the calling thread's namespace.
func (s *Scanner) natSettings(drops bool) (snat.Settings, error) {
	settings := snat.Settings{PortRanges: s.cfg.SNATPorts, TakesOver: s.natTakesOver, Drops: drops}
	timeouts, err := s.proc.ConntrackTimeouts()
	if errors.Is(err, fs.ErrNotExist) {
		return settings, nil // hidden: ceilings are not known
	}
	settings.TCPTimeWait, settings.UDP = timeouts.TCPTimeWait, timeouts.UDP
	return settings, err
}

// dialConntrack opens a connection to the kernel, like dialUntil.
func (s *Scanner) dialConntrack(deadline time.Time) (*conntrack.Conn, error) {
	conn, err := s.dialNAT(s.buffer)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(deadline)
	return conn, nil
}

// ownAddresses returns the addresses of the calling thread's namespace.
func ownAddresses() (map[netip.Addr]bool, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of the host: %w", err)
	}
	own := make(map[netip.Addr]bool, len(addresses))
	for _, a := range addresses {
		if prefix, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(prefix.IP); ok {
				own[ip.Unmap()] = true
			}
		}
	}
	return own, nil
}

// setNATRow sets row to a flow.
func setNATRow(row *snat.Flow, f *conntrack.Flow) {
	*row = snat.Flow{
		Protocol: snat.TCP, State: natStateOf(f),
		Client: f.Original.Source.Addr(), ClientPort: f.Original.Source.Port(), Translated: f.Reply.Destination, Destination: f.Reply.Source,
		Zone: f.Zone, Expected: f.Status&conntrack.Expected != 0, SNAT: f.Status&conntrack.SrcNAT != 0,
	}
	if f.Protocol == conntrack.UDP {
		row.Protocol = snat.UDP
	}
}

// natStateOf returns the state of a flow. One in a flow table has none: it is in use.
func natStateOf(f *conntrack.Flow) snat.State {
	switch {
	case f.Protocol == conntrack.UDP && f.Status&(conntrack.Assured|conntrack.Offload) != 0:
		return snat.Assured
	case f.Protocol == conntrack.UDP && f.Status&conntrack.SeenReply != 0:
		return snat.Replied
	case f.Protocol == conntrack.UDP:
		return snat.Unreplied
	case conntrack.SynSent <= f.State && f.State <= conntrack.SynSent2:
		return snat.SynSent + snat.State(f.State-conntrack.SynSent)
	default:
		return snat.Established
	}
}

// collectNAT counts the ports of source NAT in the candidates that track many flows, as far as the time
// goes, in the order of natOrder.
func (s *Scanner) collectNAT(v *netns.Visitor, candidates []candidate, deadline time.Time) {
	var busy, small []*candidate
	for i := range candidates {
		switch c := &candidates[i]; {
		case !c.known.natBusy || c.NAT.Outcome != "" || c.Name == "":
		case c.flows < smallFlows:
			small = append(small, c)
		default:
			busy = append(busy, c)
		}
	}
	for i, c := range takeNATTurns(small) {
		if i < maxSmall {
			busy = append(busy, c)
		} else {
			c.NAT.Result = failure(errLater)
		}
	}
	for _, c := range natOrder(busy, time.Until(deadline)) {
		start := time.Now()
		until := half(deadline)
		if expected := start.Add(2 * c.natTimeOfFlows()); until.Before(expected) {
			until = expected
		}
		if until.After(deadline) {
			until = deadline
		}
		if err := s.collectNATFrom(v, c, until); err != nil && !errors.Is(err, netns.ErrGone) {
			c.NAT.Result = failure(err)
		}
		if start.Before(deadline) {
			c.known.natTook = (c.natTime() + time.Since(start)) / 2 // a busy moment counts half
		}
	}
}

// natOrder orders namespaces for a scan that has some time left. First come those that are likely to take no more than their
// fair share of it, the fastest first. So a scan reads all of these, whatever the others track. The others take turns.
func natOrder(busy []*candidate, left time.Duration) []*candidate {
	slices.SortStableFunc(busy, func(a, b *candidate) int { return cmp.Compare(a.natTime(), b.natTime()) })
	fair := 0
	for fair < len(busy) && busy[fair].natTime() <= left/time.Duration(len(busy)-fair) {
		left -= busy[fair].natTime()
		fair++
	}
	return append(busy[:fair:fair], takeNATTurns(busy[fair:])...)
}

// takeNATTurns orders namespaces by takeTurns.
func takeNATTurns(busy []*candidate) []*candidate {
	return takeTurns(busy, func(c *candidate) int { return c.flows }, func(c *candidate) uint64 { return c.known.natCollected })
}

// natTime returns about how long it will take to read the flows of a namespace.
func (c *candidate) natTime() time.Duration { return max(c.known.natTook, c.natTimeOfFlows()) }

// natTimeOfFlows returns natTime without what the kernel's walk over the flows of the whole host takes.
func (c *candidate) natTimeOfFlows() time.Duration { return time.Duration(c.flows) * natFlowCost }

// collectNATFrom enters a namespace and counts its ports of source NAT.
func (s *Scanner) collectNATFrom(v *netns.Visitor, c *candidate, deadline time.Time) error {
	if !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	if cookie, err := v.Enter(c.found); err != nil {
		return err
	} else if cookie != c.cookie {
		return netns.ErrGone
	}
	c.known.natCollected = s.scans
	s.addConntrack(&c.Namespace, &c.known.counters)
	s.addNAT(&c.Namespace, &c.known.natDrops, deadline)
	return nil
}

// surveyNAT finds out whether the calling thread's namespace tracks many flows.
func (s *Scanner) surveyNAT(c *candidate) {
	flows, err := s.proc.ConntrackEntries()
	c.flows = flows // 0 with an error
	c.known.natBusy = flows*natIdleFactor >= snat.Settings{PortRanges: s.cfg.SNATPorts}.Ports()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.NAT.Result = failure(err)
	}
}

// manyFlows reports whether a namespace of the last scan tracked many flows.
func (s *Scanner) manyFlows() bool {
	for _, k := range s.known {
		if k.natBusy {
			return true
		}
	}
	return false
}

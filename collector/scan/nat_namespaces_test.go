//go:build linux

package scan

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/conntrack"
	"ephemeral_port_exporter/collector/conntrack/conntracktest"
	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
	"ephemeral_port_exporter/collector/snat/nattest"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
	"ephemeral_port_exporter/procfs"
)

// natNamespaces returns a Scanner for the namespaces that are mounted in a directory, and for the
// ports of source NAT in them. It logs to the buffer.
func natNamespaces(t *testing.T, dir string, ports pool.PortRange) (*Scanner, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	cfg := testConfig()
	cfg.Scope, cfg.NamespaceDirs = ScopeNamed, []string{dir}
	cfg.SNAT, cfg.SNATPorts = true, []pool.PortRange{ports}
	s := newScanner(t, cfg)
	s.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	return s, &log
}

// serverPort returns an address that differs in the port.
func serverPort(n int) netip.AddrPort {
	return netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), uint16(n))
}

// firstPorts returns n ports of a range.
func firstPorts(r pool.PortRange, n int) []uint16 {
	ports := make([]uint16, n)
	for i := range ports {
		ports[i] = r.Low + uint16(i)
	}
	return ports
}

// mountNAT mounts a namespace without sockets that has so many flows for each of some destinations.
func mountNAT(t *testing.T, path string, r pool.PortRange, flows ...int) {
	t.Helper()
	netnstest.Mount(t, path, func() {
		for i, n := range flows {
			fillNAT(t, firstPorts(r, n), serverPort(80+i))
		}
	})
}

// TestNATNamespaces has gateways without sockets, and namespaces with too few flows to matter. The flows
// of these are not read.
func TestNATNamespaces(t *testing.T) {
	netnstest.New(t)
	fillNAT(t, firstPorts(range64, 5), serverPort(80)) // our own flows are read, however few
	dir := t.TempDir()
	for name, flows := range map[string]int{"gateway": 60, "enough": 7, "few": 6, "none": 0} {
		mountNAT(t, filepath.Join(dir, name), range64, flows)
	}
	s, log := natNamespaces(t, dir, range64)
	dumps := 0
	s.dialNAT = func(buffer []byte) (*conntrack.Conn, error) {
		dumps++
		return conntrack.Dial(buffer)
	}
	found := byName(s)
	for name, want := range map[string]int{Self: 5, "gateway": 60, "enough": 7, "few": 0, "none": 0} {
		n := found[name]
		if name != Self && n.TCP.Outcome != Idle {
			t.Errorf("%s: outcome %q of a namespace without sockets, want %q", name, n.TCP.Outcome, Idle)
		}
		if want == 0 {
			if n.NAT.Outcome != "" || n.Conntrack.Outcome != "" {
				t.Errorf("%s: flows %+v, conntrack %+v, want none", name, n.NAT, n.Conntrack)
			}
			continue
		}
		if n.NAT.Outcome == "" || n.NAT.Err != nil || len(n.NAT.Report.Pools) != 1 || n.NAT.Report.Pools[0].Held != want {
			t.Errorf("%s: got %+v, want a pool with %d ports", name, n.NAT, want)
		}
		if n.Conntrack.Outcome != Collected || n.Conntrack.Entries != want {
			t.Errorf("%s: conntrack %+v, want %d entries", name, n.Conntrack, want)
		}
	}
	if dumps != 3 || log.Len() > 0 {
		t.Errorf("%d dumps, want one for each that has flows; log %s", dumps, log)
	}
	for name, n := range byName(namedScanner(t, dir)) {
		if n.NAT.Outcome != "" {
			t.Errorf("%s: flows without being asked for", name)
		}
	}
}

// TestNATNamespacesSmall reads some of many namespaces with few flows in each scan, all of them in
// turn, and beside them always one that has many. That others wait is no failure to log.
func TestNATNamespacesSmall(t *testing.T) {
	netnstest.Cookies(t)
	const small = 4*maxSmall + 3
	dir := t.TempDir()
	for i := range small {
		mountNAT(t, filepath.Join(dir, fmt.Sprint(i)), range100, 10)
	}
	mountNAT(t, filepath.Join(dir, "large"), range100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100)
	s, log := natNamespaces(t, dir, range100)
	read := map[string]int{}
	const scans = 10 // half of the turns are for the same ones, as all have as many flows
	for scan := range scans {
		n := 0
		for _, ns := range s.Scan(t.Context()).Namespaces[1:] {
			switch {
			case ns.NAT.Outcome == "":
				t.Errorf("scan %d: nothing is said of %s", scan, ns.Name)
			case ns.NAT.Err == nil:
				read[ns.Name]++
				n++
			case !errors.Is(ns.NAT.Err, errLater):
				t.Errorf("scan %d: %s: %v", scan, ns.Name, ns.NAT.Err)
			}
		}
		if n != maxSmall+1 {
			t.Errorf("scan %d: %d read, want %d small ones and the large one", scan, n, maxSmall)
		}
	}
	if read["large"] != scans || len(read) != small+1 {
		t.Errorf("the large one was read in %d of %d scans, and %d of %d others", read["large"], scans, len(read)-1, small)
	}
	if log.Len() > 0 {
		t.Errorf("log: %s", log)
	}

	// A failure is logged once, also of one that waits between two failures.
	s.dialNAT = func([]byte) (*conntrack.Conn, error) { return nil, unix.EIO }
	for range 2 * scans {
		s.Scan(t.Context())
	}
	if got := strings.Count(log.String(), "\n"); got != small+1 {
		t.Errorf("%d failures logged, want one for each of %d namespaces", got, small+1)
	}
}

// TestNATNamespacesLimit enters a gateway in each scan, however many other namespaces there are.
func TestNATNamespacesLimit(t *testing.T) {
	netnstest.Cookies(t)
	dir := t.TempDir()
	for i := range 10 {
		netnstest.Mount(t, filepath.Join(dir, fmt.Sprint(i)), nil)
	}
	s, _ := natNamespaces(t, dir, range100)
	s.cfg.NamespaceLimit = 4
	s.Scan(t.Context())
	mountNAT(t, filepath.Join(dir, "zgateway"), range100, 60)
	seen := 0
	for scan := range 8 {
		n := byName(s)["zgateway"]
		read := n.NAT.Outcome == Collected
		if read && n.TCP.Outcome == Skipped {
			t.Errorf("scan %d: entered beyond the limit", scan)
		}
		if seen > 0 && !read {
			t.Errorf("scan %d: not read, but before: %+v", scan, n)
		}
		if read {
			seen++
		}
	}
	if seen < 4 {
		t.Errorf("the gateway was read in %d of 8 scans", seen)
	}
	s.cfg.NamespaceLimit = 0 // so that it waits
	if n := byName(s)["zgateway"]; n.TCP.Outcome != Skipped || n.NAT.Outcome == "" || !errors.Is(n.NAT.Err, errLater) {
		t.Errorf("a gateway beyond the limit: got %+v", n)
	}
}

// TestNATNamespacesFairness has a gateway with a pool that is nearly full, beside a tenant with many that
// hold more ports in all. No limit hides it.
func TestNATNamespacesFairness(t *testing.T) {
	dir := t.TempDir()
	tenant := make([]int, 20)
	for i := range tenant {
		tenant[i] = 60
	}
	mountNAT(t, filepath.Join(dir, "tenant"), range100, tenant...)
	mountNAT(t, filepath.Join(dir, "victim"), range100, 50, 40)
	s, _ := natNamespaces(t, dir, range100)
	for _, most := range []int{1, 3, 22} {
		s.cfg.Limits.Most = most
		found := byName(s)
		v, other := found["victim"].NAT.Report, found["tenant"].NAT.Report
		if len(v.Pools) == 0 || v.Pools[0].Held != 50 {
			t.Errorf("limit %d: the victim's worst pool is not reported: %+v", most, v.Pools)
		}
		// Each keeps its worst, whatever the limit is.
		if got, want := len(v.Pools)+len(other.Pools), max(most, 2); got != want || got+v.UnreportedPools+other.UnreportedPools != 22 {
			t.Errorf("limit %d: %d pools reported, %d and %d not, want %d of 22", most, got, v.UnreportedPools, other.UnreportedPools, want)
		}
	}
}

// natOf returns what is known of the flows of each namespace, in words.
func natOf(snapshot Snapshot) map[string]string {
	m := map[string]string{}
	for _, n := range snapshot.Namespaces {
		switch {
		case n.NAT.Outcome == "":
			m[n.Name] = "nothing"
		case errors.Is(n.NAT.Err, os.ErrDeadlineExceeded):
			m[n.Name] = "deadline"
		case n.NAT.Err != nil:
			m[n.Name] = "failed"
		default:
			m[n.Name] = "read"
		}
	}
	return m
}

// inNamespace returns the name of the namespace in which the calling thread is, of a directory.
func inNamespace(t *testing.T, dir string) string {
	t.Helper()
	own := inodeOf(t, "/proc/thread-self/ns/net")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if inodeOf(t, filepath.Join(dir, e.Name())) == own {
			return e.Name()
		}
	}
	return Self
}

// TestNATNamespacesFailure checks that a failure in one namespace is logged once and does not affect the
// others, and that none can take all of the time.
func TestNATNamespacesFailure(t *testing.T) {
	netnstest.Cookies(t)
	dir := t.TempDir()
	for name, flows := range map[string]int{"broken": 30, "well": 20, "zslow": 60} {
		mountNAT(t, filepath.Join(dir, name), range100, flows)
	}
	s, log := natNamespaces(t, dir, range100)
	s.cfg.Timeout = 4 * time.Second // the slow one takes half of what is for other namespaces
	var order []string
	s.dialNAT = func(buffer []byte) (*conntrack.Conn, error) {
		name := inNamespace(t, dir)
		order = append(order, name)
		switch name {
		case "broken":
			return nil, unix.EIO
		case "zslow":
			return silentNAT(buffer)
		}
		return conntrack.Dial(buffer)
	}
	want := map[string]string{Self: "nothing", "broken": "failed", "zslow": "deadline", "well": "read"}
	for scan := range 2 {
		log.Reset()
		order = nil
		if diff := cmp.Diff(want, natOf(s.Scan(t.Context()))); diff != "" {
			t.Errorf("scan %d: flows (-want +got):\n%s", scan, diff)
		}
		if len(order) != 3 || order[2] != "zslow" {
			t.Errorf("scan %d: order %v, want the one that takes longest last", scan, order)
		}
		got := log.String()
		if scan == 0 && (strings.Count(got, "\n") != 1 || !strings.Contains(got, "netns=broken")) {
			t.Errorf("log: got %q, want one line about broken", got)
		}
		if scan > 0 && got != "" {
			t.Errorf("log of what is known: %s", got)
		}
	}
	s.cfg.Timeout = time.Nanosecond
	for name, got := range natOf(s.Scan(t.Context())) {
		if name != Self && got != "deadline" {
			t.Errorf("%s: %s in no time", name, got)
		}
	}
}

// silentNAT connects to a kernel that does not answer.
func silentNAT(buffer []byte) (*conntrack.Conn, error) {
	fd, err := sockdiagtest.Dial(func(sockdiagtest.Request) [][]byte { return nil })
	if err != nil {
		return nil, err
	}
	return conntrack.NewConn(fd, buffer), nil
}

// TestNATNamespacesStarved starves flows by sockets that take all of their time, and the reverse: each
// must have some left.
func TestNATNamespacesStarved(t *testing.T) {
	for _, starved := range []string{"flows", "sockets"} {
		t.Run(starved, func(t *testing.T) {
			t.Parallel()
			netnstest.New(t)
			fillNAT(t, firstPorts(range100, 20), serverPort(80))
			dir := t.TempDir()
			const others = 12 // each may take half of the time that is left for sockets
			for i := range others {
				netnstest.Mount(t, filepath.Join(dir, fmt.Sprint(i)), func() {
					netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
					clientTo("198.51.100.1", "198.51.100.7:80").Hold(t, smallSockets)
					if i < maxSmall {
						fillNAT(t, firstPorts(range100, 20), serverPort(80))
					}
				})
			}
			s, _ := natNamespaces(t, dir, range100)
			s.cfg.Timeout = 10 * time.Second
			if starved == "flows" {
				s.dial = func(buffer []byte) (*sockdiag.Conn, error) {
					fd, err := sockdiagtest.Dial(func(sockdiagtest.Request) [][]byte { return nil })
					if err != nil {
						return nil, err
					}
					return sockdiag.NewConn(fd, buffer), nil
				}
			} else {
				s.dialNAT = silentNAT
			}
			snapshot := s.Scan(t.Context())
			sockets, flows := map[Outcome]int{}, map[string]int{}
			for _, n := range snapshot.Namespaces {
				sockets[n.TCP.Outcome]++
			}
			for _, what := range natOf(snapshot) {
				flows[what]++
			}
			wantSockets, wantFlows := map[Outcome]int{Deadline: 1 + others}, map[string]int{"read": 1 + maxSmall, "nothing": others - maxSmall}
			if starved == "sockets" {
				wantSockets, wantFlows = map[Outcome]int{Collected: 1 + others}, map[string]int{"deadline": 1 + maxSmall, "nothing": others - maxSmall}
			}
			if diff := cmp.Diff(wantSockets, sockets); diff != "" {
				t.Errorf("sockets of namespaces (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(wantFlows, flows); diff != "" {
				t.Errorf("flows of namespaces (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNATOrder has a tenant with more namespaces than there is time for, each of which takes a second. Those that take less
// than their share of the time are read in each scan. Of the others, the largest is, and the rest take turns.
func TestNATOrder(t *testing.T) {
	const (
		scans = 40
		time4 = 4 * time.Second // of each
		walk  = 200 * time.Millisecond
	)
	for _, tt := range []struct {
		name    string
		victims int // namespaces
		comes   func(scan int) bool
		anew    bool // the tenant makes its namespaces anew for each scan
		largest int  // flows of one more victim
	}{
		{"always", 8, func(int) bool { return true }, false, 0},
		{"every second scan", 8, func(scan int) bool { return scan%2 == 0 }, false, 0},
		{"anew", 8, func(int) bool { return true }, true, 0},
		{"late", 8, func(scan int) bool { return scan > 10 }, false, 0},
		{"the largest", 2, func(int) bool { return true }, false, 300_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			candidateOf := func(name string, flows int) *candidate {
				return &candidate{Namespace: Namespace{Name: name}, flows: flows, known: &knownNamespace{}}
			}
			var victims, tenants []*candidate
			for i := range tt.victims {
				victims = append(victims, candidateOf("victim", 1500+100*i))
			}
			if tt.largest > 0 {
				victims = append(victims, candidateOf("victim", tt.largest))
			}
			for range 8 {
				tenants = append(tenants, candidateOf("tenant", 260_000))
			}
			came, read := 0, 0
			for scan := range scans {
				busy := slices.Clone(victims)
				if tt.comes(scan) {
					came++
					busy = append(busy, tenants...)
				}
				left := time4
				for _, c := range natOrder(busy, left) {
					cost := walk + c.natTimeOfFlows()
					switch {
					case cost <= left && c.Name == "tenant":
						read++
					case cost > left && c.Name == "victim":
						t.Fatalf("scan %d: no time for a victim", scan)
					}
					if left > 0 {
						c.known.natTook = (c.natTime() + min(cost, left)) / 2
					}
					c.known.natCollected = uint64(scan + 1)
					left -= min(cost, left)
				}
				for _, c := range tenants {
					if tt.anew {
						c.known = &knownNamespace{}
					} else if scan == scans-1 && c.known.natCollected == 0 {
						t.Error("one of the tenant's namespaces had no turn")
					}
				}
			}
			if read < came {
				t.Errorf("%d of the tenant's namespaces were read in %d scans", read, came)
			}
		})
	}
}

// TestNATNamespacesReplaced replaces a namespace, after the survey, by another one with the same inode. Its
// flows must not be read.
func TestNATNamespacesReplaced(t *testing.T) {
	dir := t.TempDir()
	mountNAT(t, filepath.Join(dir, "ns"), range100, 20)
	s, _ := natNamespaces(t, dir, range100)
	found, err := netns.Mounted(dir)
	if err != nil || len(found) != 1 {
		t.Fatalf("found %v, %v", found, err)
	}
	c := candidate{Namespace: Namespace{Name: "ns"}, found: found[0]}
	deadline := time.Now().Add(time.Minute)
	err = netns.Visit("/proc", func(v *netns.Visitor) error {
		if err := s.survey(v, &c, deadline); err != nil || !c.known.natBusy || c.flows != 20 {
			t.Errorf("survey: %+v, %v", c, err)
		}
		c.cookie++
		candidates := []candidate{c}
		s.collectNAT(v, candidates, deadline)
		if got := candidates[0]; got.NAT.Outcome != "" || got.Conntrack.Outcome != "" || got.known.natCollected != 0 {
			t.Errorf("read flows of another namespace: %+v", got)
		}
		c.cookie--
		candidates[0] = c
		candidates[0].Name = ""
		if s.collectNAT(v, candidates, deadline); candidates[0].NAT.Outcome != "" {
			t.Error("read flows of a namespace without a label")
		}
		candidates[0] = c
		if s.collectNAT(v, candidates, time.Now()); candidates[0].NAT.Outcome == "" || !errors.Is(candidates[0].NAT.Err, os.ErrDeadlineExceeded) {
			t.Errorf("without time: got %+v", candidates[0].NAT)
		}
		return s.collectNATFrom(v, &c, deadline)
	})
	if err != nil || c.NAT.Outcome == "" || c.NAT.Err != nil {
		t.Errorf("read flows: %+v, %v", c.NAT, err)
	}
}

// TestNATNamespacesSurvey checks what a survey says where the number of flows cannot be read.
func TestNATNamespacesSurvey(t *testing.T) {
	proc := natProc(t)
	s := newFakeHost(t, proc).Scanner
	survey := func() candidate {
		c := candidate{known: &knownNamespace{natBusy: true}}
		s.surveyNAT(&c)
		return c
	}
	if c := survey(); c.NAT.Outcome != "" || !c.known.natBusy || c.flows != 7 {
		t.Errorf("7 flows: got %+v, %+v", c.NAT, c.known)
	}
	writeProc(t, proc, "thread-self/net/stat/nf_conntrack", "entries\nmany\n")
	if c := survey(); c.NAT.Outcome == "" || c.NAT.Err == nil || c.known.natBusy {
		t.Errorf("bad number: got %+v, %+v, want an error", c.NAT, c.known)
	}
	s.proc = procfs.NewFS(fixedProc(t))
	if c := survey(); c.NAT.Outcome != "" || c.known.natBusy {
		t.Errorf("no connection tracking: got %+v, %+v", c.NAT, c.known)
	}
}

// TestNATAttack has a tenant with 50,000 pools, and one whose pool has many clients. Neither hides who
// fills a third pool, and the report stays small.
func TestNATAttack(t *testing.T) {
	netnstest.New(t)
	const pools = 50_000
	host := func(n int) netip.Addr { return nattest.Host(nattest.Clients4, n) }
	table := conntracktest.Open(t)
	create := func(n int, flow func(i int) (client netip.Addr, port uint16, to netip.AddrPort)) {
		t.Helper()
		err := table.Create(n, func(i int) conntracktest.Flow {
			client, port, to := flow(i)
			f := natFlow(0, port, to)
			f.Original.Source = netip.AddrPortFrom(client, uint16(1024+i))
			f.Reply.Destination = netip.AddrPortFrom(nattest.Gateway4, port)
			return f
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	create(pools, func(i int) (netip.Addr, uint16, netip.AddrPort) {
		return host(1), 40000, netip.AddrPortFrom(nattest.Host(nattest.Servers4, 1+i), 443)
	})
	create(700, func(i int) (netip.Addr, uint16, netip.AddrPort) { // 300 of host 2, and one of each other
		return host(2 + max(0, i-299)), uint16(40000 + i), serverPort(444)
	})
	create(900, func(i int) (netip.Addr, uint16, netip.AddrPort) { // 850 of host 1000
		return host(1000 + max(0, i-849)), uint16(40000 + i), serverPort(445)
	})

	s := natScanner(t, range1000)
	s.cfg.Limits = pool.Limits{MinPorts: 1, Most: 256}
	scanNAT(t, s)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r, _ := scanNAT(t, s)
	runtime.ReadMemStats(&after)
	allocated := (after.TotalAlloc - before.TotalAlloc) / pools
	runtime.GC()
	runtime.ReadMemStats(&after)
	kept := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d bytes allocated for a flow, %d bytes kept", allocated, kept)
	if allocated > 4<<10 || kept > 1<<20 {
		t.Errorf("%d bytes allocated for a flow, %d bytes kept", allocated, kept)
	}
	if len(r.Pools) != 256 || len(r.Others) != 20 || r.UnreportedPools != pools+2-256 || r.UnreportedPorts != pools-254 {
		t.Errorf("%d pools reported, %d with %d ports not", len(r.Pools), r.UnreportedPools, r.UnreportedPorts)
	}
	for i, want := range []snat.Client{{Address: host(1000), Ports: 850}, {Address: host(2), Ports: 300}} {
		p := r.Pools[i]
		if p.Address != serverPort(445-i) || len(p.Clients) != snat.MaxClients || p.Clients[0] != want {
			t.Errorf("pool %d: to %v of %v, want %v first", i, p.Address, p.Clients, want)
		}
	}
}

// TestNATFloodIPv6 has a client whose flows each come from another address of its prefix. They fill more pools than the limit.
// The pools of a client of another prefix, and of one with an IPv4 address, stay in the report.
func TestNATFloodIPv6(t *testing.T) {
	netnstest.New(t)
	const pools = 300
	table := conntracktest.Open(t)
	create := func(clients netip.Prefix, first, n int, port uint16) {
		t.Helper()
		err := table.Create(n*range64.Size(), func(i int) conntracktest.Flow {
			f := natFlow(0, 0, netip.AddrPort{})
			f.Protocol, f.Status = unix.IPPROTO_UDP, 0
			f.Original.Source = netip.AddrPortFrom(nattest.Host(clients, first+i), 20000)
			f.Original.Destination = netip.AddrPortFrom(nattest.Host(nattest.Servers6, i/range64.Size()), port)
			f.Reply = f.Original.Reverse()
			f.Reply.Destination = netip.AddrPortFrom(nattest.Gateway6, range64.Low+uint16(i%range64.Size()))
			return f
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	create(nattest.Clients6, 0, pools, 1)
	create(netip.MustParsePrefix("fd05::/64"), 0, 1, 443)
	fillNAT(t, firstPorts(range64, 20), serverPort(80))
	s := natScanner(t, range64)
	s.cfg.Limits = pool.Limits{MinPorts: 10, Most: 16}
	r, _ := scanNAT(t, s)
	if r.Flows != (pools+1)*range64.Size()+20 || r.UnreportedPools != pools+2-16 || len(r.Pools) != 16 {
		t.Errorf("%d flows, %d pools, and %d not reported", r.Flows, len(r.Pools), r.UnreportedPools)
	}
	for _, want := range []netip.AddrPort{netip.AddrPortFrom(nattest.Host(nattest.Servers6, 0), 443), serverPort(80)} {
		if !slices.ContainsFunc(r.Pools, func(p snat.Pool) bool { return p.Address == want }) {
			t.Errorf("the pool to %v is not reported", want)
		}
	}
}

// TestNATChurn scans while flows come and go as fast as they can. Those that stay are all counted.
func TestNATChurn(t *testing.T) {
	netnstest.New(t)
	const stay, churn, scans = 600, 2000, 30
	to := serverPort(80)
	fillNAT(t, firstPorts(range1000, stay), to)
	table := conntracktest.Open(t)
	var (
		stop    atomic.Bool
		changes atomic.Int64
	)
	stopped := make(chan error)
	go func() {
		flow := func(i int) conntracktest.Flow { return natFlow(1000+i, uint16(40000+i%1000), serverPort(81+i/1000)) }
		var err error
		for !stop.Load() && err == nil {
			if err = table.Create(churn, flow); err == nil {
				err = table.Delete(churn, flow)
			}
			changes.Add(2 * churn)
		}
		stopped <- err
	}()
	s := natScanner(t, range1000)
	for range scans {
		r, _ := scanNAT(t, s)
		p, _ := natPoolOf(r, snat.TCP, nattest.Gateway4, to)
		// The kernel may repeat flows, where one ends at the border of two datagrams.
		if p.Held < stay || p.Held > stay+stay/10 || r.MaxUtilization > 1 {
			t.Errorf("%d ports held of %d, greatest utilization %v", p.Held, stay, r.MaxUtilization)
		}
	}
	waitUntil(t, "flows to come and go", func() bool { return changes.Load() >= 4*churn })
	stop.Store(true)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}

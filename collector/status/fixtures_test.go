package status

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

var testInfo = Info{Host: "proxy-1", Version: "1.2.3", Revision: "abc", MetricsPath: "/metrics"}

// read is the Result of what was read.
var read = scan.Result{Outcome: scan.Collected}

// timeWait returns what the kernel counts of so many sockets.
func timeWait(sockets int) scan.TimeWait {
	return scan.TimeWait{Result: read, Sockets: sockets, Limit: 131072}
}

// at is the time of all snapshots.
var at = time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)

// defaults returns the report of a namespace with default settings and no destinations.
func defaults() pool.Report {
	return pool.Report{
		Settings: pool.Settings{
			PortRange: pool.PortRange{Low: 32768, High: 60999}, TWReuse: 2, TWReuseDelay: time.Second, Timestamps: 1,
			FinTimeout: time.Minute, TimeWaitLength: time.Minute,
		},
		ReservedPorts: 10, BlockedPorts: 2, CapacityPorts: 28220, BoundKnown: true, BoundExact: true, BoundPorts: 120, UDPServersKnown: true,
	}
}

// ports returns the counts of these states.
func ports(states map[tcpstate.State]int) (counts [len(pool.States)]int) {
	for i, s := range pool.States {
		counts[i] = states[s]
	}
	return counts
}

// connections returns a destination of the default capacity.
func connections(source, address string, states map[tcpstate.State]int) pool.Destination {
	d := pool.Destination{
		Source: netip.MustParseAddr(source), Address: netip.MustParseAddrPort(address), Ports: ports(states),
		Ceiling: 450, Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1), BoundByOthers: 120,
	}
	for i, n := range d.Ports {
		d.Held += n
		if pool.States[i] != tcpstate.TimeWait {
			d.Open += n
		}
	}
	d.Hold = float64(28220-d.BoundByOthers-d.Open) / d.Ceiling
	d.Utilization = float64(d.Held+d.BoundByOthers) / 28220
	return d
}

// snapshots returns the snapshots that all formats are tested with, by name.
func snapshots() map[string]scan.Snapshot {
	return map[string]scan.Snapshot{
		"trouble": trouble(), "calm": quiet(), "failed": failedHost(), "destinations": manyDestinations(), "namespaces": manyNamespaces(), "hostile": hostile(),
	}
}

func hostOf(r pool.Report) scan.Snapshot {
	return scan.Snapshot{Time: at, Namespaces: []scan.Namespace{{Name: scan.Self, TCP: scan.TCP{Result: read, Report: r, Duration: 12 * time.Millisecond}, TimeWait: timeWait(41234)}}}
}

// trouble is a host where nearly everything goes wrong.
func trouble() scan.Snapshot {
	r := defaults()
	soonFull := connections("10.0.0.1", "10.0.0.2:443", map[tcpstate.State]int{tcpstate.TimeWait: 22000, tcpstate.Established: 900, tcpstate.FinWait2: 60})
	soonFull.CloseRate, soonFull.Exhaustion, soonFull.SureExhaustion = 560, 33.3, 40.4
	full := connections("10.0.0.1", "10.0.0.9:8080", map[tcpstate.State]int{tcpstate.CloseWait: 25000, tcpstate.SynSent: 100, tcpstate.Established: 3000})
	full.Utilization, full.Exhaustion, full.SureExhaustion, full.Ceiling, full.Hold = 1, 0, 0, 0, 62
	half := connections("2001:db8:1234:5678:9abc:def0:1234:5678", "[2001:db8:1234:5678:9abc:def0:1234:9999]:65535", map[tcpstate.State]int{tcpstate.SynSent: 15000})
	reused := connections("10.0.0.1", "10.0.0.3:5432", map[tcpstate.State]int{tcpstate.TimeWait: 9000, tcpstate.Established: 40})
	reused.Reusable, reused.Utilization, reused.CloseRate, reused.Ceiling, reused.Hold, reused.Timestamps = 8700, 0.016, 300, 28000, 1, pool.Yes
	failedOnce := connections("10.0.0.1", "10.0.0.4:80", map[tcpstate.State]int{tcpstate.Established: 12})
	r.Destinations = []pool.Destination{full, soonFull, half, reused, failedOnce}
	r.MaxUtilization = 1
	r.Sources = []pool.Source{{Address: netip.MustParseAddr("10.0.0.77"), Ports: 25000, Bound: 24990, Capacity: 28222, Utilization: 0.885}}
	r.BoundUnknown = 900
	r.UnreportedDestinations, r.UnreportedPorts, r.UnreportedSources = 12, ports(map[tcpstate.State]int{tcpstate.Established: 40, tcpstate.TimeWait: 8}), 1
	s := hostOf(r)
	s.Namespaces[0].Inode = 4026531840
	s.Namespaces[0].UDP = udpOf(26000, 40)
	s.Namespaces[0].NAT, s.Namespaces[0].Conntrack = troubledNAT()
	s.Namespaces[0].TimeWait = scan.TimeWait{Result: read, Sockets: 130992, Limit: 131072, Overflows: 1520, Recent: 970, Window: 10 * time.Second}
	s.OthersRead = true

	pod := defaults()
	inPod := connections("10.1.0.7", "10.0.0.2:443", map[tcpstate.State]int{tcpstate.TimeWait: 23000})
	inPod.CloseRate, inPod.Timestamps = 380, pool.No
	pod.Destinations, pod.MaxUtilization = []pool.Destination{inPod}, inPod.Utilization
	s.Namespaces = append(s.Namespaces,
		scan.Namespace{
			Name: "cni-1f2e", Inode: 4026532999, Path: "/run/netns/cni-1f2e", TCP: scan.TCP{Result: read, Report: pod}, TimeWait: scan.TimeWait{Result: read, Sockets: 23000, Limit: 32768, Overflows: 9},
			UDP:      udpOf(28222, 0),
			Workload: scan.Workload{Workload: cgroup.Workload{PodUID: "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", Pod: "shop/cart-7d4b9c6f5-x2k8p", ContainerID: strings.Repeat("9b1c7a0d", 8)}, Command: "haproxy"},
		},
		scan.Namespace{Name: "netns-77", Inode: 4026533001, Path: "/proc/77/ns/net", TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}, TimeWait: timeWait(3)},
		scan.Namespace{Name: "netns-78", Inode: 4026533002, TCP: scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: errors.New("netns: open /proc/78/ns/net: permission denied")}}},
		scan.Namespace{TCP: scan.TCP{Result: scan.Result{Outcome: scan.Skipped}}},
	)
	s.Trace = &scan.Trace{
		Pools: []scan.FailedPool{
			{Source: full.Source, Destination: full.Address, Failures: 120345, Recent: 9000, Cgroup: cgroup.Group{Path: "/system.slice/haproxy.service"}, Last: scan.Process{Command: "haproxy", PID: 612}},
			{Source: failedOnce.Source, Destination: failedOnce.Address, Failures: 1, Cgroup: cgroup.Group{Path: "/"}},
			{
				Cgroup: cgroup.Group{Path: "/kubepods.slice/worker.scope", Workload: cgroup.Workload{PodUID: "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", Pod: "shop/cart-7d4b9c6f5-x2k8p", ContainerID: strings.Repeat("9b1c7a0d", 8)}},
				Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.55:9"), Failures: 3,
			},
		},
		Unattributed: 17,
		BindsCounted: true, BindsUnattributed: 5,
		Binds: []scan.FailedBind{
			{Source: netip.MustParseAddr("0.0.0.0"), UDP: true, Failures: 2, Cgroup: cgroup.Group{Path: "/system.slice/unbound.service"}, Last: scan.Process{Command: "unbound", PID: 611}},
			{Netns: "cni-1f2e", Source: netip.MustParseAddr("10.0.0.1"), Failures: 34567, Cgroup: cgroup.Group{Path: "/kubepods.slice/worker.scope", Workload: cgroup.Workload{PodUID: "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", Pod: "shop/cart-7d4b9c6f5-x2k8p", ContainerID: strings.Repeat("9b1c7a0d", 8)}}},
		},
		ClosesCounted: true, ClosesUnattributed: 41, Window: 63 * time.Second,
		Closes: []scan.ClosedPool{
			{
				Netns: scan.Self, Cgroup: cgroup.Group{Path: "/system.slice/report\x2djob.service"}, Source: soonFull.Source, Destination: soonFull.Address,
				Closes: 84000, Recent: 21400, Last: scan.Process{Command: "curl\x1b", PID: 4242},
			},
			{
				Netns: scan.Self, Cgroup: cgroup.Group{Path: "/system.slice/haproxy.service"}, Source: soonFull.Source, Destination: soonFull.Address,
				Closes: 300, Recent: 660, Last: scan.Process{Command: "haproxy", PID: 812},
			},
		},
	}
	return s
}

// udpOf returns what a scan learned of so many UDP sockets with a peer over IPv4 and over IPv6, in a
// namespace with default settings and 10 reserved ports, and of a server outside of the range.
func udpOf(ipv4, ipv6 int) scan.UDP {
	settings := defaults().Settings
	settings.ReservedPorts = []pool.PortRange{{Low: 32768, High: 32777}}
	table := pool.NewUDPTable(settings)
	table.Add(&pool.UDPSocket{Local: netip.MustParseAddrPort("0.0.0.0:5353"), Cgroup: 7})
	for i := range ipv4 + ipv6 {
		socket := pool.UDPSocket{Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(32778+i)), Connected: true, Cgroup: 7}
		if i >= ipv4 {
			socket.Local = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), socket.Local.Port())
		}
		table.Add(&socket)
	}
	r := table.Report()
	r.ListenersKnown = true
	return scan.UDP{Result: read, Sockets: ipv4 + ipv6 + 1, Report: r}
}

// quiet is a host without any danger.
func quiet() scan.Snapshot {
	r := defaults()
	a := connections("10.0.0.1", "10.0.0.2:443", map[tcpstate.State]int{tcpstate.TimeWait: 3000, tcpstate.Established: 200})
	a.CloseRate = 48.2
	b := connections("10.0.0.1", "10.0.0.3:5432", map[tcpstate.State]int{tcpstate.Established: 64})
	r.Destinations = []pool.Destination{a, b}
	r.MaxUtilization = a.Utilization
	return hostOf(r)
}

// allBound is a host where clients of one address have bound all ports.
func allBound() scan.Snapshot {
	r := defaults()
	d := connections("10.0.0.77", "10.0.0.2:443", map[tcpstate.State]int{tcpstate.Established: 28220})
	d.BoundByOthers, d.Utilization, d.Exhaustion, d.SureExhaustion, d.Ceiling = 0, 1, 0, 0, 0
	r.Destinations, r.MaxUtilization, r.BoundPorts = []pool.Destination{d}, 1, 28220
	r.BoundOwners = []pool.Owner{{Cgroup: 7, Ports: 28220}}
	r.Sources = []pool.Source{{Address: netip.MustParseAddr("10.0.0.1"), Ports: 3, Capacity: 28222}, {Address: d.Source, Ports: 28220, Bound: 28220, Capacity: 28220}}
	s := hostOf(r)
	s.Cgroups = map[uint64]cgroup.Group{7: {Path: "/system.slice/squid.service"}}
	return s
}

// failedHost is a host whose sockets cannot be read.
func failedHost() scan.Snapshot {
	return scan.Snapshot{Time: at, Namespaces: []scan.Namespace{{
		Name: scan.Self, TCP: scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: errors.New("sockdiag: dump tcp: not supported: tcp_diag is not loaded (no such file or directory): run modprobe tcp_diag")}},
	}}}
}

// manyDestinations has as many as the default limit.
func manyDestinations() scan.Snapshot {
	r := defaults()
	for i := range 256 {
		r.Destinations = append(r.Destinations, connections("10.0.0.1", fmt.Sprintf("10.2.%d.%d:443", i/16, i%16), map[tcpstate.State]int{
			tcpstate.TimeWait: 20000 - 70*i, tcpstate.Established: 50 + i, tcpstate.CloseWait: i, tcpstate.FinWait1: i % 3,
		}))
	}
	r.MaxUtilization = r.Destinations[0].Utilization
	return hostOf(r)
}

// manyNamespaces has 300, of which 100 are busy.
func manyNamespaces() scan.Snapshot {
	s := manyDestinations()
	s.OthersRead = true
	all := s.Namespaces[0].TCP.Report.Destinations
	s.Namespaces[0].TCP.Report.Destinations = all[:56]
	for i := range 299 {
		n := scan.Namespace{
			Name: fmt.Sprintf("cni-%08x-%04x", 0x1f2e3d4c+i, i), Inode: uint64(4026532000 + i), TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}, TimeWait: timeWait(i),
			Workload: scan.Workload{Workload: cgroup.Workload{PodUID: fmt.Sprintf("3f8e1c2a-5b6d-4e7f-8a9b-%012d", i)}, Command: "worker"},
		}
		n.Path = "/run/netns/" + n.Name
		switch {
		case i < 100:
			n.TCP.Outcome, n.TCP.Report = scan.Collected, defaults()
			n.TCP.Report.Destinations = all[56+2*i : 58+2*i]
			n.TCP.Report.MaxUtilization = all[56+2*i].Utilization
		case i < 110:
			n.TCP.Outcome, n.TCP.Err = scan.Deadline, errors.New("sockdiag: dump tcp: i/o timeout")
		}
		s.Namespaces = append(s.Namespaces, n)
	}
	return s
}

// The hostile names that a user of the host can choose.
const (
	hostileHTML = `</style></script><script>alert(1)</script><img src=x onerror=alert(1)>"'&amp;`
	hostileANSI = "\x1b[2J\x1b]0;owned\x07red\x1b[31m\x9b31m"
	hostileBidi = "\u202egnp.exe\u2066\u200b\u00ad"
)

// hostile has names that try to leave their place.
func hostile() scan.Snapshot {
	s := quiet()
	s.OthersRead = true
	for i, name := range []string{hostileHTML, hostileANSI, hostileBidi, "line\nbreak\r\n\t\u2028end", strings.Repeat("long", 1000), "zalgo" + strings.Repeat("\u0301\u0489", 50), "$(reboot);`reboot`'\\", "\xff\xfe", "日本語の名前"} {
		r := defaults()
		r.Destinations = []pool.Destination{connections("10.0.0.1", fmt.Sprintf("10.3.0.%d:443", i), map[tcpstate.State]int{tcpstate.Established: 20000})}
		r.MaxUtilization = r.Destinations[0].Utilization
		s.Namespaces = append(s.Namespaces, scan.Namespace{
			Name: name, Inode: uint64(100 + i), Path: "/run/netns/" + name, TCP: scan.TCP{Result: read, Report: r}, UDP: udpOf(25000, 0),
			NAT: natOf(natFlows{snat.Established, false, fmt.Sprintf("10.4.0.%d:443", i), 1024, 52000}), Conntrack: scan.Conntrack{Result: read, Entries: 95, Limit: 100},
			Workload: scan.Workload{Command: name, Workload: cgroup.Workload{PodUID: name, Pod: name}},
		}, scan.Namespace{Name: "failed " + name, Inode: uint64(200 + i), TCP: scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: errors.New("open " + name + ": failed")}}})
	}
	return s
}

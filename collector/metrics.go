package collector

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// descs are the descriptions of all metrics.
type descs struct {
	rangeLow, rangeHigh, reservedPorts, blockedPorts, capacityPorts, boundPorts, boundUnknownPorts, maxUtilization, maxPossibleUtilization *prometheus.Desc

	tcpTWReuse, tcpTimestamps, tcpTWReuseDelay, tcpFinTimeout                *prometheus.Desc
	timeWaitLength, timeWaitSockets, timeWaitLimitSockets, timeWaitOverflows *prometheus.Desc

	destinationPorts, destinationReusablePorts, destinationUtilization                                             *prometheus.Desc
	destinationReusableUnknownPorts                                                                                *prometheus.Desc
	destinationCeiling, destinationCloses, destinationExhaustion, destinationSureExhaustion, destinationTimestamps *prometheus.Desc
	destinationOwnerPorts                                                                                          *prometheus.Desc

	sourcePorts, sourceBoundPorts, sourceUtilization *prometheus.Desc

	unreportedDestinations, unreportedPorts, unreportedSources *prometheus.Desc

	collectSuccess, collectDuration, collectSockets *prometheus.Desc

	netnsInfo, namespaces, discoveryFailures *prometheus.Desc

	connectFailures, connectFailuresUnattributed, connectFailuresExpired *prometheus.Desc
	closes, closesUnattributed, closesExpired                            *prometheus.Desc
	traceTable, traceMissed, traceSuccess                                *prometheus.Desc
	bindFailures, bindFailuresUnattributed, bindFailuresExpired          *prometheus.Desc

	nat natDescs
	udp udpDescs
}

// newDescs returns the name, help text and labels of every metric.
func newDescs() *descs {
	namespace := []string{"netns"}
	destination := []string{"netns", "source_ip", "destination_ip", "destination_port"}
	destinationState := []string{"netns", "source_ip", "destination_ip", "destination_port", "state"}
	destinationOwner := []string{"netns", "source_ip", "destination_ip", "destination_port", "cgroup", "pod_uid", "container_id"}
	source := []string{"netns", "source_ip"}

	return &descs{
		rangeLow: prometheus.NewDesc("ephemeral_port_range_low",
			"Lowest port that the kernel chooses for outgoing connections, sysctl net.ipv4.ip_local_port_range.",
			namespace, nil),
		rangeHigh: prometheus.NewDesc("ephemeral_port_range_high",
			"Highest port that the kernel chooses for outgoing connections, sysctl net.ipv4.ip_local_port_range.",
			namespace, nil),
		reservedPorts: prometheus.NewDesc("ephemeral_port_reserved_ports",
			"Ports of the range that the kernel never chooses because they are in sysctl net.ipv4.ip_local_reserved_ports.",
			namespace, nil),
		blockedPorts: prometheus.NewDesc("ephemeral_port_blocked_ports",
			"Ports of the range that connect() cannot choose because a listener has them, on any address.",
			namespace, nil),
		capacityPorts: prometheus.NewDesc("ephemeral_port_capacity_ports",
			"Ports that connect() can choose for each pair of source address and destination: the range without reserved and blocked ports.",
			namespace, nil),
		boundPorts: prometheus.NewDesc("ephemeral_port_bound_ports",
			"Ports of the capacity that connect() cannot choose, whatever the destination, because some socket got them by bind(), on any address. Without --exact, inferred from which ports clients take, from the second scrape on.",
			namespace, nil),
		boundUnknownPorts: prometheus.NewDesc("ephemeral_port_bound_unknown_ports",
			"Ports that may be bound too: the exporter has not seen yet how the clients that hold them choose ports.",
			namespace, nil),
		maxUtilization: prometheus.NewDesc("ephemeral_port_max_utilization_ratio",
			"Highest utilization of a destination, including destinations without series of their own, and those without sockets: these lack the ports that are bound. 1 means that the next connect() to that destination fails.",
			namespace, nil),
		maxPossibleUtilization: prometheus.NewDesc("ephemeral_port_max_possible_utilization_ratio",
			"The same if all ports are bound that may be, and if no closed connection used TCP timestamps of which that is not known: the truth is between ephemeral_port_max_utilization_ratio and this.",
			namespace, nil),

		tcpTWReuse: prometheus.NewDesc("ephemeral_port_tcp_tw_reuse",
			"Sysctl net.ipv4.tcp_tw_reuse: whether connect() may take over a port in TIME_WAIT: never (0), always (1), only on loopback (2).",
			namespace, nil),
		tcpTimestamps: prometheus.NewDesc("ephemeral_port_tcp_timestamps",
			"Sysctl net.ipv4.tcp_timestamps. If it is 0, connect() takes over no port in TIME_WAIT, and tcp_tw_reuse has no effect.",
			namespace, nil),
		tcpTWReuseDelay: prometheus.NewDesc("ephemeral_port_tcp_tw_reuse_delay_seconds",
			"Sysctl net.ipv4.tcp_tw_reuse_delay: time in TIME_WAIT after which connect() may take over a port. Absent on kernels before 6.14: there connect() may take over a port once the second of the kernel's clock is another than that of the last packet with a timestamp.",
			namespace, nil),
		tcpFinTimeout: prometheus.NewDesc("ephemeral_port_tcp_fin_timeout_seconds",
			"Sysctl net.ipv4.tcp_fin_timeout: time after which an orphaned socket leaves FIN_WAIT2. It does not shorten TIME_WAIT.",
			namespace, nil),
		timeWaitLength: prometheus.NewDesc("ephemeral_port_time_wait_length_seconds",
			"Time that a closed connection stays in TIME_WAIT: the value of --time-wait.length, which must be TCP_TIMEWAIT_LEN of the kernel.",
			namespace, nil),
		timeWaitSockets: prometheus.NewDesc("ephemeral_port_time_wait_sockets",
			"Sockets in TIME_WAIT, and orphaned sockets in FIN_WAIT2, on any port of the network namespace.",
			namespace, nil),
		timeWaitLimitSockets: prometheus.NewDesc("ephemeral_port_time_wait_limit_sockets",
			"Sysctl net.ipv4.tcp_max_tw_buckets: number of TIME_WAIT sockets at which the kernel drops new ones at once.",
			namespace, nil),
		timeWaitOverflows: prometheus.NewDesc("ephemeral_port_time_wait_overflows_total",
			"Connections that skipped TIME_WAIT because the limit was reached (TCPTimeWaitOverflow). While it rises, real ceilings are higher than those exported, and ports are reused unsafely early.",
			namespace, nil),

		destinationPorts: prometheus.NewDesc("ephemeral_port_destination_ports",
			"Ports that outgoing connections to the destination hold, by TCP state. syn_recv, fin_wait1, last_ack and closing are absent while they are 0.",
			destinationState, nil),
		destinationReusablePorts: prometheus.NewDesc("ephemeral_port_destination_reusable_ports",
			"Ports of closed connections to the destination that connect() may take over now, see tcp_tw_reuse: in TIME_WAIT, and on kernels that do so in FIN_WAIT2.",
			destination, nil),
		destinationReusableUnknownPorts: prometheus.NewDesc("ephemeral_port_destination_reusable_unknown_ports",
			"Ports of closed connections to the destination of which it is not known whether connect() may take them over. Those in FIN_WAIT2: kernels before 6.12 take them over, unless they have the change of 6.12, and their version does not tell. Those in TIME_WAIT: it depends on TCP timestamps, which this scrape could not find out. All count as used, so utilization can be too high by these. Absent where this is known or there are none.",
			destination, nil),
		destinationUtilization: prometheus.NewDesc("ephemeral_port_destination_utilization_ratio",
			"Ports that are held and not reusable, and others that are bound (see bound_ports), divided by the capacity. 1 means that the next connect() to the destination fails with EADDRNOTAVAIL. Above 0.5, each connect() takes much longer.",
			destination, nil),
		destinationCeiling: prometheus.NewDesc("ephemeral_port_destination_ceiling_requests_per_second",
			"Connections per second that this host can close first before the ports for the destination run out, while the connections that are open now stay open: the ports that these and bound ports leave, divided by the time that a closed connection holds its port.",
			destination, nil),
		destinationCloses: prometheus.NewDesc("ephemeral_port_destination_closes_per_second",
			"Connections to the destination per second that this host closes first, from the ages of its sockets in TIME_WAIT and FIN_WAIT2. Connections that the other side closes first do not count. At the ceiling, ports run out.",
			destination, nil),
		destinationExhaustion: prometheus.NewDesc("ephemeral_port_destination_exhaustion_seconds",
			"Time until the utilization of the destination is 1 if this host goes on closing connections at the rate of the last seconds, and as many as now stay open. +Inf if the ports then suffice. 0 if they are exhausted. In a burst, it is too soon: see ephemeral_port_destination_sure_exhaustion_seconds.",
			destination, nil),
		destinationSureExhaustion: prometheus.NewDesc("ephemeral_port_destination_sure_exhaustion_seconds",
			"Like ephemeral_port_destination_exhaustion_seconds, at a rate that has lasted for as long as this looks ahead: two forecasts agree. +Inf if none does: then that one is about a burst, or about a rate that has only begun to rise.",
			destination, nil),

		destinationTimestamps: prometheus.NewDesc("ephemeral_port_destination_timestamps",
			"1 if the peer uses TCP timestamps, 0 if not: then connect() never takes over a port in TIME_WAIT to it, whatever tcp_tw_reuse says. Between 0 and 1, if some connections use them and some do not: the share of those that were asked lately. Absent on loopback, while no open connection has told, and where tcp_tw_reuse does not apply and less than half of the ports are in use.",
			destination, nil),

		destinationOwnerPorts: prometheus.NewDesc("ephemeral_port_destination_owner_ports",
			"Ports that connections to the destination hold which are not in TIME_WAIT, by the control group of the process that opened them: the three that hold most. Absent if all are in TIME_WAIT, which has no owner, and without cgroup2, see --path.cgroup.",
			destinationOwner, nil),

		sourcePorts: prometheus.NewDesc("ephemeral_port_source_ports",
			"Distinct ports of the range in use on the source address, to any destination.",
			source, nil),
		sourceBoundPorts: prometheus.NewDesc("ephemeral_port_source_bound_ports",
			"Those of source_ports that are bound, see bound_ports. If they are more than half, clients bind before they connect: watch the source utilization.",
			source, nil),
		sourceUtilization: prometheus.NewDesc("ephemeral_port_source_utilization_ratio",
			"Ports in use on the source address, divided by the ports that bind(ip, 0) can choose from. 1 means that the next bind(ip, 0) fails with EADDRINUSE. It does not affect clients that only call connect(). Absent with sysctl ip_autobind_reuse = 1: then it depends on SO_REUSEADDR whether bind() fails.",
			source, nil),

		unreportedDestinations: prometheus.NewDesc("ephemeral_port_unreported_destinations",
			"Destinations without series of their own, see --destination.min-ports and --destination.limit.",
			namespace, nil),
		unreportedPorts: prometheus.NewDesc("ephemeral_port_unreported_ports",
			"Ports held by destinations without series of their own, by TCP state. syn_recv, fin_wait1, last_ack and closing are absent while they are 0.",
			[]string{"netns", "state"}, nil),

		unreportedSources: prometheus.NewDesc("ephemeral_port_unreported_sources",
			"Number of source addresses without series of their own, see --destination.limit.",
			namespace, nil),

		collectSuccess: prometheus.NewDesc("ephemeral_port_collect_success",
			"1 if this scrape could read the network namespace. If it is 0, the other metrics of the namespace are absent, except ephemeral_port_netns_info and those of UDP and connection tracking.",
			namespace, nil),
		collectDuration: prometheus.NewDesc("ephemeral_port_collect_duration_seconds",
			"Time that it took to read the network namespace.",
			namespace, nil),
		collectSockets: prometheus.NewDesc("ephemeral_port_collect_sockets",
			"Sockets that the kernel listed: those with a local port in the range.",
			namespace, nil),

		netnsInfo: prometheus.NewDesc("ephemeral_port_netns_info",
			"Always 1. The labels are the pod that the network namespace belongs to, and the container and the command of the process that had most sockets when it was chosen: as soon as the namespace was busy, and again when that process had ended. Without a pod, the container is that of another process before. A label is empty if unknown. Only with --namespaces.",
			[]string{"netns", "inode", "pod_uid", "container_id", "command"}, nil),
		namespaces: prometheus.NewDesc("ephemeral_port_namespaces",
			"Network namespaces by outcome of this scrape. collected: read. idle: not read, because its sockets are fewer than 1% of its capacity. failed: could not be read. deadline: no time was left to read it. skipped: beyond --namespaces.limit or one of many with few sockets, its turn comes in a later scrape. Only with --namespaces.",
			[]string{"outcome"}, nil),
		discoveryFailures: prometheus.NewDesc("ephemeral_port_namespaces_discovery_failures",
			"Directories and other sources of network namespaces that could not be read completely: some namespaces may be missing. The log names them. Only with --namespaces.",
			nil, nil),

		connectFailures: prometheus.NewDesc("ephemeral_port_connect_failures_total",
			"Calls of connect() that failed with EADDRNOTAVAIL because no port was free, by network namespace, addresses, and control group of the caller. A series ends when none failed for 15 minutes. Only with --trace.",
			destinationOwner, nil),
		connectFailuresUnattributed: prometheus.NewDesc("ephemeral_port_connect_failures_unattributed_total",
			"Such calls that were not counted in a series of ephemeral_port_connect_failures_total, because there are too many, see --destination.limit. Only with --trace.",
			nil, nil),
		connectFailuresExpired: prometheus.NewDesc("ephemeral_port_connect_failures_expired_total",
			"Such calls that were counted in series of ephemeral_port_connect_failures_total that have ended. It rises when a series ends, not when a call fails. Only with --trace.",
			nil, nil),
		traceTable: prometheus.NewDesc("ephemeral_port_trace_table_utilization_ratio",
			"Part of a table of the eBPF programs that is in use: that of pools with failed connects and binds, or that of pools with closes. If it is 1, events in further pools are unattributed. Only with --trace.",
			[]string{"table"}, nil),
		traceMissed: prometheus.NewDesc("ephemeral_port_trace_missed_runs_total",
			"Changes of state of sockets, and binds, that the eBPF programs did not see, because the same program was in progress on the CPU (recursion_misses). Few of them are failures or closes, which are not counted then. Absent on kernels before 6.1. Only with --trace.",
			nil, nil),
		traceSuccess: prometheus.NewDesc("ephemeral_port_trace_collect_success",
			"1 if this scrape could read the counts of failed connects and binds, and of closes. If it is 0, they are absent. Only with --trace.",
			nil, nil),

		bindFailures: prometheus.NewDesc("ephemeral_port_bind_failures_total",
			"Calls of bind() with port 0 that failed with EADDRINUSE because no port was free, by network namespace, protocol, address, and control group of the caller. Such a call has no destination. Of TCP also listen(), and of UDP connect() and sendto() with EAGAIN, of a socket that has no port. A series ends when none failed for 15 minutes. Only with --trace. Absent on kernels that cannot tell.",
			[]string{"netns", "protocol", "source_ip", "cgroup", "pod_uid", "container_id"}, nil),
		bindFailuresUnattributed: prometheus.NewDesc("ephemeral_port_bind_failures_unattributed_total",
			"Such calls that were not counted in a series of ephemeral_port_bind_failures_total, because there are too many, see --destination.limit. Only with --trace. Absent on kernels that cannot tell.",
			nil, nil),
		bindFailuresExpired: prometheus.NewDesc("ephemeral_port_bind_failures_expired_total",
			"Such calls that were counted in series of ephemeral_port_bind_failures_total that have ended. It rises when a series ends, not when a call fails. Only with --trace. Absent on kernels that cannot tell.",
			nil, nil),

		closes: prometheus.NewDesc("ephemeral_port_destination_closes_total",
			"Connections that this host closed first, on a port of the range, so that the port waits in TIME_WAIT, by network namespace, addresses, and control group that opened it: by close(), shutdown() or the end of a process. Of destinations that have series; a series ends after 15 minutes without closes. Only with --trace. Absent on kernels that cannot tell.",
			destinationOwner, nil),
		closesUnattributed: prometheus.NewDesc("ephemeral_port_destination_closes_unattributed_total",
			"Such connections that were not counted in a series of ephemeral_port_destination_closes_total: those of destinations that have no series, or of too many pools. Only with --trace. Absent on kernels that cannot tell.",
			nil, nil),
		closesExpired: prometheus.NewDesc("ephemeral_port_destination_closes_expired_total",
			"Such connections that were counted in series of ephemeral_port_destination_closes_total that have ended. It rises when a series ends, not when a connection is closed. Only with --trace. Absent on kernels that cannot tell.",
			nil, nil),

		nat: newNATDescs(),
		udp: newUDPDescs(),
	}
}

// describe sends all descriptions.
func (d *descs) describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		d.rangeLow, d.rangeHigh, d.reservedPorts, d.blockedPorts, d.capacityPorts, d.boundPorts, d.boundUnknownPorts, d.maxUtilization, d.maxPossibleUtilization,
		d.tcpTWReuse, d.tcpTimestamps, d.tcpTWReuseDelay, d.tcpFinTimeout,
		d.timeWaitLength, d.timeWaitSockets, d.timeWaitLimitSockets, d.timeWaitOverflows,
		d.destinationPorts, d.destinationReusablePorts, d.destinationReusableUnknownPorts, d.destinationUtilization,
		d.destinationCeiling, d.destinationCloses, d.destinationExhaustion, d.destinationSureExhaustion, d.destinationTimestamps, d.destinationOwnerPorts,
		d.sourcePorts, d.sourceBoundPorts, d.sourceUtilization,
		d.unreportedDestinations, d.unreportedPorts, d.unreportedSources,
		d.collectSuccess, d.collectDuration, d.collectSockets,
		d.netnsInfo, d.namespaces, d.discoveryFailures,
		d.connectFailures, d.connectFailuresUnattributed, d.connectFailuresExpired,
		d.traceTable, d.traceMissed, d.traceSuccess,
		d.bindFailures, d.bindFailuresUnattributed, d.bindFailuresExpired,
		d.closes, d.closesUnattributed, d.closesExpired,
	} {
		ch <- desc
	}
	d.nat.describe(ch)
	d.udp.describe(ch)
}

// sendSnapshot sends all metrics of a snapshot.
func (d *descs) sendSnapshot(ch chan<- prometheus.Metric, s scan.Snapshot) {
	for _, n := range s.Namespaces {
		d.sendNamespace(ch, n)
		d.sendOwners(ch, n, s)
		d.nat.send(ch, n)
		d.udp.send(ch, n, s)
	}
	if s.OthersRead {
		d.sendOutcomes(ch, s.Namespaces)
		ch <- prometheus.MustNewConstMetric(d.discoveryFailures, prometheus.GaugeValue, float64(s.DiscoveryFailures))
	}
	if s.Trace != nil {
		d.sendTrace(ch, *s.Trace)
	}
}

// sendNamespace sends the metrics of a namespace, as far as it was read.
func (d *descs) sendNamespace(ch chan<- prometheus.Metric, n scan.Namespace) {
	if n.Name == "" || n.TCP.Outcome == scan.Skipped && n.TCP.Err == nil {
		return // nothing is known of it: only sendOutcomes counts it
	}
	if n.Inode != 0 {
		ch <- prometheus.MustNewConstMetric(d.netnsInfo, prometheus.GaugeValue, 1,
			n.Name, strconv.FormatUint(n.Inode, 10), n.Workload.PodUID, n.Workload.ContainerID, strings.ToValidUTF8(n.Workload.Command, "\uFFFD"))
	}
	if n.TCP.Err != nil {
		ch <- prometheus.MustNewConstMetric(d.collectSuccess, prometheus.GaugeValue, 0, n.Name)
		return
	}

	gauge := func(desc *prometheus.Desc, value float64) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, n.Name)
	}
	gauge(d.collectSuccess, 1)
	if n.TCP.Outcome == scan.Idle {
		// There can be thousands of idle namespaces: they get as few series as possible.
		if n.TimeWait.Sockets != 0 {
			gauge(d.timeWaitSockets, float64(n.TimeWait.Sockets))
		}
		return
	}
	gauge(d.collectDuration, n.TCP.Duration.Seconds())
	if w := n.TimeWait; w.Outcome == scan.Collected {
		gauge(d.timeWaitSockets, float64(w.Sockets))
		gauge(d.timeWaitLimitSockets, float64(w.Limit))
		ch <- prometheus.MustNewConstMetric(d.timeWaitOverflows, prometheus.CounterValue, float64(w.Overflows), n.Name)
	}
	d.sendSettings(gauge, n.TCP.Report)
	d.sendPools(ch, n.Name, n.TCP.Report)
}

// sendSettings sends the settings, and the reserved, blocked and usable ports.
func (d *descs) sendSettings(gauge func(*prometheus.Desc, float64), r pool.Report) {
	gauge(d.rangeLow, float64(r.Settings.PortRange.Low))
	gauge(d.rangeHigh, float64(r.Settings.PortRange.High))
	gauge(d.reservedPorts, float64(r.ReservedPorts))
	gauge(d.blockedPorts, float64(r.BlockedPorts))
	gauge(d.capacityPorts, float64(r.CapacityPorts))
	if r.BoundKnown {
		gauge(d.boundPorts, float64(r.BoundPorts))
		gauge(d.boundUnknownPorts, float64(r.BoundUnknown))
	}

	gauge(d.tcpTWReuse, float64(r.Settings.TWReuse))
	gauge(d.tcpTimestamps, float64(r.Settings.Timestamps))
	if r.Settings.TWReuseDelay > 0 {
		gauge(d.tcpTWReuseDelay, r.Settings.TWReuseDelay.Seconds())
	}
	gauge(d.tcpFinTimeout, r.Settings.FinTimeout.Seconds())
	gauge(d.timeWaitLength, r.Settings.TimeWaitLength.Seconds())
}

// sendPools sends the metrics of destinations and sources.
func (d *descs) sendPools(ch chan<- prometheus.Metric, netns string, r pool.Report) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append([]string{netns}, labels...)...)
	}
	gauge(d.maxUtilization, r.MaxUtilization)
	gauge(d.maxPossibleUtilization, r.MaxPossibleUtilization)
	for _, dst := range r.Destinations {
		if dst.Unreported {
			continue
		}
		sourceIP := dst.Source.String()
		ip, port := dst.Address.Addr().String(), strconv.Itoa(int(dst.Address.Port()))
		for i, state := range pool.States {
			if stateHasSeries(state.String(), dst.Ports[i]) {
				gauge(d.destinationPorts, float64(dst.Ports[i]), sourceIP, ip, port, state.String())
			}
		}
		gauge(d.destinationReusablePorts, float64(dst.Reusable), sourceIP, ip, port)
		if dst.ReusableUnknown > 0 {
			gauge(d.destinationReusableUnknownPorts, float64(dst.ReusableUnknown), sourceIP, ip, port)
		}
		gauge(d.destinationUtilization, dst.Utilization, sourceIP, ip, port)
		gauge(d.destinationCeiling, dst.Ceiling, sourceIP, ip, port)
		gauge(d.destinationCloses, dst.CloseRate, sourceIP, ip, port)
		gauge(d.destinationExhaustion, dst.Exhaustion, sourceIP, ip, port)
		gauge(d.destinationSureExhaustion, dst.SureExhaustion, sourceIP, ip, port)
		switch dst.Timestamps {
		case pool.Yes:
			gauge(d.destinationTimestamps, 1, sourceIP, ip, port)
		case pool.No:
			gauge(d.destinationTimestamps, 0, sourceIP, ip, port)
		default:
			if dst.TimestampsShare > 0 {
				gauge(d.destinationTimestamps, dst.TimestampsShare, sourceIP, ip, port)
			}
		}
	}

	for _, src := range r.Sources {
		ip := src.Address.String()
		gauge(d.sourcePorts, float64(src.Ports), ip)
		if r.BoundKnown {
			gauge(d.sourceBoundPorts, float64(src.Bound), ip)
		}
		if !r.Settings.AutobindReuse {
			gauge(d.sourceUtilization, src.Utilization, ip)
		}
	}

	gauge(d.unreportedDestinations, float64(r.UnreportedDestinations))
	for i, state := range pool.States {
		if stateHasSeries(state.String(), r.UnreportedPorts[i]) {
			gauge(d.unreportedPorts, float64(r.UnreportedPorts[i]), state.String())
		}
	}
	gauge(d.unreportedSources, float64(r.UnreportedSources))
	gauge(d.collectSockets, float64(r.Sockets))
}

// stateHasSeries reports whether the ports in a state have a series. Connections pass through some states within moments, and one is of
// Cilium alone: these have one only while they are not 0.
func stateHasSeries(state string, ports int) bool {
	switch state {
	case "syn_recv", "fin_wait1", "last_ack", "closing", "no_connection":
		return ports != 0
	default:
		return true
	}
}

// sendOwners sends the owners of the destinations of a namespace.
func (d *descs) sendOwners(ch chan<- prometheus.Metric, n scan.Namespace, s scan.Snapshot) {
	for _, dst := range n.TCP.Report.Destinations {
		if dst.Unreported {
			continue
		}
		for _, o := range s.Resolve(dst.Owners) {
			ch <- prometheus.MustNewConstMetric(d.destinationOwnerPorts, prometheus.GaugeValue, float64(o.Ports),
				n.Name, dst.Source.String(), dst.Address.Addr().String(), strconv.Itoa(int(dst.Address.Port())),
				o.Path, o.PodUID, o.ContainerID)
		}
	}
}

// sendOutcomes sends the number of namespaces by outcome.
func (d *descs) sendOutcomes(ch chan<- prometheus.Metric, namespaces []scan.Namespace) {
	counts := map[scan.Outcome]int{}
	for _, n := range namespaces {
		counts[n.TCP.Outcome]++
	}
	for _, outcome := range scan.Outcomes {
		ch <- prometheus.MustNewConstMetric(d.namespaces, prometheus.GaugeValue, float64(counts[outcome]), string(outcome))
	}
}

// sendTrace sends what is counted as it happens. If that could not be read, it sends only that.
func (d *descs) sendTrace(ch chan<- prometheus.Metric, f scan.Trace) {
	if f.Err != nil {
		ch <- prometheus.MustNewConstMetric(d.traceSuccess, prometheus.GaugeValue, 0)
		return
	}
	ch <- prometheus.MustNewConstMetric(d.traceSuccess, prometheus.GaugeValue, 1)
	for _, p := range f.Pools {
		ch <- prometheus.MustNewConstMetric(d.connectFailures, prometheus.CounterValue, float64(p.Failures),
			p.Netns, p.Source.String(), p.Destination.Addr().String(), strconv.Itoa(int(p.Destination.Port())),
			p.Cgroup.Path, p.Cgroup.PodUID, p.Cgroup.ContainerID)
	}
	ch <- prometheus.MustNewConstMetric(d.connectFailuresUnattributed, prometheus.CounterValue, float64(f.Unattributed))
	ch <- prometheus.MustNewConstMetric(d.connectFailuresExpired, prometheus.CounterValue, float64(f.Expired))
	ch <- prometheus.MustNewConstMetric(d.traceTable, prometheus.GaugeValue, f.TableUtilization, "failures")
	if f.MissedRunsKnown {
		ch <- prometheus.MustNewConstMetric(d.traceMissed, prometheus.CounterValue, float64(f.MissedRuns))
	}
	if f.BindsCounted {
		d.sendBindFailures(ch, f)
	}
	if f.ClosesCounted {
		d.sendCloses(ch, f)
	}
}

func (d *descs) sendBindFailures(ch chan<- prometheus.Metric, f scan.Trace) {
	for _, b := range f.Binds {
		ch <- prometheus.MustNewConstMetric(d.bindFailures, prometheus.CounterValue, float64(b.Failures),
			b.Netns, b.Protocol(), b.Source.String(), b.Cgroup.Path, b.Cgroup.PodUID, b.Cgroup.ContainerID)
	}
	ch <- prometheus.MustNewConstMetric(d.bindFailuresUnattributed, prometheus.CounterValue, float64(f.BindsUnattributed))
	ch <- prometheus.MustNewConstMetric(d.bindFailuresExpired, prometheus.CounterValue, float64(f.BindsExpired))
}

func (d *descs) sendCloses(ch chan<- prometheus.Metric, f scan.Trace) {
	for _, p := range f.Closes {
		if p.Closes == 0 {
			continue // it has no series
		}
		ch <- prometheus.MustNewConstMetric(d.closes, prometheus.CounterValue, float64(p.Closes),
			p.Netns, p.Source.String(), p.Destination.Addr().String(), strconv.Itoa(int(p.Destination.Port())),
			p.Cgroup.Path, p.Cgroup.PodUID, p.Cgroup.ContainerID)
	}
	ch <- prometheus.MustNewConstMetric(d.closesUnattributed, prometheus.CounterValue, float64(f.ClosesUnattributed))
	ch <- prometheus.MustNewConstMetric(d.closesExpired, prometheus.CounterValue, float64(f.ClosesExpired))
	ch <- prometheus.MustNewConstMetric(d.traceTable, prometheus.GaugeValue, f.ClosesTableUtilization, "closes")
}

package collector

import (
	"math"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

// natDescs are the descriptions of the metrics of source NAT and connection tracking.
type natDescs struct {
	ports, reusable, utilization, searchFailure, ceiling, owner *prometheus.Desc
	capacity, maxUtilization, unreportedPools, unreportedPorts  *prometheus.Desc
	unreportedMax                                               *prometheus.Desc
	outsideFlows, unknownPools                                  *prometheus.Desc
	collectSuccess, collectDuration, collectFlows               *prometheus.Desc
	ciliumSuccess, ciliumCapacity, ciliumUnassigned             *prometheus.Desc
	entries, limitEntries, insertFailed, dropped, earlyDropped  *prometheus.Desc
}

func newNATDescs() natDescs {
	namespace := []string{"netns"}
	pool := []string{"netns", "protocol", "source_ip", "destination_ip", "destination_port"}
	with := func(label string) []string { return append(slices.Clip(pool), label) }

	return natDescs{
		ports: prometheus.NewDesc("ephemeral_port_snat_ports",
			"Ports of the translated source address that source NAT uses for the destination, by the state of the flow. Ports of own sockets with this address count too. syn_recv and last_ack are absent while they are 0. Only with --snat.",
			with("state"), nil),
		reusable: prometheus.NewDesc("ephemeral_port_snat_reusable_ports",
			"Those of flows that are closed, so that a new connection may take over their ports. 0 on kernels before 6.5, and for UDP. Only with --snat.",
			pool, nil),
		utilization: prometheus.NewDesc("ephemeral_port_snat_utilization_ratio",
			"Ports that source NAT uses for the destination and that are not reusable, divided by the capacity. 1 means that no port is free. The kernel does not try all ports: see snat_search_failure_ratio. Absent where it is not known, see snat_unknown_pools. Only with --snat.",
			pool, nil),
		searchFailure: prometheus.NewDesc("ephemeral_port_snat_search_failure_ratio",
			"Share of searches for a port that find none: the packet is dropped, and the client sees a timeout. The kernel searches if the client's own port is taken or outside the range, and always with random or fully-random in the rule. Only with --snat.",
			pool, nil),
		ceiling: prometheus.NewDesc("ephemeral_port_snat_ceiling_connections_per_second",
			"Connections per second, each over within moments, that the pool sustains while those that are open now stay open. +Inf for TCP since Linux 6.5, which takes over the ports of closed connections, unless open ones hold all. Absent if the timeouts are hidden, and for pools of Cilium. Only with --snat.",
			pool, nil),
		owner: prometheus.NewDesc("ephemeral_port_snat_owner_ports",
			"Ports of the pool by the source address before translation, such as that of a pod: the three that hold most. Only with --snat.",
			with("original_ip"), nil),

		capacity: prometheus.NewDesc("ephemeral_port_snat_capacity_ports",
			"Ports that source NAT of the kernel has for each translated address and destination: those of --snat.port-range. Only with --snat.",
			[]string{"netns", "protocol"}, nil),
		maxUtilization: prometheus.NewDesc("ephemeral_port_snat_max_utilization_ratio",
			"Highest utilization of a pool of source NAT, including those without series of their own. Pools whose utilization is not known are left out, see snat_unknown_pools; absent if there are no others, or if snat_cilium_collect_success is 0. Only with --snat.",
			namespace, nil),
		unreportedPools: prometheus.NewDesc("ephemeral_port_snat_unreported_pools",
			"Pools of source NAT without series of their own, see --destination.min-ports and --destination.limit. Only with --snat.",
			namespace, nil),
		unreportedPorts: prometheus.NewDesc("ephemeral_port_snat_unreported_ports",
			"Ports of those pools. Only with --snat.",
			namespace, nil),
		unreportedMax: prometheus.NewDesc("ephemeral_port_snat_unreported_max_utilization_ratio",
			"Highest utilization of those pools. Near 1, the limits hide a pool that is running out. Absent if there are none, or if none of them is known. Only with --snat.",
			namespace, nil),
		outsideFlows: prometheus.NewDesc("ephemeral_port_snat_outside_flows",
			"Flows that source NAT gave a port outside --snat.port-range, or Cilium one that is not above --node-ports: the flags do not say what the rules do. Without clients on ports below 1024 that have such ports still. Only with --snat.",
			namespace, nil),
		unknownPools: prometheus.NewDesc("ephemeral_port_snat_unknown_pools",
			"Pools of source NAT whose utilization is not known, because --snat.port-range does not say what the rules do: more than a tenth of their flows are outside, or nearly all taken ports are whole blocks and packets were dropped in the last 5 minutes. Of Cilium: its flows contradict --node-ports. Only with --snat.",
			namespace, nil),

		collectSuccess: prometheus.NewDesc("ephemeral_port_snat_collect_success",
			"1 if this scrape could read the flows of the network namespace. If it is 0, the other metrics of source NAT are absent. Absent where no flows are tracked, and in other namespaces that track few. Only with --snat.",
			namespace, nil),
		collectDuration: prometheus.NewDesc("ephemeral_port_snat_collect_duration_seconds",
			"Time that it took to read the flows. Only with --snat.",
			namespace, nil),
		collectFlows: prometheus.NewDesc("ephemeral_port_snat_collect_flows",
			"Flows that were counted: those of source NAT, and those of own sockets. Only with --snat.",
			namespace, nil),

		ciliumSuccess: prometheus.NewDesc("ephemeral_port_snat_cilium_collect_success",
			"0 if Cilium runs on the host and its source NAT is not known: a full pool of it then shows nowhere. Absent where Cilium does not run. Only with --snat.",
			namespace, nil),
		ciliumCapacity: prometheus.NewDesc("ephemeral_port_snat_cilium_capacity_ports",
			"Ports that the pool has, if its flows are of Cilium's datapath: those above --node-ports. Absent for pools of the kernel. Only with --snat.",
			pool, nil),
		ciliumUnassigned: prometheus.NewDesc("ephemeral_port_snat_cilium_unassigned_total",
			"Connections to which Cilium's datapath gave no port, because all that it tried were taken: it drops the packet, with \"No mapping for NAT masquerade\". Absent before Cilium 1.18, which does not count them. Only with --snat.",
			namespace, nil),

		entries: prometheus.NewDesc("ephemeral_port_conntrack_entries",
			"Flows that the kernel tracks, sysctl net.netfilter.nf_conntrack_count. Absent where it tracks none for want of the module.",
			namespace, nil),
		limitEntries: prometheus.NewDesc("ephemeral_port_conntrack_limit_entries",
			"Sysctl net.netfilter.nf_conntrack_max: number of flows at which packets of new ones are dropped. Absent if there is no limit.",
			namespace, nil),
		insertFailed: prometheus.NewDesc("ephemeral_port_conntrack_insert_failed_total",
			"First packets of flows that were dropped, because source NAT found no free port or two flows chose the same one at the same time. A connect() behind it is late by a second, or fails with a timeout.",
			namespace, nil),
		dropped: prometheus.NewDesc("ephemeral_port_conntrack_dropped_total",
			"Packets that connection tracking dropped: those of insert_failed, and others because its table was full.",
			namespace, nil),
		earlyDropped: prometheus.NewDesc("ephemeral_port_conntrack_early_dropped_total",
			"Flows that gave way to new ones because the table was full.",
			namespace, nil),
	}
}

// describe sends all descriptions.
func (d *natDescs) describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		d.ports, d.reusable, d.utilization, d.searchFailure, d.ceiling, d.owner,
		d.capacity, d.maxUtilization, d.unreportedPools, d.unreportedPorts, d.unreportedMax,
		d.outsideFlows, d.unknownPools,
		d.collectSuccess, d.collectDuration, d.collectFlows,
		d.ciliumSuccess, d.ciliumCapacity, d.ciliumUnassigned,
		d.entries, d.limitEntries, d.insertFailed, d.dropped, d.earlyDropped,
	} {
		ch <- desc
	}
}

// send sends what is known of source NAT and connection tracking in a namespace.
func (d *natDescs) send(ch chan<- prometheus.Metric, n scan.Namespace) {
	if n.Name == "" {
		return
	}
	send := func(desc *prometheus.Desc, typ prometheus.ValueType, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, typ, value, append([]string{n.Name}, labels...)...)
	}
	if c := n.Conntrack; c.Outcome == scan.Collected {
		send(d.entries, prometheus.GaugeValue, float64(c.Entries))
		if c.Limit > 0 {
			send(d.limitEntries, prometheus.GaugeValue, float64(c.Limit))
		}
		if c.Counted {
			send(d.insertFailed, prometheus.CounterValue, float64(c.InsertFailed))
			send(d.dropped, prometheus.CounterValue, float64(c.Dropped))
			send(d.earlyDropped, prometheus.CounterValue, float64(c.EarlyDropped))
		}
	}

	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		send(desc, prometheus.GaugeValue, value, labels...)
	}
	switch {
	case n.Cilium.Err != nil:
		gauge(d.ciliumSuccess, 0)
	case n.Cilium.Outcome == scan.Collected:
		gauge(d.ciliumSuccess, 1)
		if n.Cilium.Counted {
			send(d.ciliumUnassigned, prometheus.CounterValue, float64(n.Cilium.Unassigned))
		}
	}
	switch {
	case n.NAT.Outcome == "":
		return
	case n.NAT.Err != nil:
		gauge(d.collectSuccess, 0)
		return
	}
	r := n.NAT.Report
	gauge(d.collectSuccess, 1)
	gauge(d.collectDuration, n.NAT.Duration.Seconds())
	gauge(d.collectFlows, float64(r.Flows))
	for _, protocol := range []snat.Protocol{snat.TCP, snat.UDP} {
		gauge(d.capacity, float64(r.CapacityPorts), string(protocol))
	}
	if !math.IsNaN(r.MaxUtilization) && n.Cilium.Err == nil {
		gauge(d.maxUtilization, r.MaxUtilization)
	}
	gauge(d.unreportedPools, float64(r.UnreportedPools))
	gauge(d.unreportedPorts, float64(r.UnreportedPorts))
	if !math.IsNaN(r.UnreportedMaxUtilization) {
		gauge(d.unreportedMax, r.UnreportedMaxUtilization)
	}
	gauge(d.outsideFlows, float64(r.Outside))
	gauge(d.unknownPools, float64(r.UnknownPools))
	for _, p := range r.Pools {
		d.sendPool(gauge, p)
	}
}

// sendPool sends the metrics of one pool.
func (d *natDescs) sendPool(gauge func(*prometheus.Desc, float64, ...string), p snat.Pool) {
	labels := []string{string(p.Protocol), p.Source.String(), p.Address.Addr().String(), strconv.Itoa(int(p.Address.Port()))}
	with := func(label string) []string { return append(slices.Clip(labels), label) }
	for _, state := range snat.States(p.Protocol) {
		if stateHasSeries(state.String(), p.Ports[state]) {
			gauge(d.ports, float64(p.Ports[state]), with(state.String())...)
		}
	}
	gauge(d.reusable, float64(p.Reusable), labels...)
	if p.Cilium {
		gauge(d.ciliumCapacity, float64(p.Capacity), labels...)
	}
	if p.Known() {
		gauge(d.utilization, p.Utilization, labels...)
		gauge(d.searchFailure, p.SearchFailure, labels...)
	}
	if !math.IsNaN(p.Ceiling) {
		gauge(d.ceiling, p.Ceiling, labels...)
	}
	for _, c := range p.Clients {
		gauge(d.owner, float64(c.Ports), with(c.Address.String())...)
	}
}

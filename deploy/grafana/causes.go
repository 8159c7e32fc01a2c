package main

// causesRow shows what takes the ports of the chosen host.
func causesRow() row {
	share := func(metric string, matchers ...string) string {
		return shareOfCapacity(top(10, ofNamespaces(metric, matchers...)))
	}
	overflows := ofNamespaces("ephemeral_port_time_wait_overflows_total")

	setting := func(title, metric string, pixels int, properties ...property) column {
		return column{query: bySettings(metric), title: title, properties: append(properties, width(pixels))}
	}
	return row{title: "Causes on $instance", panels: []*panel{
		newGraph("Leaks, and no answer",
			"close_wait: the destination has closed, but an application on this host has not. syn_sent: the destination does not answer. Ports in these states, as a share of the capacity.",
			ratio, 8, limit{0.2, "red"}).
			query(withDestination(share("ephemeral_port_destination_ports", `state=~"close_wait|syn_sent"`)), "{{state}}: "+destinationLegend).named(),
		newGraph("Open connections by owner",
			"Ports of connections that are not in TIME_WAIT, by destination and the control group that opened them: the 10 with most. With kube-state-metrics, by pod.", ports, 8).
			query(withDestination(byOwner(pool, top(10, ofNamespaces("ephemeral_port_destination_owner_ports")))), "{{destination}}: {{cgroup}}, from {{source_ip}}, {{netns}}").named(),
		newGraph("Closes by control group",
			"Connections per second that this host closed first, so that they wait here in TIME_WAIT, by destination and the control group that closed them: the 10 with most. With kube-state-metrics, by pod. Only with --trace.", "suffix:/s", 8).
			query(withDestination(byOwner(pool, topRates(ofNamespaces("ephemeral_port_destination_closes_total")))), "{{destination}}: {{cgroup}}, from {{source_ip}}, {{netns}}").named().
			noValue("Not counted"),
		newGraph("Clients that bind first",
			"Utilization of the source addresses whose clients call bind() before connect(). These share one pool for all destinations. At 100%, bind() fails.", ratio, 8, used...).
			query(top(10, ofNamespaces("source:ephemeral_port_bind_first_utilization:ratio")), "{{netns}}: {{source_ip}}").
			noValue("No client binds first"),
		newGraph("Bound ports",
			"Ports that some socket got by bind(), as a share of the capacity: no connect() gets them, whatever the destination. At 100%, every plain connect() fails. Not known: ports of clients that have not been seen to choose one. Worst, if bound: the utilization that the worst destination then has.", ratio, 8, used...).
			query(share("ephemeral_port_bound_ports"), "{{netns}} bound").
			query(share("ephemeral_port_bound_unknown_ports"), "{{netns}} not known").
			query(top(10, ofNamespaces("ephemeral_port_max_possible_utilization_ratio")), "{{netns}} worst, if bound"),
		newGraph("Unreported destinations",
			"Ports of destinations without series of their own, as a share of the capacity of one pool, see --destination.min-ports and --destination.limit.", ratio, 8).
			query(share("ephemeral_port_unreported_ports"), "{{netns}} {{state}}"),
		newGraph("TIME_WAIT, of its limit",
			"Sockets in TIME_WAIT and orphans in FIN_WAIT2 on any port, as a share of tcp_max_tw_buckets. At 100%, the kernel drops new ones.", ratio, 12, limit{0.9, "red"}).
			query(top(10, ofNamespaces("ephemeral_port_time_wait_sockets"))+" / "+ofNamespaces("ephemeral_port_time_wait_limit_sockets"), "{{netns}}").
			axisTo(0.1),
		newGraph("TIME_WAIT overflow",
			"Connections per second that skipped TIME_WAIT because its limit was reached. Above zero, ports are reused too early, which is unsafe, and the ceilings do not hold.", "suffix:/s", 12).
			query("rate("+overflows+"[$__rate_interval]) and topk(10, max_over_time("+overflows+"[$__range] @ end()))", "{{netns}}"),
		newTable("Settings",
			"The settings of each network namespace, and what they leave. Capacity: the range without reserved and blocked ports. Blocked: a listener has them. After: how old a connection in TIME_WAIT must be.", 6, []order{{"Namespace", true}},
			column{field: "netns", title: "Namespace"},
			setting("Range from", "ephemeral_port_range_low", 95),
			setting("to", "ephemeral_port_range_high", 70),
			setting("Reserved", "ephemeral_port_reserved_ports", 85),
			setting("Blocked", "ephemeral_port_blocked_ports", 80),
			setting("Capacity", "ephemeral_port_capacity_ports", 85),
			setting("tcp_tw_reuse", "ephemeral_port_tcp_tw_reuse", 115, valueText(map[string]string{"0": "never", "1": "always", "2": "on loopback"})),
			setting("after", "ephemeral_port_tcp_tw_reuse_delay_seconds", 65, unit(seconds)),
			setting("tcp_timestamps", "ephemeral_port_tcp_timestamps", 130, valueText(map[string]string{"0": "off", "1": "on", "2": "on"})),
			setting("TIME_WAIT", "ephemeral_port_time_wait_length_seconds", 95, unit(seconds)),
			setting("at most", "ephemeral_port_time_wait_limit_sockets", 80),
			setting("tcp_fin_timeout", "ephemeral_port_tcp_fin_timeout_seconds", 130, unit(seconds)),
			setting("Unreported destinations", "ephemeral_port_unreported_destinations", 185),
			setting("sources", "ephemeral_port_unreported_sources", 80),
		),
	}}
}

// bySettings returns a metric without its name: columns of a table are merged by all labels.
func bySettings(metric string) string {
	return "max by (netns) (" + ofNamespaces(metric) + ")"
}

package main

// nowRow says whether something is wrong.
func nowRow() row {
	rulesLoaded := none(of("instance:ephemeral_port_utilization:max1m"))
	alerts := newStat("Firing alerts", "Alerts of the rules that fire now, see the next row. No data: the rules are not loaded.", ports, 5)
	for _, s := range []struct{ severity, color string }{{"critical", "red"}, {"warning", "orange"}, {"info", "blue"}} {
		alerts.query("count("+ourAlerts("ALERTS", `alertstate="firing"`, `severity="`+s.severity+`"`)+") or "+rulesLoaded, s.severity)
		alerts.override(s.severity, property{"thresholds", statSteps([]limit{{1, s.color}})})
	}
	dropped, unassigned := "sum(increase("+of("ephemeral_port_conntrack_insert_failed_total")+"[5m]))", "sum(increase("+of("ephemeral_port_snat_cilium_unassigned_total")+"[5m]))"
	total := of("instance:ephemeral_port_connect_failures_total:sum")
	return row{title: "Now", panels: []*panel{
		alerts,
		newStat("Failed connects",
			"Calls of connect() in the last 5 minutes that failed because no port was free, of all hosts with --trace.",
			ports, 4, limit{1, "red"}).
			query("sum("+failures(total, total, "5m")+")", "failed").noValue("Not counted"),
		newStat("NAT drops",
			"First packets of connections in the last 5 minutes that hosts dropped because source NAT found no port, or because two CPUs chose the same one, see the row Source NAT. Clients wait for a second or more.",
			ports, 3, limit{1, "orange"}).
			query(dropped+" + "+unassigned+" or "+dropped+" or "+unassigned, "dropped").noValue("Not tracked"),
		newStat("Worst utilization",
			"The highest utilization in the last minute, also of what has no series of its own. TCP: of a destination. At 100%, connect() fails. Source NAT: of a pool, only with --snat. From 60% on, of Cilium from 43% on, packets can be dropped. UDP: of a family of sockets. See the rows of these names.",
			ratio, 5, used...).
			query("max("+of("instance:ephemeral_port_utilization:max1m")+")", "TCP").
			query("max(max_over_time("+of("ephemeral_port_snat_max_utilization_ratio")+"[1m]))", "source NAT").
			query("max(max_over_time("+of("ephemeral_port_udp_utilization_ratio")+"[1m]))", "UDP").override("UDP", property{"thresholds", statSteps(usedUDP)}).named(),
		newStat("Destinations ≥ 80%",
			"Destinations with a utilization of 80% or more in the last minute, each for its host, network namespace and source address.",
			ports, 4, limit{1, "red"}).
			query("sum(max_over_time("+of("ephemeral_port_destination_utilization_ratio")+"[1m]) >= bool 0.8) or "+
				none(of("ephemeral_port_max_utilization_ratio")), "destinations"),
		newStat("Unread",
			"Hosts: those whose exporter does not answer, or cannot read the host's own sockets. "+
				"Namespaces: those that could not be read, or for which there was no time, of all hosts with --namespaces.",
			ports, 3, limit{1, "red"}).
			query("count("+of("up")+" unless on (job, instance) "+of("ephemeral_port_collect_success", `netns="self"`)+" == 1) or "+
				none(of("up")), "hosts").
			query("sum("+of("ephemeral_port_namespaces", `outcome=~"failed|deadline"`)+")", "namespaces").
			override("namespaces", property{"thresholds", statSteps([]limit{{1, "orange"}})}).named(),
	}}
}

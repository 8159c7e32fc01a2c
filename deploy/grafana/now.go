package main

// nowRow says whether something is wrong.
func nowRow() row {
	rulesLoaded := none(of("instance:ephemeral_port_utilization:max1m"))
	alerts := newStat("Firing alerts", "Alerts of the rules that fire now, see the next row. No data: the rules are not loaded.", ports, 4)
	for _, s := range []struct{ severity, color string }{{"critical", "red"}, {"warning", "orange"}, {"info", "blue"}} {
		alerts.query("count("+ourAlerts("ALERTS", `alertstate="firing"`, `severity="`+s.severity+`"`)+") or "+rulesLoaded, s.severity)
		alerts.override(s.severity, property{"thresholds", statSteps([]limit{{1, s.color}})})
	}
	total := of("instance:ephemeral_port_connect_failures_total:sum")
	return row{title: "Now", panels: []*panel{
		alerts,
		newStat("Failed connects",
			"Calls of connect() in the last 5 minutes that failed because no port was free, of all hosts with --connect-failures.",
			ports, 4, limit{1, "red"}).
			query("sum("+failures(total, total, "5m")+")", "failed").noValue("Not counted"),
		newStat("Worst utilization",
			"The highest utilization of a destination in the last minute, also of one without series of its own. At 100%, connect() fails.",
			ratio, 4, used...).
			query("max("+of("instance:ephemeral_port_utilization:max1m")+")", "utilization"),
		newStat("Destinations ≥ 80%",
			"Destinations with a utilization of 80% or more in the last minute, each for its host, network namespace and source address.",
			ports, 4, limit{1, "red"}).
			query("sum(max_over_time("+of("ephemeral_port_destination_utilization_ratio")+"[1m]) >= bool 0.8) or "+
				none(of("ephemeral_port_max_utilization_ratio")), "destinations"),
		newStat("Hosts without numbers",
			"Hosts whose exporter does not answer, or cannot read the host's own sockets.",
			ports, 4, limit{1, "red"}).
			query("count("+of("up")+" unless on (job, instance) "+of("ephemeral_port_collect_success", `netns="self"`)+" == 1) or "+
				none(of("up")), "hosts"),
		newStat("Namespaces unread",
			"Network namespaces that could not be read, or for which there was no time, of all hosts with --namespaces.",
			ports, 4, limit{1, "orange"}).
			query("sum("+of("ephemeral_port_namespaces", `outcome=~"failed|deadline"`)+")", "namespaces").noValue("Not watched"),
	}}
}

package main

// namespacesRow shows the network namespaces of hosts with --namespaces.
func namespacesRow() row {
	outcomes := newGraph("Outcomes on $instance",
		"collected: read. idle: not read, as its sockets are fewer than 1% of its capacity. failed: could not be read. deadline: there was no time. skipped: its turn comes in a later scrape.",
		ports, 8).stacked().
		query("sum by (outcome) ("+ofHost("ephemeral_port_namespaces")+")", "{{outcome}}").
		noValue("Not watched")
	outcomes.color("collected", "blue").color("idle", "#a2a2ad").color("skipped", "purple").color("deadline", "orange").color("failed", "red")
	return row{title: "Network namespaces", collapsed: true, panels: []*panel{
		newTable("Worst network namespaces",
			"The 20 network namespaces with the highest utilization of a destination, and whose they are. Pod: its namespace and name with kube-state-metrics, else its UID. Only those of hosts with --namespaces.", 9, []order{{"Used", true}},
			column{field: "instance", title: "Host", properties: []property{links(toHost)}},
			column{field: "netns", title: "Namespace"},
			column{field: "pod_uid", title: "Pod"},
			column{field: "container_id", title: "Container"},
			column{field: "command", title: "Command"},
			column{
				query: withPod("topk(20, "+of("ephemeral_port_max_utilization_ratio")+
					" * on (job, instance, netns) group_left (pod_uid, container_id, command) "+of("ephemeral_port_netns_info")+")", "pod_uid"),
				title: "Used", properties: usedBar(200, used...),
			}).
			noValue("Not watched").
			emptyCells("–"),
		newGraph("Namespaces of $instance", "The 10 worst network namespaces, by their worst destination, reported or not.", ratio, 8, used...).
			query(top(10, ofNamespaces("ephemeral_port_max_utilization_ratio")), "{{netns}}"),
		outcomes,
		newGraph("Places that could not be searched",
			"Directories and other sources of network namespaces that could not be read completely: some may be missing. The 10 hosts with most.", ports, 8).
			query(top(10, of("ephemeral_port_namespaces_discovery_failures")), "{{instance}}").
			noValue("Not watched"),
	}}
}

package main

// natPool are the labels of a pool of source NAT.
const natPool = "job, instance, netns, protocol, source_ip, destination_ip, destination_port"

// searchFails are the thresholds of the alerts on searches for a port of source NAT.
var searchFails = []limit{{0.01, "orange"}, {0.1, "red"}}

// natRow shows the ports that hosts give to their clients. It is collapsed, because most hosts translate
// no addresses: the first row tells when to look.
func natRow() row {
	const worst = "topk(20, pool:ephemeral_port_snat_worst_utilization:max1m{job=~\"$job\"})"
	// ofThese returns the values of an expression for these pools.
	ofThese := func(expr string) string {
		return "sum by (" + natPool + ") ((" + expr + ") and on (" + natPool + ") " + worst + ")"
	}
	// A pool of Cilium says how many ports it has, one of the kernel has as many as all others.
	ciliumPorts := of("ephemeral_port_snat_cilium_capacity_ports")
	capacity := ciliumPorts + " or 0 * " + of("ephemeral_port_snat_reusable_ports") + " + on (job, instance, netns, protocol) group_left () " + of("ephemeral_port_snat_capacity_ports") + " > 0"
	share := func(expr string) string {
		return withDestination(ofThese(expr) + " / on (" + natPool + ") (" + capacity + ")")
	}
	ports := func(matchers ...string) string { return of("ephemeral_port_snat_ports", matchers...) }
	const closed = "time_wait|close|unreplied|replied|no_connection"
	insertFailed, unassigned := of("ephemeral_port_conntrack_insert_failed_total"), of("ephemeral_port_snat_cilium_unassigned_total")
	// drops returns the rate of a counter for each of these pools.
	drops := func(counter string) string {
		return "0 * " + worst + " + on (job, instance, netns) group_left () rate(" + counter + "[5m])"
	}
	percent := func(pixels int) []property { return []property{unit(ratio), decimals(0), width(pixels)} }

	const poolLegend = "{{instance}}: {{destination}} {{protocol}} from {{source_ip}}, {{netns}}"
	return row{title: "Source NAT", collapsed: true, panels: []*panel{
		newTable("Worst pools of source NAT",
			"The 20 pools with the highest utilization in the last minute: each is the ports of a translated address to one destination. Search failure: share of the searches, the kernel's or Cilium's, that find no port, so that the packet is dropped. "+
				"Open, Closed, Reusable: ports of such connections, as a share of the capacity. Closed: in TIME_WAIT or CLOSE, of UDP those of single exchanges, and what Cilium has left over. Reusable: closed, and new connections may take them over. "+
				"Ceiling: short connections per second until ports run out. Client: the address before translation that holds most. "+
				"Drops: packets per second that source NAT of the network namespace drops, the kernel's or Cilium's, where searches of the pool fail. Only with --snat.",
			9, []order{{"Used", true}, {"Search failure", true}},
			column{field: "instance", title: "Host", properties: []property{links(toHost), width(150)}},
			column{field: "netns", title: "Namespace", properties: []property{width(100)}},
			column{field: "protocol", title: "Protocol", properties: []property{width(80)}},
			column{field: "source_ip", title: "Translated to", properties: []property{width(130)}},
			column{field: "destination", title: "Destination", properties: []property{links(toStatus), width(180)}},
			column{query: withDestination(worst), title: "Used", properties: usedBar(150, used...)},
			column{query: withDestination(ofThese("max_over_time(" + of("ephemeral_port_snat_search_failure_ratio") + "[1m])")), title: "Search failure", properties: []property{
				unit(ratio), decimals(1), width(140), colored(searchFails...), cell("color-text"),
			}},
			column{query: share("sum without (state) (" + ports(`state!~"`+closed+`"`) + ")"), title: "Open", properties: percent(70)},
			column{query: share("sum without (state) (" + ports(`state=~"`+closed+`"`) + ")"), title: "Closed", properties: percent(75)},
			column{query: share(of("ephemeral_port_snat_reusable_ports")), title: "Reusable", properties: percent(90)},
			column{query: withDestination(ofThese(of("ephemeral_port_snat_ceiling_connections_per_second"))), title: "Ceiling", properties: []property{
				unit("suffix:/s"), decimals(1), width(90), mappings(
					map[string]any{"type": "range", "options": map[string]any{"from": 1e6, "to": nil, "result": map[string]any{"text": "no limit"}}},
				),
			}},
			column{query: withDestination("sum by (" + natPool + ") ((" + drops(insertFailed) + " unless on (" + natPool + ") " + ciliumPorts + " or " + drops(unassigned) + " and on (" + natPool + ") " + ciliumPorts + ") and on (" + natPool + ") " + of("pool:ephemeral_port_snat_worst_search_failure:max1m") + ")"),
				title: "Drops", properties: []property{unit("suffix:/s"), decimals(1), width(80), colored(limit{0.001, "red"}), cell("color-text")}},
			column{field: "original_ip", title: "Client"},
			column{query: withDestination("topk by (" + natPool + ") (1, sum by (" + natPool + ", original_ip) (" + of("ephemeral_port_snat_owner_ports") + " and on (" + natPool + ") " + worst + "))")},
		).noValue("No pool reported").emptyCells("–"),
		newGraph("Utilization of pools", "The 10 pools with the highest utilization, each the maximum of a minute. The dashed lines are the thresholds of the alerts. Only with --snat.", ratio, 12, used...).
			query(withDestination(top(10, of("pool:ephemeral_port_snat_worst_utilization:max1m"))), poolLegend).named().
			noValue("No pool reported"),
		newGraph("Search failure", "Share of searches for a port that find none, the maximum of a minute, where it is 0.1% or more: the 10 worst pools. The client of a dropped packet waits for a second, and searches again. Only with --snat.", ratio, 12, searchFails...).
			query(withDestination(top(10, of("pool:ephemeral_port_snat_worst_search_failure:max1m"))), poolLegend).named().
			axisTo(0.2).noValue("None reported"),
		newGraph("Tracked connections, of their limit", "Flows of connection tracking, as a share of nf_conntrack_max: the 10 worst network namespaces. At 100%, the kernel drops the packets of new ones.", ratio, 6, limit{0.9, "red"}).
			query(top(10, of("netns:ephemeral_port_conntrack_entries:ratio")), "{{instance}}, {{netns}}").
			axisTo(0.1).noValue("Not tracked"),
		newGraph("Drops of source NAT", "First packets per second that were dropped because source NAT found no port, or because two CPUs chose the same one: the 10 network namespaces with most, and the 10 hosts where Cilium found none most often.", "suffix:/s", 6).
			query(topRates(insertFailed), "{{instance}}, {{netns}}").
			query(topRates(unassigned), "{{instance}}, Cilium").
			noValue("None reported"),
		newGraph("All drops", "Packets per second that connection tracking dropped: those of source NAT, and others because its table was full.", "suffix:/s", 6).
			query(topRates(of("ephemeral_port_conntrack_dropped_total")), "{{instance}}, {{netns}}").
			noValue("None reported"),
		newGraph("Flows evicted early", "Flows per second that gave way to new ones because the table was full.", "suffix:/s", 6).
			query(topRates(of("ephemeral_port_conntrack_early_dropped_total")), "{{instance}}, {{netns}}").
			noValue("None reported"),
	}}
}

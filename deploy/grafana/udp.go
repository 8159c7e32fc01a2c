package main

// usedUDP are the thresholds of the alerts on UDP ports.
var usedUDP = []limit{{0.8, "orange"}, {0.98, "red"}}

// udpRow shows the ports of UDP sockets. It is collapsed, because most hosts use few of them: the first row
// tells when to look.
func udpRow() row {
	const (
		pool  = "job, instance, netns, family"
		by    = "max by (" + pool + ") ("
		space = " * on (job, instance, netns) group_left () "
	)
	utilization := of("ephemeral_port_udp_utilization_ratio")
	worst := "topk(10, max_over_time(" + utilization + "[1m]))"
	// ofThese returns the values of a metric of the whole network namespace for these pools.
	ofThese := func(metric string) string { return by + "(" + worst + " >= bool 0)" + space + of(metric) + ")" }
	return row{title: "UDP", collapsed: true, panels: []*panel{
		newTable("Worst UDP ports",
			"The 10 worst families of sockets by their utilization in the last minute. The ports of a family are one pool for all destinations together: at 100%, connect() and sendto() of new sockets fail. "+
				"dual_stack: IPv6 sockets that may use IPv4 too, which is the default. Owner: the control group with most of these ports, or its pod with kube-state-metrics. Only network namespaces with more UDP sockets than 1% of the capacity.",
			7, []order{{"Used", true}},
			column{field: "instance", title: "Host", properties: []property{links(toHost), width(200)}},
			column{field: "netns", title: "Namespace", properties: []property{width(160)}},
			column{field: "family", title: "Family", properties: []property{width(110)}},
			column{query: worst, title: "Used", properties: usedBar(200, usedUDP...)},
			column{query: by + of("ephemeral_port_udp_ports") + " and on (" + pool + ") " + worst + ")", title: "Ports", properties: []property{width(90)}},
			column{query: ofThese("ephemeral_port_udp_capacity_ports"), title: "Capacity", properties: []property{width(90)}},
			column{query: ofThese("ephemeral_port_udp_sockets"), title: "Sockets", properties: []property{width(90)}},
			column{field: "cgroup", title: "Owner"},
			column{query: "topk by (" + pool + ") (1, " + byOwner(pool, of("ephemeral_port_udp_owner_ports")+" and on ("+pool+") "+worst) + ")"},
		).noValue("No UDP ports reported").emptyCells("–"),
		newGraph("UDP ports in use", "Utilization by the family of a new socket: the 10 worst. The dashed lines are the thresholds of the alerts.", ratio, 12, usedUDP...).
			query(top(10, utilization), "{{instance}}: {{family}}, {{netns}}").named().
			noValue("No UDP ports reported"),
		newGraph("Owners of UDP ports", "Ports by the control group that opened the sockets, as a share of the capacity: the 10 with most. A line that only rises is a leak.", ratio, 12).
			query(byOwner(pool, top(10, of("ephemeral_port_udp_owner_ports", `family="dual_stack"`)))+" / on (job, instance, netns) group_left () "+of("ephemeral_port_udp_capacity_ports"), "{{instance}}: {{cgroup}}, {{netns}}").named().
			noValue("No UDP ports reported"),
	}}
}

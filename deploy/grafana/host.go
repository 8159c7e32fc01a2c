package main

// destinationLegend names a series of a destination of the chosen host.
const destinationLegend = "{{destination}} from {{source_ip}}, {{netns}}"

// states are what holds a port: the names, TCP states and colors of the status page.
var states = []struct{ name, tcp, color string }{
	{"open", "established|syn_recv", "#2f6fdb"},
	{"syn_sent", "syn_sent", "#8a4fd0"},
	{"close_wait", "close_wait", "#c2185b"},
	{"closing", "fin_wait1|fin_wait2|last_ack|closing", "#5e8aa3"},
	{"time_wait", "time_wait", "#cc6d00"},
	{"reusable", "", "#f0c58f"},
}

// hostRow shows the destinations of the chosen host.
func hostRow() row {
	byState := newGraph("Ports by state",
		"Ports held by outgoing connections, over all destinations with series of their own, in the colors of the status page. time_wait: ports that connect() may not take over yet. reusable: ports in TIME_WAIT that it may. closing: fin_wait1, fin_wait2, last_ack, closing. "+
			"Much time_wait: connections are not kept alive. Much close_wait: an application does not close its connections. Much syn_sent: a destination does not answer.",
		ports, 12).stacked()
	reusable := "sum(" + ofNamespaces("ephemeral_port_destination_reusable_ports") + ")"
	for _, s := range states {
		expr := "sum(" + ofNamespaces("ephemeral_port_destination_ports", `state=~"`+s.tcp+`"`) + ")"
		switch s.name {
		case "time_wait":
			expr += " - " + reusable
		case "reusable":
			expr = reusable
		}
		byState.query(expr, s.name).color(s.name, s.color)
	}
	failed, unattributed := ofNamespaces("ephemeral_port_connect_failures_total"), ofHost("ephemeral_port_connect_failures_unattributed_total")
	binds, unattributedBinds := ofNamespaces("ephemeral_port_bind_failures_total"), ofHost("ephemeral_port_bind_failures_unattributed_total")
	return row{title: "Host: $instance", panels: []*panel{
		newGraph("Utilization", "The 10 worst destinations of the host. The dashed lines are the thresholds of the alerts.", ratio, 12, used...).
			query(withDestination(top(10, ofNamespaces("ephemeral_port_destination_utilization_ratio"))), destinationLegend).named(),
		byState,
		newGraph("Load",
			"Closes per second, as a share of the rate at which the ports run out: the 10 worst destinations. At 100%, the ports run out within about a minute.",
			ratio, 8, limit{0.9, "red"}).
			query(withDestination(top(10, ofNamespaces("destination:ephemeral_port_load:ratio"))), destinationLegend).named(),
		newBars("Failed connects",
			"Calls of connect() that failed because no port was free, by destination and control group: the 10 with most. Not attributed: those without a series of their own. Only with --trace.", 8).
			query(withDestination(byOwner(pool, topFailures(failed, unattributed))), destinationLegend+", {{cgroup}}").named().
			query(failures(unattributed, unattributed, "$__interval"), "not attributed").
			noValue("Not counted"),
		newBars("Failed binds",
			"Calls of bind() with port 0 that failed because no port was free, by address and control group: the 10 with most. They have no destination. Of UDP also connect() and sendto() of a socket without a port. Only with --trace, on kernels that can tell.", 8).
			query(byOwner("job, instance, netns, protocol, source_ip", topFailures(binds, unattributedBinds)), "{{protocol}} {{source_ip}}, {{netns}}, {{cgroup}}").named().
			query(failures(unattributedBinds, unattributedBinds, "$__interval"), "not attributed").
			noValue("Not counted"),
	}}
}

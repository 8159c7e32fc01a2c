package main

// destinationLegend names a series of a destination of the chosen host.
const destinationLegend = "{{destination}} from {{source_ip}}, {{netns}}"

// states are the TCP states that hold a port, with their colors. Ports in TIME_WAIT that connect() may
// take over are green, as they are as good as free. Red is what an application leaks.
var states = []struct{ name, color string }{
	{"established", "blue"},
	{"syn_sent", "orange"},
	{"syn_recv", "light-orange"},
	{"fin_wait1", "#7a7a85"},
	{"fin_wait2", "#a2a2ad"},
	{"closing", "#c8c8d0"},
	{"last_ack", "#5a5a66"},
	{"close_wait", "red"},
	{"time_wait", "purple"},
	{"reusable", "green"},
}

// hostRow shows the destinations of the chosen host.
func hostRow() row {
	byState := newGraph("Ports by state",
		"Ports held by outgoing connections, over all destinations with series of their own. time_wait: those that connect() may not take over yet, reusable: those that it may. "+
			"Much time_wait: connections are not kept alive. Much close_wait: an application does not close its connections. Much syn_sent: a destination does not answer.",
		ports, 12).stacked()
	held, reusable := "ephemeral_port_destination_ports", ofNamespaces("ephemeral_port_destination_reusable_ports")
	byState.query("sum by (state) ("+ofNamespaces(held, `state!="time_wait"`)+")", "{{state}}")
	byState.query("sum("+ofNamespaces(held, `state="time_wait"`)+") - sum("+reusable+")", "time_wait")
	byState.query("sum("+reusable+")", "reusable")
	for _, s := range states {
		byState.color(s.name, s.color)
	}
	failed, unattributed := ofNamespaces("ephemeral_port_connect_failures_total"), ofHost("ephemeral_port_connect_failures_unattributed_total")
	return row{title: "Host: $instance", panels: []*panel{
		newGraph("Utilization", "The 10 worst destinations of the host. The dashed lines are the thresholds of the alerts.", ratio, 12, used...).
			query(withDestination(top(10, ofNamespaces("ephemeral_port_destination_utilization_ratio"))), destinationLegend).named(),
		byState,
		newGraph("Load",
			"Closes per second, as a share of the rate at which the ports run out: the 10 worst destinations. At 100%, the ports run out within about a minute.",
			ratio, 12, limit{0.9, "red"}).
			query(withDestination(top(10, ofNamespaces("destination:ephemeral_port_load:ratio"))), destinationLegend).named(),
		newBars("Failed connects",
			"Calls of connect() that failed because no port was free, by destination and control group: the 10 with most. Not attributed: those without a series of their own. Only with --connect-failures.", 12).
			query(withDestination(topFailures(failed, unattributed)), destinationLegend+", {{cgroup}}").named().
			query(failures(unattributed, unattributed, "$__interval"), "not attributed").
			noValue("Not counted"),
	}}
}

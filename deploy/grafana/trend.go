package main

// trendRow shows how all hosts came to where they are.
func trendRow() row {
	total := of("instance:ephemeral_port_connect_failures_total:sum")
	return row{title: "Trend", panels: []*panel{
		newGraph("Worst destinations",
			"The 10 destinations with the highest utilization, each the maximum of a minute. The dashed lines are the thresholds of the alerts.",
			ratio, 12, used...).
			query(withDestination(top(10, of("destination:ephemeral_port_worst_utilization:max1m"))),
				"{{instance}}: "+destinationLegend).named(),
		newGraph("Worst hosts",
			"Utilization of the worst destination of a host, reported or not, the maximum of a minute: the 10 worst hosts.",
			ratio, 12, used...).
			query(top(10, of("instance:ephemeral_port_utilization:max1m")), "{{instance}}"),
		newGraph("Load of the worst hosts",
			"Closes per second, as a share of the rate at which the ports run out: the worst destination of each of the 10 worst hosts. At 100%, the ports run out within about a minute.",
			ratio, 12, limit{0.9, "red"}).
			query(top(10, of("instance:ephemeral_port_load:max")), "{{instance}}"),
		newBars("Failed connects by host",
			"Calls of connect() that failed because no port was free, of the 10 hosts with most. Only with --trace.", 12).
			query(topFailures(total, total), "{{instance}}").
			noValue("Not counted"),
	}}
}

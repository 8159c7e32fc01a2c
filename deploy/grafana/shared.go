package main

// sharedRow shows the destinations that several hosts connect to.
func sharedRow() row {
	return row{title: "Shared destinations", panels: []*panel{
		newGraph("Ports in use over all hosts",
			"Ports that all hosts hold to a destination, as a share of what they have: the 10 worst of the destinations that several hosts connect to.",
			ratio, 12, used...).
			query(withDestination(top(10, of("job_destination:ephemeral_port_shared_utilization:ratio"))), "{{destination}}").
			noValue("No destination is shared"),
		newGraph("Hosts over 50%",
			"Number of hosts on which more than half of the ports to a destination are in use. If it is more than one, look at the destination first: it may be slow.",
			ports, 12).
			query(withDestination(top(10, of("job_destination:ephemeral_port_instances_over_half:count"))), "{{destination}}").
			noValue("No host is over 50%"),
	}}
}

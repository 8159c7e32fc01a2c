package main

// exporterRow shows what the exporter of the chosen host costs, and what it could not do.
func exporterRow() row {
	return row{title: "Exporter on $instance", collapsed: true, panels: []*panel{
		newGraph("Collection time", "Time to read a network namespace, and with --snat its flows: the 10 slowest.", seconds, 8).
			query(top(10, ofNamespaces("ephemeral_port_collect_duration_seconds")), "{{netns}}").
			query(top(10, ofNamespaces("ephemeral_port_snat_collect_duration_seconds")), "{{netns}}: source NAT"),
		newGraph("Sockets read", "TCP sockets with a local port in the range, which the kernel lists, and with --snat flows of source NAT: the 10 network namespaces with most.", ports, 8).
			query(top(10, ofNamespaces("ephemeral_port_collect_sockets")), "{{netns}}").
			query(top(10, ofNamespaces("ephemeral_port_snat_collect_flows")), "{{netns}}: flows"),
		newGraph("Answers", "1: the exporter answered, could read the TCP and UDP sockets of its own network namespace, with --snat its flows, and with --trace the counts of failed connects, failed binds and closes.", ports, 8).
			query(ofHost("up"), "exporter").
			query(ofHost("ephemeral_port_collect_success", `netns="self"`), "TCP").
			query(ofHost("ephemeral_port_udp_collect_success", `netns="self"`), "UDP").
			query(ofHost("ephemeral_port_snat_collect_success", `netns="self"`), "source NAT").
			query(ofHost("ephemeral_port_snat_cilium_collect_success", `netns="self"`), "source NAT of Cilium").
			query(ofHost("ephemeral_port_trace_collect_success"), "trace"),
		newGraph("CPU", "CPU time of the exporter.", ratio, 6).
			query("rate("+ofHost("process_cpu_seconds_total")+"[$__rate_interval])", "CPU").axisTo(0.1),
		newGraph("Memory", "Resident memory of the exporter.", memory, 6).
			query(ofHost("process_resident_memory_bytes"), "resident"),
		newGraph("Tables of the trace", "Part of the eBPF programs' tables that is in use: of pools with failed connects and binds, and of pools with closes. At 100%, events in further pools are not attributed. Only with --trace.", ratio, 6, limit{1, "red"}).
			query(ofHost("ephemeral_port_trace_table_utilization_ratio"), "{{table}}").
			noValue("Not counted"),
		newGraph("Not seen by the trace", "Changes of state of sockets per second that the eBPF programs did not see. Few of them are failed connects or closes. Only with --trace, from Linux 6.1 on.", "suffix:/s", 6).
			query("rate("+ofHost("ephemeral_port_trace_missed_runs_total")+"[$__rate_interval])", "missed").
			noValue("Not counted"),
	}}
}

package main

// worstRow lists the destinations in most danger.
func worstRow() row {
	const worst = "topk(20, destination:ephemeral_port_worst_utilization:max1m{job=~\"$job\"})"
	// ofThese returns the values of an expression for these destinations.
	ofThese := func(expr string) string {
		return "sum by (" + pool + ") ((" + expr + ") and on (" + pool + ") " + worst + ")"
	}
	by := func(expr string) string { return withDestination(ofThese(expr)) }
	share := func(expr string) string { return withDestination(shareOfCapacity(ofThese(expr))) }
	in := func(state string) string { return of("ephemeral_port_destination_ports", `state="`+state+`"`) }
	failed := failures(of("ephemeral_port_connect_failures_total"), of("ephemeral_port_connect_failures_unattributed_total"), "5m")
	// Connections in TIME_WAIT have no owner. Where closes are not traced, it is the last one seen, or the one whose
	// connects fail.
	owner := func(metric string) string {
		return "topk by (" + pool + ") (1, sum by (" + pool + ", cgroup) (" + podAsOwner("max_over_time("+of(metric, `cgroup!=""`)+"[5m])") + " and on (" + pool + ") " + worst + "))"
	}
	filler := "topk by (" + pool + ") (1, sum by (" + pool + ", cgroup) ((" + withPod("max_over_time("+of("destination:ephemeral_port_filled_by:ratio", `cgroup!=""`)+"[5m])", "cgroup") + ") and on (" + pool + ") " + worst + "))"
	owners := "(" + filler + ") or on (" + pool + ") (" + owner("destination_owner:ephemeral_port_worst_owner_ports:relabel") + ") or on (" + pool + ") (" + owner("destination_owner:ephemeral_port_worst_connect_failures_total:relabel") + ")"
	leak := colored(limit{0.2, "red"})
	return row{title: "Worst destinations", panels: []*panel{
		newTable("Worst destinations",
			"The 20 destinations with the highest utilization in the last minute. Open to Reusable: ports in these states, as a share of the capacity. Open: in any state but TIME_WAIT, so also in CLOSE_WAIT and SYN_SENT. "+
				"Reusable: in TIME_WAIT, and connect() may take them over. Load: closes per second, as a share of the rate at which the ports run out. "+
				"Full in: forecast at the present rate of closes, which does not know of connections that stay open. Failed: connects in the last 5 minutes. Filled by: the control group with most closes, where most ports are in TIME_WAIT and --trace counts them, else with most open connections in the last 5 minutes, else with most failed connects. With kube-state-metrics, it is the pod, and Service is the service of Kubernetes that has the address. "+
				"Timestamps: whether the peer uses them, without which tcp_tw_reuse has no effect. A destination leads to the status page of its host.",
			11, []order{{"Used", true}},
			column{field: "instance", title: "Host", properties: []property{links(toHost), width(140)}},
			column{field: "netns", title: "Namespace", properties: []property{width(98)}},
			column{field: "source_ip", title: "Source", properties: []property{width(100)}},
			column{field: "destination", title: "Destination", properties: []property{links(toStatus), width(150)}},
			column{field: "service", title: "Service", properties: []property{width(130)}},
			column{query: withDestination(worst), title: "Used", properties: usedBar(115, used...)},
			column{query: by(of("destination:ephemeral_port_open:ratio")), title: "Open", properties: []property{unit(ratio), decimals(0), width(60)}},
			column{query: share(in("close_wait")), title: "CLOSE_WAIT", properties: []property{unit(ratio), decimals(0), width(105), leak, cell("color-text")}},
			column{query: share(in("syn_sent")), title: "SYN_SENT", properties: []property{unit(ratio), decimals(0), width(90), leak, cell("color-text")}},
			column{query: share(in("time_wait")), title: "TIME_WAIT", properties: []property{unit(ratio), decimals(0), width(90)}},
			column{query: share(of("ephemeral_port_destination_reusable_ports")), title: "Reusable", properties: []property{unit(ratio), decimals(0), width(80)}},
			column{query: by(of("destination:ephemeral_port_load:ratio")), title: "Load", properties: []property{
				unit(ratio), decimals(0), width(60), colored(limit{0.9, "red"}), cell("color-text"),
			}},
			column{query: by(of("ephemeral_port_destination_sure_exhaustion_seconds")), title: "Full in", properties: []property{
				unit(seconds), decimals(0), width(70), {"thresholds", steps("red", nil)}, cell("color-text"),
				mappings(
					map[string]any{"type": "value", "options": map[string]any{"0": map[string]any{"text": "now"}}},
					map[string]any{"type": "range", "options": map[string]any{"from": 3600, "to": nil, "result": map[string]any{"text": "–", "color": "text"}}},
				),
			}},
			column{query: by(failed), title: "Failed", properties: []property{width(70), colored(limit{1, "red"}), cell("color-text")}},
			column{query: by(of("ephemeral_port_destination_timestamps")), title: "Timestamps", properties: []property{
				width(100), valueText(map[string]string{"0": "no", "1": "yes"}),
			}},
			column{field: "cgroup", title: "Filled by"},
			column{query: withDestination(owners)},
			column{query: "sum by (" + pool + ", destination, service) (" + withDestination(withService("(0 * "+worst+")")) + ")"}),
	}}
}

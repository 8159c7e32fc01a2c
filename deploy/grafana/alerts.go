package main

import (
	"fmt"
	"strconv"
)

// alertsRow lists the alerts that fire.
func alertsRow() row {
	// Severities are numbers, the worst one first: a table sorts by them, and shows their names.
	expr, names := "topk(200, "+ourAlerts("ALERTS_FOR_STATE")+" and ignoring (alertstate) "+ourAlerts("ALERTS", `alertstate="firing"`)+")", map[string]any{}
	for i, s := range []struct{ severity, color string }{{"critical", "red"}, {"warning", "orange"}, {"info", "blue"}} {
		expr = fmt.Sprintf(`label_replace(%s, "severity", "%d", "severity", "%s")`, expr, i+1, s.severity)
		names[strconv.Itoa(i+1)] = map[string]any{"text": s.severity, "color": s.color, "index": i}
	}
	severity := mappings(map[string]any{"type": "value", "options": names})
	return row{title: "Firing alerts", panels: []*panel{
		newTable("Firing alerts",
			"The alerts of the rules that fire now, the latest 200 of them. A host leads to its row below, a destination to the status page of its host, an alert to the runbook.",
			8, []order{{"Severity", false}, {"Since", true}},
			column{field: "severity", title: "Severity", properties: []property{severity, cell("color-background"), width(90)}},
			column{field: "alertname", title: "Alert", properties: []property{links(toRunbook), width(340)}},
			column{field: "instance", title: "Host", properties: []property{links(toHost), width(170)}},
			column{field: "netns", title: "Namespace", properties: []property{width(120)}},
			column{field: "source_ip", title: "Source", properties: []property{width(140)}},
			column{field: "destination", title: "Destination", properties: []property{links(toStatus), width(190)}},
			column{field: "protocol", title: "Protocol", properties: []property{width(100)}},
			column{field: "cgroup", title: "Owner"},
			column{
				// An alert on UDP has a family of sockets for a protocol.
				query: "1000 * label_join(" + withDestination(withPod(expr, "cgroup")) + `, "protocol", "", "protocol", "family")`,
				title: "Since", properties: []property{unit("dateTimeFromNow"), width(140)},
			}).
			noValue("No alert fires").
			emptyCells("–"),
	}}
}

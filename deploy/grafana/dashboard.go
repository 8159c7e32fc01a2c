package main

// uid is the last part of the dashboard's address.
const uid = "ephemeral-ports"

// newDashboard returns the dashboard.
func newDashboard() dashboard {
	return dashboard{
		Title:         "Ephemeral ports",
		UID:           uid,
		Description:   "Shows which destination runs out of source ports, on which host, and why. The data is from ephemeral_port_exporter and its recording rules.",
		Tags:          []string{"network", "tcp", "ephemeral_port"},
		SchemaVersion: 39,
		Editable:      true,
		GraphTooltip:  1,
		Refresh:       "30s",
		Time:          timeRange{From: "now-1h", To: "now"},
		Annotations:   listOf[any]{List: annotations()},
		Templating:    listOf[any]{List: variables()},
		Panels: layout([]row{
			nowRow(),
			alertsRow(),
			worstRow(),
			trendRow(),
			sharedRow(),
			natRow(),
			udpRow(),
			hostRow(),
			causesRow(),
			namespacesRow(),
			exporterRow(),
		}),
		Links: []dashboardLink{
			{Title: "Status page of $instance", Type: "link", URL: "$scheme://$instance/", TargetBlank: true},
			{Title: "Runbook", Type: "link", URL: "$scheme://$instance/runbook", TargetBlank: true},
		},
	}
}

// ourAlerts selects alerts of ../prometheus/rules.yml.
func ourAlerts(metric string, matchers ...string) string {
	return of(metric, append([]string{`alertname=~"EphemeralPort.*"`}, matchers...)...)
}

// annotations marks when alerts began to fire. Alerts of the same name are one, whatever their number.
func annotations() []any {
	var list []any
	for _, severity := range []struct{ name, value, color string }{
		{"Critical alerts", "critical", "red"},
		{"Warnings", "warning", "orange"},
	} {
		firing := ourAlerts("ALERTS", `alertstate="firing"`, `severity="`+severity.value+`"`)
		list = append(list, annotation{
			Name: severity.name, Datasource: fromVariable, Enable: true, IconColor: severity.color, Step: "60s",
			Expr:        "count by (alertname) (" + firing + " unless " + firing + " offset 60s)",
			TitleFormat: "{{alertname}}",
		})
	}
	return list
}

// variables are the choices above the dashboard.
func variables() []any {
	query := func(name, label, q string) variable {
		return variable{
			Name: name, Label: label, Type: "query", Datasource: &fromVariable,
			Query: variableQuery{Query: q, RefID: name}, Definition: q, Refresh: 2, Sort: 1,
		}
	}
	job := query("job", "Job", "label_values(ephemeral_port_collect_success, job)")
	job.Multi, job.IncludeAll = true, true

	// The worst host comes first, and is the one that is shown. Those without numbers come last.
	utilization := of("instance:ephemeral_port_utilization:max1m")
	instance := query("instance", "Host",
		"query_result(sort_desc(max by (instance) ("+utilization+") or max by (instance) ("+of("up")+") * 0 - 1))")
	instance.Regex, instance.Sort = `/instance="([^"]+)"/`, 0

	netns := query("netns", "Namespace", "label_values("+ofHost("ephemeral_port_collect_success")+", netns)")
	netns.Multi, netns.IncludeAll, netns.AllValue = true, true, ".*"

	return []any{
		variable{Name: "datasource", Label: "Data source", Type: "datasource", Query: "prometheus", Refresh: 1},
		job, instance, netns,
		variable{Name: "scheme", Label: "Exporters have", Type: "custom", Query: "http,https"},
	}
}

// The links of a table row, by the titles of its columns.
var (
	toHost = link{
		Title: "Show this host",
		URL:   "/d/" + uid + "?${datasource:queryparam}&${job:queryparam}&${scheme:queryparam}&var-instance=${__data.fields.Host:percentencode}&${__url_time_range}",
	}
	toStatus = link{
		Title: "Status page: what holds its ports, and what to do",
		URL:   "$scheme://${__data.fields.Host}/?destination=${__data.fields.Destination:percentencode}", TargetBlank: true,
	}
	toRunbook = link{Title: "Runbook", URL: "$scheme://${__data.fields.Host}/runbook#${__data.fields.Alert}", TargetBlank: true}
)

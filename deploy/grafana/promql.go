package main

import (
	"fmt"
	"strings"
)

// pool are the labels of a destination.
const pool = "job, instance, netns, source_ip, destination_ip, destination_port"

// of returns a selector for the series of all hosts, with further matchers.
func of(metric string, matchers ...string) string {
	return metric + "{" + strings.Join(append([]string{`job=~"$job"`}, matchers...), ", ") + "}"
}

// ofHost returns a selector for the series of the chosen host. The data source escapes a variable with one
// value for a string, not for a regular expression: "=~" would not match "[::1]:10149".
func ofHost(metric string, matchers ...string) string {
	return of(metric, append([]string{`instance="$instance"`}, matchers...)...)
}

// ofNamespaces returns a selector for the series of the chosen network namespaces of the host.
func ofNamespaces(metric string, matchers ...string) string {
	return ofHost(metric, append([]string{`netns=~"$netns"`}, matchers...)...)
}

// top returns the n series with the greatest maximum in the range of the dashboard. A plain topk()
// decides anew at each step, and returns many series that come and go.
func top(n int, selector string) string {
	return fmt.Sprintf("(%s and topk(%d, max_over_time(%s[$__range] @ end())))", selector, n, selector)
}

// topRates returns the rates of the 10 counters that increase most in the range of the dashboard. Counters
// that do not increase are left out.
func topRates(selector string) string {
	return fmt.Sprintf("(rate(%[1]s[$__rate_interval]) and topk(10, increase(%[1]s[$__range] @ end()) > 0))", selector)
}

// none is 0 if the series of a selector exist. So there is no data rather than a 0 if nothing is known.
func none(selector string) string {
	return "0 * count(" + selector + ")"
}

// withDestination adds the label destination, such as 10.0.0.2:443 or [2001:db8::2]:443.
func withDestination(expr string) string {
	expr = fmt.Sprintf(`label_replace(%s, "destination_ip", "[$1]", "destination_ip", "(.*:.*)")`, expr)
	expr = fmt.Sprintf(`label_join(%s, "destination", ":", "destination_ip", "destination_port")`, expr)
	return fmt.Sprintf(`label_replace(%s, "destination", "", "destination", ":")`, expr) // of no destination
}

// withPod puts the namespace and the name of its pod, such as shop/cart-1, into a label of each series whose pod_uid
// kube-state-metrics knows. The others stay as they are.
func withPod(expr, label string) string {
	return fmt.Sprintf(`label_join((%[1]s) * on (pod_uid) group_left (pod_namespace, pod_name) %[2]s, "%[3]s", "/", "pod_namespace", "pod_name") or (%[1]s) unless on (pod_uid) %[2]s`,
		expr, "pod_uid:ephemeral_port_kube_pod_info:relabel", label)
}

// podAsOwner does that for a recorded metric that has the namespace and the name already: its owner is the pod.
func podAsOwner(expr string) string {
	return fmt.Sprintf(`label_replace(label_join(%s, "pod", "/", "pod_namespace", "pod_name"), "cgroup", "$1", "pod", "(.+/.+)")`, expr)
}

// byOwner sums up what has these labels and the same owner: that is the pod of a control group, else the control group.
func byOwner(labels, expr string) string {
	return "sum by (" + labels + ", cgroup) (" + withPod(expr, "cgroup") + ")"
}

// withService keeps the series whose destination_ip is the address of a service that kube-state-metrics knows, and adds
// its namespace and name as the label service.
func withService(expr string) string {
	return "label_join(" + expr + ` * on (job, instance, destination_ip) group_left (service_namespace, service_name) instance_destination:ephemeral_port_kube_service_info:relabel, "service", "/", "service_namespace", "service_name")`
}

// failures returns how many connects failed during a time until now. A series starts at its current
// count, and ends if none failed for 15 minutes. So it is one of these:
//   - the difference from the last scrape before that time. A lost scrape adds nothing;
//   - else the whole count, if the exporter was scraped before: the series is new, or began anew;
//   - else the difference from the lowest count in that time.
//
// The exporter is a series that each scrape has.
func failures(selector, exporter, during string) string {
	before := func(s string) string { return fmt.Sprintf("last_over_time(%s[15m] offset %s)", s, during) }
	return fmt.Sprintf("%[1]s - %[2]s >= 0 or %[1]s + 0 and on (job, instance) %[3]s or %[1]s - min_over_time(%[1]s[%[4]s])",
		selector, before(selector), before(exporter), during)
}

// topFailures returns the failures in each interval, for the 10 series with most.
func topFailures(selector, exporter string) string {
	return fmt.Sprintf("(%s) and topk(10, max_over_time(%s[$__range] @ end()))", failures(selector, exporter, "$__interval"), selector)
}

// shareOfCapacity divides ports by the ports that each pool of the network namespace has.
func shareOfCapacity(expr string) string {
	return "(" + expr + ") / on (job, instance, netns) group_left () (" + of("ephemeral_port_capacity_ports") + " > 0)"
}

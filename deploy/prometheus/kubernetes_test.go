//go:build linux

package prometheus

import (
	"fmt"
	"strings"
	"testing"
)

// A kubeScrape is how Prometheus scrapes kube-state-metrics: the labels that it adds, and whether it honors those of
// kube-state-metrics that have the same names.
type kubeScrape struct {
	target string
	honors bool
}

// labels returns labels of kube-state-metrics, as Prometheus stores them.
func (s kubeScrape) labels(labels string) string {
	labels = ", " + labels
	for label := range strings.SplitSeq(s.target, ", ") {
		name, _, _ := strings.Cut(label, "=")
		switch conflict := strings.Contains(labels, ", "+name+"="); {
		case conflict && s.honors:
			continue
		case conflict:
			labels = strings.Replace(labels, ", "+name+"=", ", exported_"+name+"=", 1)
		}
		labels += ", " + label
	}
	return strings.TrimPrefix(labels, ", ")
}

// kube adds the series of kube-state-metrics 2.15 about a pod and services of a cluster. api is the UID of the service
// of the API server.
func (r *rulesTest) kube(s kubeScrape, api string) {
	for _, labels := range []string{
		`namespace="shop", pod="cart-7d4b9c6f5-x2k8p", uid="3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", host_ip="10.0.0.1", pod_ip="10.1.0.7", node="worker-1", created_by_kind="ReplicaSet", created_by_name="cart-7d4b9c6f5", priority_class="", host_network="false"`,
		`namespace="shop", pod="without-series", uid="77777777-5b6d-4e7f-8a9b-0c1d2e3f4a5b", host_ip="10.0.0.1", pod_ip="10.1.0.8", node="worker-1", created_by_kind="ReplicaSet", created_by_name="without", priority_class="", host_network="false"`,
		`namespace="shop", pod="pending", uid="88888888-5b6d-4e7f-8a9b-0c1d2e3f4a5b", host_ip="", pod_ip="", node="", created_by_kind="<none>", created_by_name="<none>", priority_class="", host_network="false"`,
	} {
		r.add("kube_pod_info", s.labels(labels), repeat("1"))
	}
	for _, labels := range []string{
		`namespace="default", service="kubernetes", uid="` + api + `", cluster_ip="10.96.0.1", external_name="", load_balancer_ip="", external_traffic_policy=""`,
		`namespace="shop", service="db", uid="aaaaaaaa-0000-4e7f-8a9b-0c1d2e3f4a5b", cluster_ip="10.96.7.7", external_name="", load_balancer_ip="", external_traffic_policy=""`,
		`namespace="shop", service="db6", uid="bbbbbbbb-0000-4e7f-8a9b-0c1d2e3f4a5b", cluster_ip="fd00:10:96::7", external_name="", load_balancer_ip="", external_traffic_policy="Cluster"`,
		`namespace="shop", service="headless", uid="cccccccc-0000-4e7f-8a9b-0c1d2e3f4a5b", cluster_ip="None", external_name="", load_balancer_ip="", external_traffic_policy=""`,
		`namespace="shop", service="headless-2", uid="dddddddd-0000-4e7f-8a9b-0c1d2e3f4a5b", cluster_ip="None", external_name="", load_balancer_ip="", external_traffic_policy=""`,
		`namespace="shop", service="outside", uid="eeeeeeee-0000-4e7f-8a9b-0c1d2e3f4a5b", cluster_ip="", external_name="db.example.com", load_balancer_ip="", external_traffic_policy=""`,
	} {
		r.add("kube_service_info", s.labels(labels), repeat("1"))
	}
}

// exporter adds the series of an exporter with a pod that has connections to two services and to another address.
func (r *rulesTest) exporter(target string) {
	r.add("ephemeral_port_exporter_build_info", target+`, version="1"`, repeat("1"))
	for _, ip := range []string{"10.96.7.7", "fd00:10:96::7", "203.0.113.9"} {
		to := target + fmt.Sprintf(`, netns="cni-1", source_ip="10.1.0.7", destination_ip=%q, destination_port="5432"`, ip)
		r.add("ephemeral_port_destination_utilization_ratio", to, repeat("0.9"))
		for _, owner := range []string{`, cgroup="/kubepods/pod3f8e", pod_uid="3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", container_id="9b1c"`, `, cgroup="/system.slice/a.service", pod_uid="", container_id=""`} {
			r.add("ephemeral_port_destination_owner_ports", to+owner, repeat("20"))
			r.add("ephemeral_port_connect_failures_total", to+owner, repeat("3"))
		}
	}
	// A static pod, whose UID the API does not know.
	r.add("ephemeral_port_netns_info", target+`, netns="cni-2", pod_uid="0123456789abcdef0123456789abcdef"`, repeat("1"))
}

const (
	honoredKube  = `job="kube-state-metrics", instance="10.1.0.3:8080", namespace="monitoring", pod="kube-state-metrics-0", service="kube-state-metrics"`
	secondKube   = `job="kube-state-metrics", instance="10.1.0.4:8080", namespace="monitoring", pod="kube-state-metrics-1", service="kube-state-metrics"`
	onNode       = `job="ephemeral-port-exporter", instance="10.0.0.1:10149", namespace="monitoring", pod="ephemeral-port-exporter-abcde", node="worker-1"`
	onNodeByIP   = `job="ephemeral_port", instance="10.0.0.1:10149"`
	onNodeByName = `job="ephemeral_port", instance="https://worker-1", node="worker-1"`
	elsewhere    = `job="ephemeral_port", instance="10.0.9.9:10149"`
)

// TestKubernetesNames checks the names of pods and services on series of kube-state-metrics: as it is scraped in
// most clusters, twice, without honor_labels, for several clusters, and not at all. A name that is not sure is absent.
func TestKubernetesNames(t *testing.T) {
	const api, other = "11111111-0000-4e7f-8a9b-0c1d2e3f4a5b", "22222222-0000-4e7f-8a9b-0c1d2e3f4a5b"
	var tests []rulesTest
	for _, tc := range []struct {
		name      string
		exporters []string
		kube      map[kubeScrape]string // the UID of the API server's service by scrape
		pods      int                   // with names
		named     []string              // exporters whose destinations have names of services
	}{
		{"none", []string{onNode}, nil, 0, nil},
		{"honored", []string{onNode}, map[kubeScrape]string{{honoredKube, true}: api}, 1, []string{"10.0.0.1:10149"}},
		{"not honored", []string{onNodeByIP}, map[kubeScrape]string{{honoredKube, false}: api}, 1, []string{"10.0.0.1:10149"}},
		{"two replicas", []string{onNode}, map[kubeScrape]string{{honoredKube, true}: api, {secondKube, true}: api}, 1, []string{"10.0.0.1:10149"}},
		{"two replicas, not honored", []string{onNode}, map[kubeScrape]string{{honoredKube, false}: api, {secondKube, false}: api}, 1, []string{"10.0.0.1:10149"}},
		{"one honored and one not", []string{onNode}, map[kubeScrape]string{{honoredKube, true}: api, {secondKube, false}: api}, 1, []string{"10.0.0.1:10149"}},
		{"two Prometheus jobs, another name of the instance", []string{onNode, onNodeByName}, map[kubeScrape]string{{honoredKube, true}: api}, 1, []string{"10.0.0.1:10149", "https://worker-1"}},
		{"a host that is no node", []string{elsewhere}, map[kubeScrape]string{{honoredKube, true}: api}, 1, nil},
		{"clusters by label", []string{onNode + `, cluster="a"`, elsewhere + `, cluster="b"`}, map[kubeScrape]string{{honoredKube + `, cluster="a"`, true}: api, {secondKube + `, cluster="b"`, true}: other}, 1, []string{"10.0.0.1:10149"}},
		{"an exporter without the label of its cluster", []string{onNode}, map[kubeScrape]string{{honoredKube + `, cluster="a"`, true}: api}, 1, nil},
		{"clusters without a label", []string{onNode}, map[kubeScrape]string{{honoredKube, true}: api, {secondKube, true}: other}, 1, nil},
		{"clusters without a label, not honored", []string{onNode}, map[kubeScrape]string{{honoredKube, false}: api, {secondKube, false}: other}, 1, nil},
		{"an instance in two clusters", []string{onNode + `, cluster="a"`, onNode + `, cluster="b"`}, map[kubeScrape]string{{honoredKube + `, cluster="a"`, true}: api, {secondKube + `, cluster="b"`, true}: other}, 1, nil},
	} {
		test := rulesTest{Name: tc.name}
		for _, target := range tc.exporters {
			test.exporter(target)
		}
		for scrape, uid := range tc.kube {
			test.kube(scrape, uid)
		}
		want := map[string]float64{}
		if tc.pods > 0 {
			want[`pod_uid:ephemeral_port_kube_pod_info:relabel{pod_uid="3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", pod_namespace="shop", pod_name="cart-7d4b9c6f5-x2k8p"}`] = 1
		}
		test.expect("pod_uid:ephemeral_port_kube_pod_info:relabel", want)
		n := float64(3 * len(tc.exporters))
		want = map[string]float64{"{}": 2 * n}
		if tc.pods > 0 {
			want = map[string]float64{"{}": n, `{pod_namespace="shop", pod_name="cart-7d4b9c6f5-x2k8p"}`: n}
		}
		test.expect("count by (pod_namespace, pod_name) (destination_owner:ephemeral_port_worst_owner_ports:relabel)", want)
		test.expect("count by (pod_namespace, pod_name) (destination_owner:ephemeral_port_worst_connect_failures_total:relabel)", want)
		want = map[string]float64{}
		for _, instance := range tc.named {
			for ip, service := range map[string]string{"10.96.7.7": "db", "fd00:10:96::7": "db6"} {
				want[fmt.Sprintf(`{instance=%q, destination_ip=%q, service_namespace="shop", service_name=%q}`, instance, ip, service)] = 1
			}
		}
		test.expect("group by (instance, destination_ip, service_namespace, service_name) (instance_destination:ephemeral_port_kube_service_info:relabel)", want)
		tests = append(tests, test)
	}

	// An address that two services have: one of them was removed a moment ago.
	test := rulesTest{Name: "two services"}
	test.exporter(onNode)
	test.kube(kubeScrape{honoredKube, true}, api)
	test.add("kube_service_info", kubeScrape{honoredKube, true}.labels(`namespace="shop", service="old-db", uid="ffffffff-0000-4e7f-8a9b-0c1d2e3f4a5b", cluster_ip="10.96.7.7"`), repeat("1"))
	test.expect("count by (service_name) (instance_destination:ephemeral_port_kube_service_info:relabel)", map[string]float64{`{service_name="db6"}`: 1})
	tests = append(tests, test)

	// A second kube-state-metrics whose names a rule of the scrape removed: joins must not fail.
	test = rulesTest{Name: "names removed"}
	test.exporter(onNode)
	test.kube(kubeScrape{honoredKube, true}, api)
	test.add("kube_pod_info", secondKube+`, uid="3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b"`, repeat("1"))
	test.add("kube_service_info", secondKube+`, uid="aaaaaaaa-0000-4e7f-8a9b-0c1d2e3f4a5b", cluster_ip="10.96.7.7"`, repeat("1"))
	test.expect("count by (pod_uid) (pod_uid:ephemeral_port_kube_pod_info:relabel)", map[string]float64{`{pod_uid="3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b"}`: 1})
	test.expect("count by (destination_ip) (instance_destination:ephemeral_port_kube_service_info:relabel)", map[string]float64{`{destination_ip="10.96.7.7"}`: 1, `{destination_ip="fd00:10:96::7"}`: 1})
	tests = append(tests, test)
	for i := range tests {
		for j := range tests[i].Exprs {
			tests[i].Exprs[j].Time = "3m" // that is enough: nothing here looks back
		}
	}
	testRules(t, "1m", tests...)
}

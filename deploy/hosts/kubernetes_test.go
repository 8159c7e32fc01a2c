//go:build kubernetes

package hosts

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// The chart, as install.md installs it.
const (
	release   = "ephemeral-port-exporter"
	namespace = "--namespace ephemeral-port-exporter"
	upgrade   = "cd $RELEASE && helm upgrade " + release + " ephemeral-port-exporter-*.tgz " + namespace
)

// jsonpath returns a field of a pod.
func jsonpath(t *testing.T, pod, field string) string {
	t.Helper()
	return must(t, "kubectl get pod "+pod+" --output jsonpath={"+field+"}")
}

// id returns the ID of the container of a pod.
func id(t *testing.T, pod string) string {
	t.Helper()
	return strings.TrimPrefix(jsonpath(t, pod, ".status.containerStatuses[0].containerID"), "containerd://")
}

// address returns the address of a pod.
func address(t *testing.T, pod string) string {
	t.Helper()
	return jsonpath(t, pod, ".status.podIP")
}

// uid returns the label with the UID of a pod.
func uid(t *testing.T, pod string) string {
	t.Helper()
	return `pod_uid="` + jsonpath(t, pod, ".metadata.uid") + `"`
}

// checkMetrics waits until the metrics have samples.
func checkMetrics(t *testing.T, samples func(metrics string) []sample) {
	t.Helper()
	if err := eventually(30*time.Second, func() error {
		metrics, err := get("/metrics")
		if err != nil {
			return err
		}
		var problems []error
		for _, s := range samples(metrics) {
			problems = append(problems, find(metrics, s))
		}
		return errors.Join(problems...)
	}); err != nil {
		t.Error(err)
	}
}

// checkPod checks that the exporter's pod became ready without a restart, and that nothing warns.
func checkPod(t *testing.T) {
	t.Helper()
	must(t, "kubectl rollout status --timeout=90s daemonset/"+release+" "+namespace)
	if got := must(t, "kubectl get pods --no-headers "+namespace+" --field-selector=status.phase!=Succeeded --output custom-columns=:.status.containerStatuses[0].ready,:.status.containerStatuses[0].restartCount,:.metadata.deletionTimestamp"); strings.Join(strings.Fields(got), " ") != "true 0 <none>" {
		t.Errorf("ready, restarts, deletion of the pods: %s", got)
	}
	log := must(t, "kubectl logs --tail=-1 daemonset/"+release+" "+namespace)
	if strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") || !strings.Contains(log, "Listening on") {
		t.Errorf("log:\n%s", log)
	}
	if events := must(t, "kubectl get events --field-selector=type=Warning "+namespace+" --output custom-columns=:.reason,:.message --no-headers"); events != "" {
		t.Errorf("events:\n%s", events)
	}
}

// checkLog waits until the log of a pod has a line.
func checkLog(t *testing.T, pod, line string) {
	t.Helper()
	if err := ready("kubectl logs " + pod + " | grep -Fx '" + line + "'"); err != nil {
		t.Fatal(err)
	}
}

// install installs the chart by the lines of install.md.
func install(t *testing.T) {
	t.Helper()
	commands := block(t, installFile, "Then install the chart from the same folder")
	imported := strings.Replace(commands, " \\\n  --set image.repository=registry.example.com/ephemeral_port_exporter", "", 1)
	if imported == commands {
		t.Fatalf("no --set image.repository, which install.md says to leave out, in\n%s", commands)
	}
	must(t, "cd $RELEASE && "+imported)
}

// TestChart installs the chart, upgrades it to each mode and to a newer release, and removes it.
func TestChart(t *testing.T) {
	for name, w := range workloads {
		if err := apply(pod(name, w.host, w.ports, "hold "+w.hold)); err != nil {
			t.Fatal(err)
		}
	}
	for name, w := range workloads {
		checkLog(t, name, w.ready)
	}
	install(t)
	for _, mode := range []struct {
		name, values string
		flags        []string
	}{
		{"default", "", nil},
		{"namespaces", "--set namespaces=all", []string{"--namespaces=all"}},
		{"trace", "--set trace=true", []string{"--trace"}},
		{"exact", "--set exact=true", nil},
		{"snat", "--set snat=true", []string{"--snat"}},
		{"everything", "--set namespaces=all,trace=true,exact=true,snat=true,podNames=true", []string{"--namespaces=all", "--trace", "--snat"}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			if mode.values != "" {
				must(t, upgrade+" "+mode.values)
			}
			checkPod(t)
			checkMetrics(t, func(metrics string) []sample {
				all := samples(t, "", metrics)
				for _, flag := range mode.flags {
					all = append(all, samples(t, flag, metrics)...)
				}
				return append(all, sample{"destination_owner_ports", `container_id="` + id(t, "hostnet") + `" destination_port="8082" ` + uid(t, "hostnet"), "250"})
			})
		})
	}
	// The release now does everything.
	t.Run("names", testNames)
	t.Run("service", testService)
	t.Run("new pod", testNewPod)
	t.Run("node ports", testNodePorts)
	t.Run("upgrade", func(t *testing.T) {
		must(t, strings.ReplaceAll(lines(installFile, `^ctr -n k8s.io images import `)[0], "ephemeral_port", "$NEWER/ephemeral_port"))
		must(t, strings.Replace(upgrade, "$RELEASE", "$NEWER", 1)+" --reuse-values")
		checkPod(t)
		checkMetrics(t, func(string) []sample { return []sample{{"exporter_build_info", `version="99.0.0"`, "1"}} })
	})
	t.Run("uninstall", func(t *testing.T) {
		must(t, "helm uninstall --wait "+release+" "+namespace)
		for _, line := range []string{
			"kubectl get --no-headers daemonsets,pods,services,secrets " + namespace,
			"set -o pipefail; kubectl get --no-headers serviceaccounts,configmaps " + namespace + " | sed '/\\/default /d; /\\/kube-root-ca.crt /d'",
			"set -o pipefail; kubectl get --no-headers clusterroles,clusterrolebindings,customresourcedefinitions,priorityclasses | sed -n /" + release + "/p",
			"set -o pipefail; ctr -n k8s.io containers ls | sed -n /ephemeral_port/p",
			"pgrep -l ephemeral_port || [ $? = 1 ]",
		} {
			if err := eventually(20*time.Second, func() error {
				out, err := command(line)
				if err == nil && out != "" {
					err = fmt.Errorf("%s: %s", line, out)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		}
	})
}

// testNames checks that the page names the pod and the container of who fills a pool.
func testNames(t *testing.T) {
	page, err := get("/?format=text&width=300")
	if want := "pod default/full container " + id(t, "full")[:12] + " holds 100%"; err != nil || !strings.Contains(page, want) {
		t.Errorf("%v: the page does not say %q:\n%s", err, want, page)
	}
	checkMetrics(t, func(metrics string) (all []sample) {
		for _, name := range []string{"behind", "full", "udp"} {
			all = append(all, sample{"netns_info", `command="hosts.test" container_id="` + id(t, name) + `" ` + netns(metrics, id(t, name)) + " " + uid(t, name), "1"})
		}
		return all
	})
}

// testService checks a service in both modes of kube-proxy: who connects from a pod, from the node, and from outside to a node port.
func testService(t *testing.T) {
	for i, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			if err := startProxy(mode); err != nil {
				t.Fatal(err)
			}
			defer must(t, "kubectl delete --wait pod/client pod/hostclient pod/web service/web")
			if err := apply(pod("web", false, "", "serve :8080") + "---" + pod("client", false, "40000 40199", "hold tcp 10.96.0.80:80 120") +
				"---" + pod("hostclient", true, "", "hold tcp 10.96.0.80:80 350") + fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.0.80, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: %d}]}
`, 30080+i)); err != nil {
				t.Fatal(err)
			}
			checkMetrics(t, func(metrics string) []sample {
				toWeb := `destination_ip="` + address(t, "web") + `" destination_port="8080" netns="self" `
				client := netns(metrics, id(t, "client"))
				return []sample{
					{"destination_ports", `destination_ip="10.96.0.80" destination_port="80" ` + client + ` source_ip="` + address(t, "client") + `" state="established"`, "120"},
					{"destination_utilization_ratio", `destination_ip="10.96.0.80" destination_port="80" ` + client, "0.6"},
					{"destination_ports", `destination_ip="10.96.0.80" destination_port="80" netns="self" source_ip="` + nodeIP + `" state="established"`, "350"},
					{"destination_owner_ports", `container_id="` + id(t, "hostclient") + `" destination_ip="10.96.0.80" destination_port="80" netns="self" ` + uid(t, "hostclient"), "350"},
					{"snat_owner_ports", toWeb + `original_ip="` + nodeIP + `"`, "350"},
					{"snat_owner_ports", toWeb + `original_ip="198.18.0.1"`, "200"},
				}
			})
		})
	}
}

// testNewPod checks that a pod is seen that is younger than the exporter.
func testNewPod(t *testing.T) {
	if err := apply(pod("late", false, "40000 40199", "hold tcp 198.18.0.3:8080 110")); err != nil {
		t.Fatal(err)
	}
	defer must(t, "kubectl delete --wait pod/late")
	must(t, "kubectl wait --for=condition=Ready --timeout=60s pod/late")
	checkMetrics(t, func(metrics string) []sample {
		late := netns(metrics, id(t, "late"))
		return []sample{
			{"destination_utilization_ratio", `destination_ip="198.18.0.3" destination_port="8080" ` + late, "0.55"},
			{"destination_owner_ports", `container_id="` + id(t, "late") + `" destination_ip="198.18.0.3" ` + late + " " + uid(t, "late"), "110"},
		}
	})
}

// testNodePorts checks that the page warns of ephemeral ports that may be node ports.
func testNodePorts(t *testing.T) {
	must(t, "sysctl -qw 'net.ipv4.ip_local_port_range=30000 60999'")
	defer must(t, "sysctl -qw 'net.ipv4.ip_local_port_range=32768 60999'")
	page, err := get("/?format=text")
	if err != nil || !strings.Contains(page, "30000-32767") {
		t.Errorf("%v: the page does not warn of node ports:\n%s", err, page)
	}
}

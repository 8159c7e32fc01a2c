//go:build kubernetes

package hosts

import (
	"strings"
	"testing"
)

// TestCilium fills a pool of Cilium's source NAT: what is said to be free is what pods get, and at 100% they get nothing.
func TestCilium(t *testing.T) {
	start := func(pod, manifest string) {
		t.Helper()
		if err := apply(manifest); err != nil {
			t.Fatal(err)
		}
		if err := ready("kubectl wait --for=condition=Ready --timeout=5s pod/" + pod); err != nil {
			t.Fatal(err)
		}
	}
	const (
		to    = `destination_ip="198.18.0.3" destination_port="8080" netns="self" `
		from  = `protocol="tcp" source_ip="` + nodeIP + `"`
		flags = " --set snat=true,nodePorts=" + ciliumNodePorts
	)
	start("first", pod("first", false, "65001 65200", "hold tcp 198.18.0.3:8080 200")) // its own ports are in Cilium's range
	checkLog(t, "first", "200 sockets")

	install(t)
	must(t, upgrade+flags)
	checkPod := func() { must(t, "kubectl rollout status --timeout=90s daemonset/"+release+" "+namespace) }
	checkPod()
	checkMetrics(t, func(string) []sample { return []sample{{"snat_cilium_collect_success", `netns="self"`, "0"}} })
	if page, err := get("/?format=text"); err != nil || !strings.Contains(page, "The source NAT of Cilium") {
		t.Errorf("%v: the page does not say that Cilium's source NAT is not known:\n%s", err, page)
	}

	must(t, upgrade+flags+",cilium=true")
	checkPod()
	checkMetrics(t, func(string) []sample {
		return []sample{
			{"snat_cilium_collect_success", `netns="self"`, "1"},
			{"snat_cilium_capacity_ports", to + from, "535"},
			{"snat_ports", to + from + ` state="established"`, "200"},
			{"snat_owner_ports", to + `original_ip="` + address(t, "first") + `" ` + from, "200"},
			{"snat_utilization_ratio", to + from, "0.37383177570093457"},
		}
	})

	start("second", pod("second", false, "65201 65535", "hold tcp 198.18.0.3:8080 400")) // 335 ports are free
	checkLog(t, "second", "335 sockets: dial tcp 198.18.0.3:8080: connect: cannot assign requested address")
	checkMetrics(t, func(string) []sample {
		return []sample{
			{"snat_ports", to + from + ` state="established"`, "535"},
			{"snat_owner_ports", to + `original_ip="` + address(t, "first") + `" ` + from, "200"},
			{"snat_owner_ports", to + `original_ip="` + address(t, "second") + `" ` + from, "335"},
			{"snat_utilization_ratio", to + from, "1"},
			{"snat_search_failure_ratio", to + from, "1"},
			{"snat_cilium_unassigned_total", `netns="self"`, "0"},
		}
	})

	start("third", pod("third", false, "", "hold tcp 198.18.0.3:8080 1"))
	checkLog(t, "third", "0 sockets: dial tcp 198.18.0.3:8080: i/o timeout")
	checkMetrics(t, func(string) []sample {
		return []sample{
			{"snat_cilium_unassigned_total", `netns="self"`, ""},
			{"snat_utilization_ratio", to + from, "1"},
		}
	})
	if page, err := get("/?format=text"); err != nil || !strings.Contains(page, "198.18.0.3:8080 from "+nodeIP) {
		t.Errorf("%v: the page does not name the pool:\n%s", err, page)
	}
}

package collector

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// udpOf returns what a scan learned of UDP: so many sockets, and ports by family.
func udpOf(sockets int, ports ...int) scan.UDP {
	u := scan.UDP{Result: read, Sockets: sockets, Report: pool.UDPReport{CapacityPorts: 28227, Sockets: sockets}}
	for i, family := range pool.UDPFamilies {
		u.Report.Pools[i] = pool.UDPPool{
			Family: family, Ports: ports[i], Utilization: float64(ports[i]) / 28227, Owners: []pool.Owner{{Cgroup: 8, Ports: ports[i] - 100}, {Cgroup: 7, Ports: 100}},
		}
	}
	return u
}

// TestMetricsUDP checks what there is if UDP was not read, and if TCP could not be.
func TestMetricsUDP(t *testing.T) {
	failed := errors.New("failed")
	collected := udpOf(3, 1, 2, 3)
	for i := range collected.Report.Pools {
		collected.Report.Pools[i].Utilization = 0.5
	}
	const numbers = `udp_capacity_ports{netns="self"} 28227
udp_collect_success{netns="self"} 1
udp_ports{family="dual_stack",netns="self"} 3
udp_ports{family="ipv4",netns="self"} 1
udp_ports{family="ipv6",netns="self"} 2
udp_sockets{netns="self"} 3
udp_utilization_ratio{family="dual_stack",netns="self"} 0.5
udp_utilization_ratio{family="ipv4",netns="self"} 0.5
udp_utilization_ratio{family="ipv6",netns="self"} 0.5
`
	tests := []struct {
		name string
		n    scan.Namespace
		want string
	}{
		{"read", scan.Namespace{TCP: scan.TCP{Result: read}, UDP: collected}, numbers},
		{"read beside a failure of TCP", scan.Namespace{TCP: scan.TCP{Result: scan.Result{Outcome: scan.Failed, Err: failed}}, UDP: collected}, numbers},
		{"few", scan.Namespace{TCP: scan.TCP{Result: read}, UDP: scan.UDP{Result: scan.Result{Outcome: scan.Idle}, Sockets: 7}}, "udp_collect_success{netns=\"self\"} 1\nudp_sockets{netns=\"self\"} 7\n"},
		{"failed", scan.Namespace{TCP: scan.TCP{Result: read}, UDP: scan.UDP{Result: scan.Result{Outcome: scan.Failed, Err: failed}, Sockets: 7}}, "udp_collect_success{netns=\"self\"} 0\n"},
		{"no time", scan.Namespace{TCP: scan.TCP{Result: read}, UDP: scan.UDP{Result: scan.Result{Outcome: scan.Deadline, Err: failed}}}, "udp_collect_success{netns=\"self\"} 0\n"},
		{"not supported", scan.Namespace{TCP: scan.TCP{Result: read}, UDP: scan.UDP{Result: scan.Result{Outcome: scan.Unsupported, Err: failed}, Sockets: 7}}, "udp_sockets{netns=\"self\"} 7\n"},
		{"left for a later scan", scan.Namespace{UDP: scan.UDP{Result: scan.Result{Outcome: scan.Skipped, Err: failed}}}, "udp_collect_success{netns=\"self\"} 0\n"},
		{"idle namespace", scan.Namespace{TCP: scan.TCP{Result: scan.Result{Outcome: scan.Idle}}}, ""},
		{"skipped namespace", scan.Namespace{TCP: scan.TCP{Result: scan.Result{Outcome: scan.Skipped}}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.n.Name = scan.Self
			var got strings.Builder
			for line := range strings.Lines(samples(t, scan.Snapshot{Namespaces: []scan.Namespace{tt.n}})) {
				if name, ok := strings.CutPrefix(line, "ephemeral_port_"); ok && strings.HasPrefix(name, "udp_") {
					got.WriteString(name)
				}
			}
			if diff := cmp.Diff(tt.want, got.String()); diff != "" {
				t.Errorf("metrics (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMetricsUDPOwners checks that control groups with the same path are one owner.
func TestMetricsUDPOwners(t *testing.T) {
	dns := cgroup.Group{Path: "/system.slice/dns.service"}
	s := scan.Snapshot{
		Namespaces: []scan.Namespace{{Name: scan.Self, TCP: scan.TCP{Result: read}, UDP: scan.UDP{Result: read}}},
		Cgroups:    map[uint64]cgroup.Group{1: dns, 2: dns},
	}
	s.Namespaces[0].UDP.Report.Pools[0] = pool.UDPPool{Family: pool.UDPIPv4, Owners: []pool.Owner{{Cgroup: 1, Ports: 5}, {Cgroup: 2, Ports: 4}}}
	s.Namespaces[0].UDP.Report.Pools[1].Family, s.Namespaces[0].UDP.Report.Pools[2].Family = pool.UDPIPv6, pool.UDPDualStack
	var got strings.Builder
	for line := range strings.Lines(samples(t, s)) {
		if rest, ok := strings.CutPrefix(line, "ephemeral_port_udp_owner_ports"); ok {
			got.WriteString(rest)
		}
	}
	const want = `{cgroup="/system.slice/dns.service",container_id="",family="ipv4",netns="self",pod_uid=""} 9
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
}

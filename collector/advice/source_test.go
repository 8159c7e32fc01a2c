package advice

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/pool"
)

// lines returns advice as lines. Each cure must have a chapter in the runbook.
func lines(t *testing.T, a *Advice) []string {
	t.Helper()
	if a == nil {
		return nil
	}
	runbook, err := os.ReadFile("../../deploy/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	all := []string{a.Diagnosis}
	for _, c := range a.Cures {
		all = append(all, fmt.Sprintf("%s: %d, then %d. %s", c.Title, c.Now.Ports, c.Then.Ports, c.Command))
		if !strings.Contains(string(runbook), "\n### "+c.Title+"\n") {
			t.Errorf("the runbook has no chapter %q", c.Title)
		}
	}
	return all
}

// widenAll widens the range where no program waits on a port.
const widenAll = `r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && { sysctl -w net.ipv4.ip_local_reserved_ports="30000-32767,$r" && sysctl -w net.ipv4.ip_local_port_range="1024 65535" || { sysctl -w net.ipv4.ip_local_reserved_ports="$r"; false; }; }`

// TestBindFirst checks the advice for clients that bind before they connect.
func TestBindFirst(t *testing.T) {
	r := pool.Report{
		Settings:      pool.Settings{PortRange: pool.PortRange{Low: 40000, High: 40099}, ReservedPorts: []pool.PortRange{{Low: 40010, High: 40019}}},
		ReservedPorts: 10, CapacityPorts: 90, UDPServersKnown: true,
	}
	for _, tt := range []struct {
		name        string
		ports       int
		utilization float64
		want        []string
	}{
		{"calm", 44, 0.49, nil},
		{"80%", 72, 0.8, []string{
			"Clients bind before they connect, so they share one pool for all destinations. Of its 90 ports, 72 are in use, 71 of these by bind().",
			"Connect without binding a port: 18, then 90. ",
			"Widen the range: 18, then 61662. " + widenAll,
			"More source addresses: 18, then 108. ",
			"Give back reserved ports: 18, then 28. " + findReserved,
		}},
		{"full", 90, 1, []string{
			"Clients bind before they connect, so they share one pool for all destinations. Of its 90 ports, 90 are in use, 89 of these by bind().",
			"Connect without binding a port: 0, then 90. ",
			"Widen the range: 0, then 61644. " + widenAll,
			"More source addresses: 0, then 180. ",
			"Give back reserved ports: 0, then 10. " + findReserved,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := BindFirst(&r, &pool.Source{Capacity: 90, Ports: tt.ports, Bound: tt.ports - 1, Utilization: tt.utilization})
			if diff := cmp.Diff(tt.want, lines(t, a)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestTracking checks the advice for the limit of flows.
func TestTracking(t *testing.T) {
	for _, tt := range []struct {
		entries, limit int
		want           []string
	}{
		{89, 100, nil},
		{90, 0, nil},
		{90, 100, []string{
			"Connection tracking has 90 flows, of 100 at most. At the limit, the kernel drops the packets of new connections, whatever their destination.",
			"Raise the limit of connection tracking: 100, then 200. sysctl -w net.netfilter.nf_conntrack_max=200",
		}},
	} {
		if diff := cmp.Diff(tt.want, lines(t, Tracking(tt.entries, tt.limit))); diff != "" {
			t.Errorf("%d of %d (-want +got):\n%s", tt.entries, tt.limit, diff)
		}
	}
}

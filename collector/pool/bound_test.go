package pool

import (
	"fmt"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"

	"github.com/google/go-cmp/cmp"
)

// TestReportBound checks that a port that is bound is lost to all pools, once.
func TestReportBound(t *testing.T) {
	s := tenPorts
	s.TWReuse, s.Timestamps, s.TWReuseDelay = 1, 1, time.Second
	s.ReservedPorts = []PortRange{{Low: 40008, High: 40008}}
	with := func(bound Fact, state tcpstate.State, local, remote string) Socket {
		s := socket(state, local, remote)
		s.Bound = bound
		return s
	}
	table := tableOf(s, []Listener{listener("10.0.0.9:40009")},
		with(No, tcpstate.Established, "10.0.0.1:40000", "10.0.0.2:80"),
		with(Yes, tcpstate.Established, "10.0.0.1:40001", "10.0.0.2:80"),
		with(Yes, tcpstate.TimeWait, "10.0.0.1:40003", "10.0.0.2:80"), // old, but not reusable
		with(No, tcpstate.TimeWait, "10.0.0.1:40002", "10.0.0.2:80"),

		with(Yes, tcpstate.Established, "10.0.0.9:40001", "[2001:db8::2]:80"), // the same port
		with(Yes, tcpstate.Established, "10.0.0.9:40005", "[2001:db8::2]:80"),

		with(No, tcpstate.Established, "10.0.0.1:40004", "10.0.0.3:80"),

		with(Yes, tcpstate.Established, "10.0.0.9:40009", "10.0.0.4:80"), // blocked
		with(Yes, tcpstate.Established, "10.0.0.1:40008", "10.0.0.4:80"), // reserved
		with(Yes, tcpstate.Established, "10.0.0.1:39999", "10.0.0.4:80"), // out of range
	)
	table.KnowBound()
	r := table.Report(everything)
	if r.BoundPorts != 3 || !r.BoundKnown || r.CapacityPorts != 8 {
		t.Errorf("got %d bound ports, known %v, capacity %d, want 3, true, 8", r.BoundPorts, r.BoundKnown, r.CapacityPorts)
	}
	type counts struct {
		held, reusable, boundByOthers int
		utilization                   float64
	}
	got := map[string]counts{}
	for _, d := range r.Destinations {
		got[fmt.Sprint(d.Address)] = counts{d.Held, d.Reusable, d.BoundByOthers, d.Utilization}
	}
	want := map[string]counts{
		"10.0.0.2:80":      {4, 1, 1, 4. / 8},
		"[2001:db8::2]:80": {2, 0, 1, 3. / 8},
		"10.0.0.3:80":      {1, 0, 3, 4. / 8},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(counts{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if r.MaxUtilization != 4./8 {
		t.Errorf("greatest utilization %v, want 0.5", r.MaxUtilization)
	}
}

// TestReportBoundUnknown checks that a number that is not known does not read as zero.
func TestReportBoundUnknown(t *testing.T) {
	table := tableOf(tenPorts, nil, socket(tcpstate.Established, "10.0.0.1:40000", "10.0.0.2:80"))
	if r := table.Report(everything); r.BoundKnown {
		t.Errorf("%d bound ports, of a reader that does not know", r.BoundPorts)
	}
	table.KnowBound()
	if r := table.Report(everything); !r.BoundKnown || r.BoundPorts != 0 {
		t.Errorf("got %d bound ports, known %v, want 0 that are known", r.BoundPorts, r.BoundKnown)
	}
}

// TestReportBoundTwice adds a socket twice, as a dump can.
func TestReportBoundTwice(t *testing.T) {
	s := socket(tcpstate.Established, "10.0.0.1:40000", "10.0.0.2:80")
	s.Bound = Yes
	if d := tableOf(tenPorts, nil, s, s).Report(everything).Destinations[0]; d.BoundByOthers != 0 || d.Utilization != 0.2 {
		t.Errorf("got %d ports bound by others, utilization %v, want 0 and 0.2", d.BoundByOthers, d.Utilization)
	}
}

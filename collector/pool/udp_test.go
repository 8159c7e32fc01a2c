package pool

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// udpSettings has a range of ten ports, of which two are reserved.
var udpSettings = Settings{PortRange: PortRange{Low: 40000, High: 40009}, ReservedPorts: []PortRange{{Low: 40008, High: 40100}}}

// udpReport returns the report of sockets.
func udpReport(s Settings, sockets ...UDPSocket) UDPReport {
	t := NewUDPTable(s)
	for i := range sockets {
		t.Add(&sockets[i])
	}
	return t.Report()
}

// udpAt returns a socket.
func udpAt(local string) UDPSocket { return UDPSocket{Local: netip.MustParseAddrPort(local)} }

// TestUDPFamilies checks which sockets count in which pools.
func TestUDPFamilies(t *testing.T) {
	v6only := udpAt("[::]:40001")
	v6only.V6Only = true
	tests := []struct {
		name                  string
		sockets               []UDPSocket
		ipv4, ipv6, dualStack int
	}{
		{name: "none"},
		{"IPv4", []UDPSocket{udpAt("10.0.0.1:40001")}, 1, 0, 1},
		{"wildcard", []UDPSocket{udpAt("0.0.0.0:40001")}, 1, 0, 1},
		{"dual-stack", []UDPSocket{udpAt("[::]:40001")}, 1, 1, 1},
		{"v6only", []UDPSocket{v6only}, 0, 1, 1},
		{"not known", []UDPSocket{udpAt("[2001:db8::1]:40001")}, 1, 1, 1},
		{"one port", []UDPSocket{udpAt("10.0.0.1:40001"), udpAt("10.0.0.2:40001"), udpAt("10.0.0.1:40001"), v6only}, 1, 1, 1},
		{"reserved", []UDPSocket{udpAt("[::]:40008")}, 0, 0, 0},
		{"outside", []UDPSocket{udpAt("[::]:39999"), udpAt("[::]:40010"), udpAt("[::]:1"), udpAt("[::]:65535")}, 0, 0, 0},
		{"both ends", []UDPSocket{udpAt("0.0.0.0:40000"), udpAt("0.0.0.0:40007")}, 2, 0, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := udpReport(udpSettings, tt.sockets...)
			want := map[UDPFamily]int{UDPIPv4: tt.ipv4, UDPIPv6: tt.ipv6, UDPDualStack: tt.dualStack}
			got := map[UDPFamily]int{}
			for _, p := range r.Pools {
				got[p.Family] = p.Ports
				if p.Utilization != float64(p.Ports)/8 {
					t.Errorf("%s: utilization %v with %d of 8 ports", p.Family, p.Utilization, p.Ports)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
			if r.CapacityPorts != 8 || r.Sockets != len(tt.sockets) || r.MaxUtilization() != float64(tt.dualStack)/8 {
				t.Errorf("got %+v, want 8 ports and %d sockets", r, len(tt.sockets))
			}
		})
	}
	if r := udpReport(Settings{PortRange: PortRange{Low: 40000, High: 40000}, ReservedPorts: udpSettings.ReservedPorts[:0:0]}); r.MaxUtilization() != 0 {
		t.Errorf("utilization without sockets: %v", r.MaxUtilization())
	}
	all := Settings{PortRange: udpSettings.PortRange, ReservedPorts: []PortRange{{Low: 1, High: 65535}}}
	if r := udpReport(all); r.CapacityPorts != 0 || r.MaxUtilization() != 1 {
		t.Errorf("all ports reserved: %+v, want utilization 1", r)
	}
}

// TestUDPPorts lists all ports that are held, and those of sockets that wait for packets.
func TestUDPPorts(t *testing.T) {
	client := udpAt("10.0.0.1:40009")
	client.Connected = true
	v6only := udpAt("[::]:546")
	v6only.V6Only = true
	r := udpReport(udpSettings, udpAt("0.0.0.0:53"), udpAt("127.0.0.1:53"), client, v6only)
	if diff := cmp.Diff([]uint16{53, 546}, r.ServerPorts); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
	want := map[UDPFamily][]uint16{UDPIPv4: {53, 40009}, UDPIPv6: {546}, UDPDualStack: {53, 546, 40009}}
	for _, p := range r.Pools {
		if diff := cmp.Diff(want[p.Family], p.HeldPorts); diff != "" {
			t.Errorf("held of %s (-want +got):\n%s", p.Family, diff)
		}
	}
}

// TestUDPOwners checks that an owner has the ports of its pool, each once.
func TestUDPOwners(t *testing.T) {
	owned := func(local string, cgroup uint64) UDPSocket {
		s := udpAt(local)
		s.Cgroup = cgroup
		return s
	}
	r := udpReport(udpSettings,
		owned("0.0.0.0:40000", 7), owned("0.0.0.0:40000", 7), owned("10.0.0.1:40000", 8), // one port
		owned("10.0.0.1:40001", 7), owned("[2001:db8::1]:40002", 8), owned("10.0.0.1:40003", 9), owned("10.0.0.1:40004", 9), owned("10.0.0.1:40005", 9),
		owned("10.0.0.1:40006", 10), owned("10.0.0.1:40007", 0),
		owned("10.0.0.1:40009", 11), owned("10.0.0.1:53", 11), // reserved, outside
	)
	want := map[UDPFamily][]Owner{
		UDPIPv4:      {{9, 3}, {7, 2}, {8, 1}},
		UDPIPv6:      {{8, 1}},
		UDPDualStack: {{9, 3}, {7, 2}, {8, 1}},
	}
	got := map[UDPFamily][]Owner{}
	for _, p := range r.Pools {
		got[p.Family] = p.Owners
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
}

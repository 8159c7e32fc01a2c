package advice

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/pool"
)

// udpSettings has a range of ten ports, of which two are reserved.
var udpSettings = pool.Settings{PortRange: pool.PortRange{Low: 40000, High: 40009}, ReservedPorts: []pool.PortRange{{Low: 40008, High: 40100}}}

// udpReport returns the report of sockets.
func udpReport(s pool.Settings, sockets ...pool.UDPSocket) pool.UDPReport {
	t := pool.NewUDPTable(s)
	for i := range sockets {
		t.Add(&sockets[i])
	}
	r := t.Report()
	r.ListenersKnown = true
	return r
}

// udpAt returns a socket.
func udpAt(local string) pool.UDPSocket { return pool.UDPSocket{Local: netip.MustParseAddrPort(local)} }

// udpAdviceCases are pools with the cures that help them. TestOracleUDPCures of package scan applies
// such cures.
func udpAdviceCases() map[string]struct {
	settings pool.Settings
	sockets  []pool.UDPSocket
	want     []Cure // of IPv4; nil if it is not in danger
} {
	connected := func(n int, cgroups ...uint64) (sockets []pool.UDPSocket) {
		for i := range n {
			s := pool.UDPSocket{Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(40000+i)), Connected: true}
			if len(cgroups) > 0 {
				s.Cgroup = cgroups[i%len(cgroups)]
			}
			sockets = append(sockets, s)
		}
		return sockets
	}
	v6server := udpAt("[::]:5353")
	v6server.V6Only = true
	v6reserved := udpAt("[::]:40009")
	v6reserved.V6Only = true
	const all = 65535 - 1024 + 1 - 2768 // without node ports
	reserve := func(ports, undo string) (string, string) {
		return `r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && { sysctl -w net.ipv4.ip_local_reserved_ports="` + ports + `,$r" && ` +
				`sysctl -w net.ipv4.ip_local_port_range="1024 65535" || { sysctl -w net.ipv4.ip_local_reserved_ports="$r"; false; }; }`,
			`sysctl -w net.ipv4.ip_local_port_range="40000 40009" net.ipv4.ip_local_reserved_ports=` + undo
	}
	plain := pool.Settings{PortRange: udpSettings.PortRange}
	widened := func(now, then int) Cure {
		c := Cure{
			Title: "Widen the range", Sentence: "Sockets without a port can then get those of 1024-65535. The node ports of Kubernetes stay out.",
			Now: Outlook{Ports: now}, Then: Outlook{Ports: then},
			Condition: "Reserve all ports in there that programs may listen on later, and those that rules of NAT or IPVS lead elsewhere.",
		}
		c.Command, c.Undo = reserve("30000-32767", "")
		return c
	}
	servers := widened(0, all-10-2)
	servers.Sentence = "Sockets without a port can then get those of 1024-65535. Programs wait on these, so reserve them first: 5353, 50000. The node ports of Kubernetes stay out."
	servers.Command, servers.Undo = reserve("5353,30000-32767,50000", "53")
	aside := widened(0, all-101+8-8)
	_, aside.Undo = reserve("", "40008-40100")
	return map[string]struct {
		settings pool.Settings
		sockets  []pool.UDPSocket
		want     []Cure
	}{
		"calm": {plain, connected(7), nil},
		"full": {plain, connected(10), []Cure{widened(0, all-10)}},
		"servers": {
			pool.Settings{PortRange: udpSettings.PortRange, ReservedPorts: []pool.PortRange{{Low: 53, High: 53}}},
			append(connected(10), udpAt("0.0.0.0:50000"), v6server, udpAt("0.0.0.0:53")), []Cure{servers},
		},
		"reserved": {udpSettings, append(connected(8, 7, 8, 7, 8, 9), v6reserved), []Cure{
			{
				Title:    "Close UDP sockets",
				Sentence: "One control group holds 4 of the ports. Restart it to free them, and let it use one socket for many destinations.",
				N:        4, Then: Outlook{Ports: 4}, Condition: "Its sockets are leaked, or can be fewer.",
			},
			aside,
			{
				Title: "Give back reserved ports", Sentence: "1 ports of the range are reserved, and no program waits on them. Find out who reserved them, and why.",
				N: 1, Then: Outlook{Ports: 1}, Command: findReserved, Undo: "sysctl -w net.ipv4.ip_local_reserved_ports=40008-40100",
				Condition: "No program needs them, also none that is down, and no rule leads their packets elsewhere, like those of node ports: else connections hang.",
			},
		}},
	}
}

// TestUDPTooLong has more reserved ports, or servers, than the kernel reads: no cure that writes them all is shown.
func TestUDPTooLong(t *testing.T) {
	s := pool.Settings{PortRange: pool.PortRange{Low: 40000, High: 40009}}
	var sockets []pool.UDPSocket
	for i := range 10 {
		sockets = append(sockets, udpAt(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(40000+i)).String()))
	}
	servers := sockets
	for _, port := range everyOther(1025, 5025) {
		servers = append(servers, udpAt(netip.AddrPortFrom(netip.IPv4Unspecified(), port).String()))
	}
	reserved := pool.Settings{PortRange: pool.PortRange{Low: 40000, High: 40010}, ReservedPorts: []pool.PortRange{{Low: 40010, High: 40010}}}
	for _, port := range everyOther(1025, 5025) {
		reserved.ReservedPorts = append(reserved.ReservedPorts, pool.PortRange{Low: port, High: port})
	}
	for name, r := range map[string]pool.UDPReport{"servers": udpReport(s, servers...), "reserved": udpReport(reserved, sockets...)} {
		for _, cure := range UDP(&r, &r.Pools[0]).Cures {
			if strings.Contains(cure.Command, "reserved_ports=") || name == "servers" {
				t.Errorf("%s: %s with a command of %d bytes", name, cure.Title, len(cure.Command))
			}
		}
	}
}

// TestUDP checks which cures are offered, and their numbers.
func TestUDP(t *testing.T) {
	for name, tt := range udpAdviceCases() {
		t.Run(name, func(t *testing.T) {
			r := udpReport(tt.settings, tt.sockets...)
			advice := UDP(&r, &r.Pools[0])
			if advice == nil || tt.want == nil {
				if (advice == nil) != (tt.want == nil) {
					t.Errorf("advice: got %v, want %v", advice, tt.want)
				}
				return
			}
			if diff := cmp.Diff(tt.want, advice.Cures); diff != "" {
				t.Errorf("cures (-want +got):\n%s", diff)
			}
			if !strings.Contains(advice.Diagnosis, "for all destinations together") {
				t.Errorf("diagnosis %q", advice.Diagnosis)
			}
		})
	}
}

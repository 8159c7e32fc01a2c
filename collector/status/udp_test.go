package status

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// TestUDPHeadline checks what the page says of UDP ports, and that what is not known is never calm.
func TestUDPHeadline(t *testing.T) {
	failed := errors.New("sockdiag: dump udp sockets: i/o timeout")
	with := func(udp scan.UDP, others ...scan.UDP) scan.Snapshot {
		s := quiet()
		s.Namespaces[0].UDP = udp
		for _, u := range others {
			s.OthersRead = true
			s.Namespaces = append(s.Namespaces, scan.Namespace{Name: "pod", TCP: scan.TCP{Result: read, Report: defaults()}, UDP: u})
		}
		return s
	}
	halfRead := failedHost()
	halfRead.Namespaces[0].UDP = udpOf(25000, 0)
	// Sockets that use IPv6 only leave their ports to IPv4.
	table := pool.NewUDPTable(defaults().Settings)
	for i := range 28232 {
		socket := pool.UDPSocket{Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(32768+i)), Connected: true}
		if i >= 24000 {
			socket = pool.UDPSocket{Local: netip.AddrPortFrom(netip.IPv6Unspecified(), socket.Local.Port()), V6Only: true}
		}
		table.Add(&socket)
	}
	both := scan.UDP{Result: read, Report: table.Report()}
	const calmSentence = "No destination is in danger: the worst, 10.0.0.2:443, has 11% of its ports in use."
	tests := []struct {
		name     string
		snapshot scan.Snapshot
		level    level
		want     []string // headline and problems
		rows     []string // family, namespace, used
	}{
		{"idle", with(scan.UDP{Result: scan.Result{Outcome: scan.Idle}, Sockets: 7}), calm, []string{calmSentence}, nil},
		{"calm", with(udpOf(20000, 2000)), calm, []string{calmSentence}, []string{"ipv4 self 77%", "dual_stack self 77%", "ipv6 self 7%"}},
		{
			"IPv4", with(udpOf(23000, 0)), critical, []string{"UDP sockets hold 81% of the ports of ipv4, dual_stack: at 100% connect() and sendto() of new ones fail with EAGAIN, and bind() without an address with EADDRINUSE."},
			[]string{"ipv4 self 81%", "dual_stack self 81%", "ipv6 self 0%"},
		},
		{
			"full", with(udpOf(28222, 0)), exhausted, []string{"No UDP port of ipv4, dual_stack is free: connect() and sendto() of new sockets fail with EAGAIN, and bind() without an address with EADDRINUSE."},
			[]string{"ipv4 self 100%", "dual_stack self 100%", "ipv6 self 0%"},
		},
		{
			"full for one family", with(both), exhausted, []string{"No UDP port of dual_stack is free: connect() and sendto() of new sockets fail with EAGAIN, and bind() without an address with EADDRINUSE."},
			[]string{"dual_stack self 100%", "ipv4 self 85%", "ipv6 self 14%"},
		},
		{
			"elsewhere", with(udpOf(10, 0), udpOf(27700, 0), udpOf(20000, 0)), exhausted, []string{"UDP sockets hold 98% of the ports of ipv4, dual_stack in pod: at 100%"},
			[]string{"ipv4 pod 98%", "dual_stack pod 98%", "ipv4 self <1%", "dual_stack self <1%", "ipv6 self 0%"},
		},
		{"failed", with(scan.UDP{Result: scan.Result{Outcome: scan.Failed, Err: failed}}), unknown, []string{"The UDP ports of this host could not be read: " + failed.Error(), calmSentence}, nil},
		{
			"failed elsewhere", with(scan.UDP{Result: scan.Result{Outcome: scan.Idle}}, scan.UDP{Result: scan.Result{Outcome: scan.Deadline, Err: failed}}), unknown,
			[]string{"The UDP ports of 1 network namespace could not be read.", calmSentence}, nil,
		},
		{"not supported", with(scan.UDP{Result: scan.Result{Outcome: scan.Unsupported, Err: failed}}), calm, []string{calmSentence}, nil},
		{
			"only UDP could be read", halfRead, unknown, []string{"The ports of this host could not be read", "UDP sockets hold 88% of the ports of ipv4, dual_stack"},
			[]string{"ipv4 self 88%", "dual_stack self 88%", "ipv6 self 0%"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPage(&tt.snapshot, testInfo, View{Format: Text}, visible)
			got := said(p)
			if p.Level() != tt.level || len(got) != len(tt.want) {
				t.Fatalf("%v: %q, want %v: %q", p.Level(), got, tt.level, tt.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tt.want[i]) {
					t.Errorf("said %q, want %q", got[i], tt.want[i])
				}
			}
			var rows []string
			for _, u := range p.UDP {
				rows = append(rows, u.Family+" "+u.Netns+" "+u.Used)
			}
			if diff := cmp.Diff(tt.rows, rows); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			note := strings.Contains(strings.Join(p.Notes, ""), "UDP")
			if tt.snapshot.Namespaces[0].UDP.Outcome == scan.Unsupported != note {
				t.Errorf("notes %q", p.Notes)
			}
		})
	}
}

// TestUDPDetails checks owners, cures and commands in all formats, and that a view of one destination has
// nothing of it.
func TestUDPDetails(t *testing.T) {
	s := quiet()
	s.Namespaces[0].UDP = udpOf(28222, 0)
	s.Cgroups = map[uint64]cgroup.Group{7: {Path: "/system.slice/dns.service"}}
	for _, f := range []Format{HTML, Text, JSON} {
		got := draw(t, s, View{Format: f})
		owner := "/system.slice/dns.service (28222)"
		if f == JSON {
			owner = `"cgroup": "/system.slice/dns.service"`
		}
		for _, want := range []string{owner, "Close UDP sockets", "Widen the range", "Give back reserved ports", "net.ipv4.ip_local_port_range"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q:\n%s", f, want, got)
			}
		}
		if one := draw(t, s, View{Format: f, Destination: netip.MustParseAddrPort("10.0.0.2:443")}); strings.Contains(one, "UDP") || strings.Contains(one, `"udp":`) {
			t.Errorf("%s: UDP in the view of a destination:\n%s", f, one)
		}
	}
	if got := draw(t, s, View{Format: HTML}); !strings.Contains(got, `href="/runbook#ephemeralportsudpexhausted"`) || !strings.Contains(got, "ss -Huanp sport ge :32768 sport le :60999") {
		t.Error("no link to the runbook or no command")
	}
}

// TestUDPJSON checks values whose absence has a meaning.
func TestUDPJSON(t *testing.T) {
	failed := errors.New("failed")
	for _, tt := range []struct {
		name    string
		udp     scan.UDP
		sockets any
		errText any
		pools   int
	}{
		{"read", udpOf(25000, 0), 25001., nil, 3},
		{"idle", scan.UDP{Result: scan.Result{Outcome: scan.Idle}, Sockets: 7}, 7., nil, 0},
		{"failed", scan.UDP{Result: scan.Result{Outcome: scan.Failed, Err: failed}, Sockets: 7}, nil, "failed", 0},
		{"not supported", scan.UDP{Result: scan.Result{Outcome: scan.Unsupported, Err: failed}, Sockets: 7}, 7., "failed", 0},
		{"not tried", scan.UDP{}, nil, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := quiet()
			s.Namespaces[0].UDP = tt.udp
			var d struct {
				UDP        []map[string]any
				Namespaces []map[string]any
			}
			if err := json.Unmarshal([]byte(draw(t, s, View{Format: JSON})), &d); err != nil {
				t.Fatal(err)
			}
			if n := d.Namespaces[0]; n["udp_sockets"] != tt.sockets || n["udp_error"] != tt.errText || len(d.UDP) != tt.pools {
				t.Errorf("got %v, %v and %d pools", n["udp_sockets"], n["udp_error"], len(d.UDP))
			}
		})
	}
}

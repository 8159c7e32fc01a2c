package status

import (
	"net/netip"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/cgroup"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/scan"
)

// TestPort checks what the page says of a port, and that names of control groups do not leave their place.
func TestPort(t *testing.T) {
	listener := scan.PortHolder{Listens: true, Local: netip.MustParseAddrPort("0.0.0.0:40003")}
	client := scan.PortHolder{
		State: tcpstate.Established, Local: netip.MustParseAddrPort("10.0.0.1:40003"), Remote: netip.MustParseAddrPort("10.0.0.2:443"),
		Cgroup: cgroup.Group{Path: "/system.slice/" + hostileHTML},
	}
	for name, tt := range map[string]struct {
		port scan.Port
		want []string
	}{
		"nobody":       {scan.Port{}, []string{"No TCP socket that can be seen has port 40003. It is outside of the range"}},
		"reserved":     {scan.Port{InRange: true, Reserved: true}, []string{"It is reserved: no connection gets it"}},
		"listener":     {scan.Port{InRange: true, Holders: []scan.PortHolder{listener}, Connections: 5}, []string{"Port 40003 has a listener, and 5 connections. It is in the range and not reserved: while the service is down, a connection can take it", "listen"}},
		"a connection": {scan.Port{InRange: true, Holders: []scan.PortHolder{client}}, []string{"Port 40003 is held by 1 connection, and nothing listens on it.", "established", "ss -Hantup sport = :40003"}},
		"many":         {scan.Port{InRange: true, Holders: []scan.PortHolder{client}, More: 6}, []string{"Port 40003 is held by 7 connections", "6 more sockets are not listed."}},
	} {
		for _, f := range []Format{HTML, Text, JSON} {
			tt.port.Number = 40003
			var b strings.Builder
			if err := New(testInfo).WritePort(&b, &tt.port, View{Format: f, Port: 40003}); err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(b.String(), "\n", " ")
			for i, want := range tt.want {
				if f == JSON && i > 0 && strings.Contains(want, " ") {
					continue // it is in fields
				}
				if !strings.Contains(got, want) {
					t.Errorf("%s: %s does not have %q:\n%s", name, f, want, b.String())
				}
			}
			if f != Text && strings.Contains(got, "<script>alert") {
				t.Errorf("%s: %s has a script", name, f)
			}
		}
	}
}

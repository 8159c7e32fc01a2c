package status

import (
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/pool"
)

// TestListeners has all formats show how to reserve the ports of listeners, on which condition, and how to undo that. They
// show no command for the ports of a program that has many.
func TestListeners(t *testing.T) {
	s := quiet()
	s.Namespaces[0].TCP.Report.ListenerPorts = []uint16{22, 40003}
	for _, format := range []Format{HTML, Text, JSON} {
		out := strings.NewReplacer("&#34;", `"`, `\"`, `"`, `\u0026`, "&", "&amp;", "&", " \\\n       ", " ").Replace(draw(t, s, View{Format: format}))
		for _, want := range []string{
			`r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && sysctl -w net.ipv4.ip_local_reserved_ports="40003,$r"`,
			"sysctl -w net.ipv4.ip_local_reserved_ports=" + map[Format]string{HTML: "</code>", Text: "\n", JSON: `"`}[format],
			"these ports have listeners and are not reserved: 40003.",
			map[Format]string{HTML: "If: ", Text: "If: ", JSON: `"condition": "`}[format] + "The services listen on the same ports each time.",
		} {
			if !strings.Contains(out, want) && !strings.Contains(strings.Join(strings.Fields(out), " "), want) { // the text has lines
				t.Errorf("%v: no %q in\n%s", format, want, out)
			}
		}
	}
	s.Namespaces[0].TCP.Report.ListenerPorts = nil
	for port := range uint16(20000) {
		s.Namespaces[0].TCP.Report.ListenerPorts = append(s.Namespaces[0].TCP.Report.ListenerPorts, 33000+port)
	}
	for _, format := range []Format{HTML, Text, JSON} {
		if out := draw(t, s, View{Format: format}); !strings.Contains(out, "these ports have listeners and are not reserved: 33000, ") || strings.Contains(out, "sysctl -w") {
			t.Errorf("%v: a command for 20000 ports in\n%s", format, out)
		}
	}
}

// TestNodePorts has all formats warn of node ports in the range, where a kubelet listens, and show how to reserve them.
func TestNodePorts(t *testing.T) {
	s := quiet()
	s.Namespaces[0].TCP.Report.Settings.PortRange = pool.PortRange{Low: 20000, High: 60999}
	s.Namespaces[0].TCP.Report.ListenerPorts = []uint16{22, 10250}
	for _, format := range []Format{HTML, Text, JSON} {
		out := strings.Join(strings.Fields(draw(t, s, View{Format: format})), " ")
		for _, want := range []string{"2768 of the node ports 30000-32767 of Kubernetes are in the range and not reserved.", "net.ipv4.ip_local_reserved_ports"} {
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in\n%s", format, want, out)
			}
		}
	}
	if got := newPage(&s, Info{}, View{}, visible).Level(); got != warning {
		t.Errorf("level %v, want a warning", got)
	}
}

package status

import (
	"strings"
	"testing"
)

// TestListeners has all formats show how to reserve the ports of listeners, and how to undo that.
func TestListeners(t *testing.T) {
	s := quiet()
	s.Namespaces[0].TCP.Report.ListenerPorts = []uint16{22, 40003}
	for _, format := range []Format{HTML, Text, JSON} {
		out := strings.NewReplacer("&#34;", `"`, `\"`, `"`, `\u0026`, "&", "&amp;", "&", " \\\n       ", " ").Replace(draw(t, s, View{Format: format}))
		for _, want := range []string{
			`r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && sysctl -w net.ipv4.ip_local_reserved_ports="40003,$r"`,
			"sysctl -w net.ipv4.ip_local_reserved_ports=" + map[Format]string{HTML: "</code>", Text: "\n", JSON: `"`}[format],
			"these ports have listeners and are not reserved: 40003.",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in\n%s", format, want, out)
			}
		}
	}
}

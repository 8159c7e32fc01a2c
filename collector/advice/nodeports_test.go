package advice

import (
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/pool"
)

// TestReserveNodePorts checks which node ports are reserved, and where.
func TestReserveNodePorts(t *testing.T) {
	const reserveAll = `r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && sysctl -w net.ipv4.ip_local_reserved_ports="`
	wide := pool.PortRange{Low: 1024, High: 65535}
	for name, tt := range map[string]struct {
		settings  pool.Settings
		listeners []uint16
		want      string // ports that the command reserves
		n         int
		sentence  string
	}{
		"kubelet":            {pool.Settings{PortRange: wide}, []uint16{22, 10250}, "30000-32767", 2768, "2768 of the node ports 30000-32767"},
		"no kubelet":         {pool.Settings{PortRange: wide}, []uint16{22, 10251}, "", 0, ""},
		"range outside":      {pool.Settings{PortRange: pool.PortRange{Low: 32768, High: 60999}}, []uint16{10250}, "", 0, ""},
		"part":               {pool.Settings{PortRange: pool.PortRange{Low: 32760, High: 60999}}, []uint16{10250}, "32760-32767", 8, "8 of the node ports"},
		"reserved":           {pool.Settings{PortRange: wide, ReservedPorts: []pool.PortRange{{Low: 30000, High: 32767}}}, []uint16{10250}, "", 0, ""},
		"some reserved":      {pool.Settings{PortRange: wide, ReservedPorts: []pool.PortRange{{Low: 30000, High: 31999}}}, []uint16{10250}, "32000-32767", 768, ""},
		"others":             {pool.Settings{PortRange: wide, NodePorts: []pool.PortRange{{Low: 65534, High: 65535}}}, []uint16{10250}, "65534-65535", 2, "2 of the node ports 65534-65535 of Kubernetes"},
		"others, of default": {pool.Settings{PortRange: pool.PortRange{Low: 30000, High: 60999}, NodePorts: []pool.PortRange{{Low: 20000, High: 22767}}}, []uint16{10250}, "", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, ok := ReserveNodePorts(&pool.Report{Settings: tt.settings, ListenerPorts: tt.listeners})
			if ok != (tt.n > 0) || c.N != tt.n || ok && (c.Command != reserveAll+tt.want+`,$r"` || c.Undo == "" || !strings.Contains(c.Sentence, tt.sentence)) {
				t.Errorf("%+v", c)
			}
		})
	}
}

// TestWidenNodePorts checks that widening keeps the node ports of the cluster out.
func TestWidenNodePorts(t *testing.T) {
	s := pool.Settings{PortRange: pool.PortRange{Low: 32768, High: 60999}, NodePorts: []pool.PortRange{{Low: 20000, High: 22767}}}
	w, ok := newWidening(s, servers{known: true})
	if !ok || w.usable.Has(20000) || w.usable.Has(22767) || !w.usable.Has(30000) || !strings.Contains(w.command, `="20000-22767,$r"`) || !strings.Contains(w.sentence("Ports"), "The node ports of Kubernetes stay out.") {
		t.Errorf("%q %q", w.command, w.sentence("Ports"))
	}
}

package advice

import (
	"testing"

	"ephemeral_port_exporter/collector/pool"
)

// TestReserveListeners checks which ports are reserved.
func TestReserveListeners(t *testing.T) {
	r := pool.Report{
		Settings:      pool.Settings{PortRange: pool.PortRange{Low: 40000, High: 40099}, ReservedPorts: []pool.PortRange{{Low: 8080, High: 8080}, {Low: 40010, High: 40010}}},
		ListenerPorts: []uint16{22, 40010, 50000},
	}
	if c, ok := ReserveListeners(&r); ok {
		t.Errorf("none is to be reserved: %+v", c)
	}
	r.ListenerPorts = []uint16{22, 40003, 40009, 40010, 50000}
	c, ok := ReserveListeners(&r)
	if want := `r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && sysctl -w net.ipv4.ip_local_reserved_ports="40003,40009,$r"`; !ok || c.Command != want || c.N != 2 {
		t.Errorf("got %+v, want %s", c, want)
	}
	if want := "sysctl -w net.ipv4.ip_local_reserved_ports=8080,40010"; c.Undo != want {
		t.Errorf("got %q, want %q", c.Undo, want)
	}
	if want := "In the range, these ports have listeners and are not reserved: 40003, 40009."; c.Sentence != want {
		t.Errorf("got %q, want %q", c.Sentence, want)
	}
	many := r
	many.ListenerPorts = nil
	for port := range uint16(maxServers) {
		many.ListenerPorts = append(many.ListenerPorts, 40020+port)
	}
	if c, _ := ReserveListeners(&many); c.Command == "" || c.Undo == "" || c.N != maxServers {
		t.Errorf("%d ports: %+v, want a command", maxServers, c)
	}
	many.ListenerPorts = append(many.ListenerPorts, 40099)
	if c, ok := ReserveListeners(&many); !ok || c.Command != "" || c.Undo != "" || c.N != maxServers+1 {
		t.Errorf("%d ports: %+v, want no command", maxServers+1, c)
	}
	for port := uint16(40011); port < 40099; port += 2 {
		r.Settings.ReservedPorts = append(r.Settings.ReservedPorts, pool.PortRange{Low: port, High: port})
	}
	for port := range uint16(2000) {
		r.Settings.ReservedPorts = append(r.Settings.ReservedPorts, pool.PortRange{Low: 10000 + 2*port, High: 10000 + 2*port})
	}
	if c, ok := ReserveListeners(&r); !ok || c.Command != "" {
		t.Errorf("the kernel would not read %d bytes", len(c.Command))
	}
}

//go:build linux

package status

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// TestCommands runs the commands of the page: each must show the ports of its pool in its namespace,
// and no others, also if the path of the namespace has characters that shells know.
func TestCommands(t *testing.T) {
	if _, err := exec.LookPath("ss"); err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("no ss: install the package iproute2")
		}
		t.Fatal(err)
	}
	dir := t.TempDir()
	hold := func(source, destination string, n int) {
		netnstest.Client{Source: netip.AddrPortFrom(netip.MustParseAddr(source), 0), Bind: netnstest.BindNoPort, Destination: netip.MustParseAddrPort(destination)}.Hold(t, n)
	}
	in := filepath.Join(dir, `a $(touch b) 'c' "d"; *`)
	netnstest.Mount(t, in, func() {
		for _, address := range []string{"127.0.0.1", "127.0.0.2"} {
			hold(address, "192.0.2.1:443", 3)
		}
	})
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40199")
	for _, pool := range [][2]string{{"127.0.0.1", "192.0.2.1:443"}, {"127.0.0.2", "192.0.2.1:443"}, {"127.0.0.1", "192.0.2.2:443"}, {"127.0.0.1", "192.0.2.1:444"}} {
		hold(pool[0], pool[1], 7)
	}
	tests := []struct {
		name, source, address string
		namespace             scan.Namespace
		want                  string
	}{
		{"own", "127.0.0.1", "192.0.2.1:443", scan.Namespace{Name: scan.Self}, "7 ESTAB"},
		{"other", "127.0.0.2", "192.0.2.1:443", scan.Namespace{Name: "x", Path: in}, "3 ESTAB"},
		{"no sockets", "2001:db8::1", "[2001:db8::2]:443", scan.Namespace{Name: scan.Self}, ""},
		{"link-local", "fe80::1%2", "[fe80::2%2]:443", scan.Namespace{Name: scan.Self}, ""},
	}
	for _, tt := range tests {
		tt.namespace.TCP.Report.Settings = pool.Settings{PortRange: pool.PortRange{Low: 32768, High: 60999}}
		d := &pool.Destination{Source: netip.MustParseAddr(tt.source), Address: netip.MustParseAddrPort(tt.address)}
		commands := destinationCommands(&tt.namespace, d)
		if len(commands) != 3 {
			t.Fatalf("%s: %d commands", tt.name, len(commands))
		}
		for i, c := range commands {
			for _, line := range []string{c.Line, strings.Join(wrap(c.Line, 60), "\n")} {
				cmd := exec.Command("sh", "-e", "-c", line)
				cmd.Dir = t.TempDir()
				out, err := cmd.CombinedOutput()
				got := strings.TrimSpace(string(out))
				switch {
				case err != nil:
					t.Errorf("%s: %v: %s", line, err, out)
				case i == 0 && got != tt.want:
					t.Errorf("%s: %q, want %q", line, got, tt.want)
				case i == 1 && (tt.want == "") != (got == ""):
					t.Errorf("%s: %q, want a process", line, got)
				case i == 2 && !strings.Contains(got, "net.ipv4.tcp_tw_reuse = "):
					t.Errorf("%s: %q", line, got)
				}
				if files, err := os.ReadDir(cmd.Dir); err != nil || len(files) > 0 {
					t.Errorf("%s: it made %v: %v", line, files, err)
				}
			}
		}
	}
	// All of a line with several commands runs inside.
	line := `r=$(sysctl -n net.ipv4.ip_local_port_range); test "$r" && sysctl -w net.ipv4.ip_local_port_range="40000 40299" || { false; }`
	for _, command := range []string{inside(&scan.Namespace{Name: "x", Path: in}, line), strings.Join(wrap(inside(&scan.Namespace{Name: "x", Path: in}, line), 60), "\n")} {
		if out, err := exec.Command("sh", "-e", "-c", command).CombinedOutput(); err != nil || string(out) != "net.ipv4.ip_local_port_range = 40000 40299\n" {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err != nil || !strings.HasPrefix(string(b), "40000\t40199") {
		t.Errorf("the range here is %q, %v", b, err)
	}
	for _, path := range []string{"", "/run/netns/\x1b[2J", "/run/netns/a\nb", "/run/netns/日本"} {
		if commands := destinationCommands(&scan.Namespace{Name: "x", Path: path}, &pool.Destination{}); commands != nil {
			t.Errorf("%q: %v", path, commands)
		}
	}
}

//go:build linux

package main

import (
	"errors"
	"net"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/trace"
)

// countsBinds reports whether the kernel lets root count failed binds. The test has tracefs.
func countsBinds(t *testing.T) bool {
	t.Helper()
	probe, err := trace.Attach()
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	return probe.NoBinds == nil
}

// bindsFrom returns the sum of the series of an address.
func bindsFrom(t *testing.T, metrics, protocol, source string) float64 {
	t.Helper()
	return sumOfSeries(t, metrics, `bind_failures_total\{.*protocol="`+protocol+`",source_ip="`+regexp.QuoteMeta(source)+`"\}`)
}

const unattributedBinds = "ephemeral_port_bind_failures_unattributed_total"

// TestBindFailures has clients of Go's standard library use up the ports of an address: one that binds before it
// connects, over TCP, and one of UDP. The counts are those of their errors. Where the kernel cannot tell, the log says
// so once, and there are no counts.
func TestBindFailures(t *testing.T) {
	const address, source, ports, tries = "127.0.0.1:10179", "127.82.0.1", 10, 25
	netnstest.LockTraces(t)
	counted := countsBinds(t)
	e := start(t, command(t, "--trace", "--web.listen-address="+address), "http://"+address)
	refused := map[string]float64{}
	t.Run("clients", func(t *testing.T) {
		netnstest.New(t)
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40009")
		listener, err := net.Listen("tcp4", "127.82.0.9:7109")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		for protocol, open := range map[string]func() (interface{ Close() error }, error){
			"tcp": func() (interface{ Close() error }, error) { return dialer.Dial("tcp4", listener.Addr().String()) },
			"udp": func() (interface{ Close() error }, error) { return net.ListenPacket("udp4", source+":0") },
		} {
			granted := 0
			for range tries {
				opened, err := open()
				switch {
				case err == nil:
					defer opened.Close()
					granted++
				case errors.Is(err, unix.EADDRINUSE):
					refused[protocol]++
				default:
					t.Fatal(err)
				}
			}
			if granted != ports {
				t.Errorf("%s: %d sockets got a port, want %d", protocol, granted, ports)
			}
		}
	})
	_, metrics := e.get(t, "/metrics")
	if has := strings.Contains(metrics, "\n"+unattributedBinds+" "); has != counted {
		t.Errorf("%s: %v, want %v", unattributedBinds, has, counted)
	}
	for protocol, want := range refused {
		if !counted {
			want = 0
		}
		if got := bindsFrom(t, metrics, protocol, source); got != want {
			t.Errorf("%s: counted %v failed binds, want %v", protocol, got, want)
		}
	}
	if got := strings.Count(e.log.String(), "Failed binds are not counted"); (got == 1) == counted || got > 1 {
		t.Errorf("the log says %d times that binds are not counted:\n%s", got, e.log)
	}
}

//go:build linux

package scan

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// TestNoAnswer has open connections to a destination, and more attempts that something on the way drops, as a NAT gateway
// without a free port does. The ports here are not the limit, and the advice says so.
func TestNoAnswer(t *testing.T) {
	netnstest.New(t)
	c := clientTo("198.51.100.1", "192.0.2.7:443").bind(netnstest.BindNoPort)
	c.Hold(t, 90)
	for range 100 {
		fd, err := c.Dial()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
	}
	r := collect(t)
	d, ok := destinationOf(r, c.source, c.Destination)
	if !ok {
		t.Fatal("no destination")
	}
	if got := advice.ReachedTCP(&r, &d, false).Alerts(); !slices.Equal(got, []string{"EphemeralPortsSynSent"}) {
		t.Errorf("alerts %q", got)
	}
	if a := advice.TCP(&r, &d, false); !strings.Contains(a.Diagnosis, "Ports here are not the limit: 28042 are free.") || len(a.Cures) != 0 {
		t.Errorf("%+v", a)
	}
}

// TestHalfClosed has a client shut down its direction, and hold the connections. They hold their ports for as long as it does,
// and the advice says who. Between two ends on one host, a Unix socket needs no port.
func TestHalfClosed(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40039")
	c := clientTo("127.0.0.1", "127.0.0.1:81")
	listener := netnstest.Listen(t, "127.0.0.1:81", false)
	var clients []int
	for range 40 {
		client, server := netnstest.Pair(t, c.Client, listener)
		t.Cleanup(func() { unix.Close(server) })
		if err := unix.Shutdown(client, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, client)
	}
	// The other end acknowledges after a moment.
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if d, _ := destinationOf(collect(t), c.source, c.Destination); d.HalfClosed == len(clients) {
			break
		}
	}
	for _, read := range readers() {
		r := read.collect(t)
		d, ok := destinationOf(r, c.source, c.Destination)
		if !ok || d.HalfClosed != len(clients) || d.Open != len(clients) || d.Ports[slices.Index(pool.States[:], tcpstate.FinWait2)] != len(clients) || d.Ceiling != 0 || len(d.Owners) != 1 {
			t.Errorf("%s: %+v", read.name, d)
		}
		a := advice.TCP(&r, &d, false)
		if !strings.Contains(a.Diagnosis, fmt.Sprintf("%d are half-closed, and a process on this host still holds them", len(clients))) || a.Cures[0].Title != "Close both directions" {
			t.Errorf("%s: %+v", read.name, a)
		}
	}
	path := filepath.Join(t.TempDir(), "socket")
	server, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("over a Unix socket: %v", err)
	}
	client.Close()

	unix.Close(clients[0])
	defer func() {
		for _, fd := range clients[1:] {
			unix.Close(fd)
		}
	}()
	if d, _ := destinationOf(collect(t), c.source, c.Destination); d.HalfClosed != len(clients)-1 {
		t.Errorf("%d are half-closed after one was closed", d.HalfClosed)
	}
}

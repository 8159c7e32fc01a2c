//go:build linux

package deploy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/deploy/deploytest"
)

// A gateway is the network namespace of the tests while it translates the addresses of clients in another one.
type gateway struct {
	t      *testing.T
	client string // path of their network namespace
	open   []net.Conn
}

const (
	gatewayServer  = "10.2.0.2:443"
	gatewayAddress = "10.2.0.1" // of the gateway, as the server sees it
	gatewayRange   = "40000-40099"
)

// newGateway has the network namespace of the tests masquerade connections to a server with 100 ports.
func newGateway(t *testing.T) *gateway {
	t.Helper()
	nft := deploytest.Tool(t, "nft", "nftables")
	// Not TempDir: ip(8) takes the "#" of some as the start of a comment.
	dir, err := os.MkdirTemp("", "gateway-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &gateway{t: t, client: filepath.Join(dir, "client")}
	server := filepath.Join(dir, "server")
	for i, path := range []string{g.client, server} {
		name := filepath.Base(path)
		netnstest.Mount(t, path, nil)
		netnstest.IP(t,
			"link add "+name+" type veth peer name eth0 netns "+path,
			fmt.Sprintf("addr add 10.%d.0.1/24 dev %s", i+1, name),
			"link set "+name+" up",
		)
		t.Cleanup(func() { netnstest.IP(t, "link del "+name) })
		netnstest.In(t, path, func() {
			netnstest.IP(t, fmt.Sprintf("addr add 10.%d.0.2/24 dev eth0", i+1), "link set eth0 up", fmt.Sprintf("route add default via 10.%d.0.1", i+1))
		})
	}
	netnstest.Sysctl(t, "ipv4/ip_forward", "1")
	rules := func(script string) {
		cmd := exec.Command(nft, "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	}
	rules(`table ip gateway {
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "server" meta l4proto tcp masquerade to :` + gatewayRange + `
	}
}
`)
	t.Cleanup(func() { rules("delete table ip gateway\n") })

	var listener net.Listener
	netnstest.In(t, server, func() { listener, err = net.Listen("tcp4", gatewayServer) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { // until the client closes
				_, _ = conn.Read(make([]byte, 1))
				conn.Close()
			}()
		}
	}()
	t.Cleanup(g.close)
	return g
}

// connect opens connections in the client until there are n, or one fails. It returns the error.
func (g *gateway) connect(n int) (err error) {
	netnstest.In(g.t, g.client, func() {
		for len(g.open) < n {
			var conn net.Conn
			if conn, err = net.DialTimeout("tcp4", gatewayServer, 5*time.Second); err != nil {
				return
			}
			g.open = append(g.open, conn)
		}
	})
	return err
}

// close closes all connections.
func (g *gateway) close() {
	for _, conn := range g.open {
		conn.Close()
	}
	g.open = nil
}

// TestEndToEndSNAT has real clients use up the ports of a NAT gateway, and checks that the notifications name the
// destination and the translated address.
func TestEndToEndSNAT(t *testing.T) {
	g := newGateway(t)
	w := startAlertmanager(t)
	startExporter(t, "--snat", "--snat.port-range="+gatewayRange)
	startPrometheus(t)

	if err := g.connect(60); err != nil {
		t.Fatal(err)
	}
	w.wait(t, "chat: EphemeralPortsSNATHalfUsed 10.2.0.2 firing")
	waitFor(t, `ephemeral_port_conntrack_insert_failed_total`)

	// Also at the end of the range, a connection gets the last port at the latest with its second packet.
	var timeout net.Error
	if err := g.connect(200); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("connect ended with %v, want a timeout", err)
	}
	if len(g.open) != 100 {
		t.Errorf("%d connections, want 100", len(g.open))
	}
	w.wait(t, "pager: EphemeralPortsSNATExhausted 10.2.0.2 firing")
	eventually(t, "the exhausted alert mutes the others", func() error {
		if g.connect(200) == nil {
			t.Error("a connection found a port")
		}
		alerts := firing(t)
		muted := alerts["EphemeralPortsSNATHalfUsed 10.2.0.2"] && alerts["EphemeralPortsSNATNearlyExhausted 10.2.0.2"] && alerts["EphemeralPortsConntrackInsertFailed"]
		if !muted || alerts["EphemeralPortsSNATExhausted 10.2.0.2"] {
			return fmt.Errorf("muted: %v", alerts)
		}
		return nil
	})
	for _, n := range w.got() {
		if n.Labels["alertname"] != "EphemeralPortsSNATExhausted" {
			continue
		}
		for label, want := range map[string]string{
			"source_ip": gatewayAddress, "destination_ip": "10.2.0.2", "destination_port": "443", "protocol": "tcp", "netns": "self", "severity": "critical",
		} {
			if n.Labels[label] != want {
				t.Errorf("%s=%q, want %q", label, n.Labels[label], want)
			}
		}
	}

	var page struct {
		Level string
		SNAT  []struct {
			Source  string `json:"source_ip"`
			Clients []struct {
				Client string `json:"client_ip"`
				Ports  int
			}
		}
	}
	if err := getJSON("http://127.0.0.1:10149/?destination="+gatewayServer+"&format=json", &page); err != nil {
		t.Fatal(err)
	}
	if page.Level != "exhausted" || len(page.SNAT) != 1 || page.SNAT[0].Source != gatewayAddress ||
		page.SNAT[0].Clients[0].Client != "10.1.0.2" || page.SNAT[0].Clients[0].Ports != 100 {
		t.Errorf("the status page of the alert: %+v", page)
	}

	g.close()
	w.wait(t, "pager: EphemeralPortsSNATExhausted 10.2.0.2 resolved")
}

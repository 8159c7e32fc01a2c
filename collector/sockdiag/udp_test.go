//go:build linux

package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
)

// collectUDP returns all sockets of a dump of UDP.
func collectUDP(c *Conn) ([]Socket, error) {
	var sockets []Socket
	err := c.UDP(func(s *Socket) { sockets = append(sockets, *s) })
	return sockets, err
}

// TestUDPKernel dumps known sockets: with a peer and without, of each family, and several on a port.
// One without a port, one of UDP-Lite and one of TCP are not in it.
func TestUDPKernel(t *testing.T) {
	netnstest.New(t)
	at := netip.MustParseAddrPort
	none, none6 := at("0.0.0.0:0"), at("[::]:0")
	var want []Socket
	for _, s := range []struct {
		udp    netnstest.UDP
		socket Socket
	}{
		{netnstest.UDP{Local: at("127.0.0.9:50")}, Socket{State: tcpstate.Close, Local: at("127.0.0.9:50"), Remote: none}},
		{netnstest.UDP{Local: at("0.0.0.0:50001"), ReuseAddr: true}, Socket{State: tcpstate.Close, Local: at("0.0.0.0:50001"), Remote: none}},
		{netnstest.UDP{Local: at("0.0.0.0:50001"), ReuseAddr: true}, Socket{State: tcpstate.Close, Local: at("0.0.0.0:50001"), Remote: none}},
		{netnstest.UDP{Local: at("198.51.100.1:50002"), Remote: at("198.51.100.7:53")}, Socket{State: tcpstate.Established, Local: at("198.51.100.1:50002"), Remote: at("198.51.100.7:53")}},
		{netnstest.UDP{IPv6: true, Local: at("[::ffff:198.51.100.1]:50003"), Remote: at("198.51.100.7:53")}, Socket{State: tcpstate.Established, Local: at("198.51.100.1:50003"), Remote: at("198.51.100.7:53")}},
		{netnstest.UDP{IPv6: true, Local: at("[::]:65535")}, Socket{State: tcpstate.Close, Local: at("[::]:65535"), Remote: none6}},
		{netnstest.UDP{IPv6: true, V6Only: true, Local: at("[::]:50005")}, Socket{State: tcpstate.Close, Local: at("[::]:50005"), Remote: none6, V6Only: true}},
		// Bound to an address, it is IPv6 only; with a peer, the kernel does not tell.
		{netnstest.UDP{IPv6: true, Local: at("[2001:db8::1]:50006")}, Socket{State: tcpstate.Close, Local: at("[2001:db8::1]:50006"), Remote: none6, V6Only: true}},
		{netnstest.UDP{IPv6: true, Local: at("[2001:db8::1]:50007"), Remote: at("[2001:db8::7]:53")}, Socket{State: tcpstate.Established, Local: at("[2001:db8::1]:50007"), Remote: at("[2001:db8::7]:53")}},
	} {
		s.udp.Hold(t, 1)
		want = append(want, s.socket)
	}
	netnstest.UDP{}.Hold(t, 1)
	// Later kernels have no UDP-Lite.
	if granted, err := (netnstest.UDP{Lite: true, Local: at("0.0.0.0:50008")}).Fill(t, 1); granted != 1 && !errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Errorf("UDP-Lite: %v", err)
	}
	netnstest.Listen(t, "127.0.0.1:50009", false)

	got, err := collectUDP(dial(t))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compareAddrs, sortSockets, ignoreCgroup); diff != "" {
		t.Errorf("sockets (-want +got):\n%s", diff)
	}
	for _, s := range got {
		if s.Cgroup == 0 {
			t.Errorf("%v has no control group", s.Local)
		}
	}
}

// TestUDPChurn dumps sockets while others come and go as fast as they can, on each second port of those
// that stay. No dump fails, and those that stay are in it. A dump is not atomic: behind a full datagram,
// the kernel goes on by counting the sockets of a hash slot (udp_dump). So a socket whose port others use
// too can be missing: a few of a million, more if this process has to wait between two datagrams.
func TestUDPChurn(t *testing.T) {
	netnstest.New(t)
	const stay, low, dumps = 3000, 30000, 200
	at := func(last byte, i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, last}), uint16(low+i))
	}
	for i := range stay {
		netnstest.UDP{Local: at(1, i), Remote: at(7, i), IPv6: i%4 > 1}.Hold(t, 1)
	}
	c := dial(t)

	var missing [2]int // on the ports that others use, and on the rest
	repeated, others := 0, 0
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for range dumps {
			var seen [stay]int
			err := c.UDP(func(s *Socket) {
				i := int(s.Local.Port()) - low
				if i < 0 || i >= stay || s.Local != at(1, i) {
					others++
					return
				}
				if s.Remote != at(7, i) || s.State != tcpstate.Established {
					t.Errorf("%+v: not its own peer", s)
				}
				seen[i]++
			})
			if err != nil {
				t.Error(err)
				return
			}
			for i, n := range seen {
				missing[i%2] += max(1-n, 0)
				repeated += max(n-1, 0)
			}
		}
	}()
	// This thread is in the namespace of the sockets.
	changes, start := 0, time.Now()
	for running := true; running; {
		var fds []int
		for range 500 {
			i := 2 * changes % stay
			changes++
			fd, err := netnstest.UDP{Local: at(2, i), IPv6: i%4 > 1}.Open()
			if err != nil {
				t.Error(err)
				break
			}
			fds = append(fds, fd)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		select {
		case <-stopped:
			running = false
		default:
		}
	}
	const rows = stay * dumps / 2
	if missing[0] > rows/100 || missing[1] > rows/100_000 {
		t.Errorf("of %d rows each, %d are missing on ports that others use, and %d on the rest", rows, missing[0], missing[1])
	}
	if others == 0 {
		t.Error("no other socket was seen")
	}
	t.Logf("%.0f sockets came and went in a second; of %d rows each, %d are missing on ports that others use, and %d on the rest; %d are repeated",
		float64(changes)/time.Since(start).Seconds(), rows, missing[0], missing[1], repeated)
}

// TestUDPErrors checks that no fault reads as few sockets.
func TestUDPErrors(t *testing.T) {
	row := func(r sockdiagtest.Request) []byte {
		return r.Socket(7, v4Local, netip.MustParseAddrPort("0.0.0.0:0"), 0)
	}
	tests := []struct {
		name   string
		answer func(sockdiagtest.Request) [][]byte
		want   error
		text   string
	}{
		{"no udp_diag", func(r sockdiagtest.Request) [][]byte { return [][]byte{r.Done(unix.ENOENT)} }, ErrUnsupported, "modprobe udp_diag"},
		{"no inet_diag", func(r sockdiagtest.Request) [][]byte { return [][]byte{r.Error(unix.ENOENT)} }, ErrUnsupported, "modprobe inet_diag"},
		{"IPv6 fails after IPv4", func(r sockdiagtest.Request) [][]byte {
			if r.Body[0] == unix.AF_INET {
				return [][]byte{row(r), r.Done(0)}
			}
			return [][]byte{row(r), r.Done(unix.ENOMEM)}
		}, unix.ENOMEM, "failed in the kernel"},
		{"silence", func(sockdiagtest.Request) [][]byte { return nil }, os.ErrDeadlineExceeded, "receive answer"},
		{"rows without an end", func(r sockdiagtest.Request) [][]byte { return [][]byte{row(r)} }, os.ErrDeadlineExceeded, "receive answer"},
		{"half a message", func(r sockdiagtest.Request) [][]byte { return [][]byte{row(r)[:40]} }, ErrMalformed, "40 bytes left"},
		{"forbidden", func(r sockdiagtest.Request) [][]byte { return [][]byte{r.Error(unix.EPERM)} }, os.ErrPermission, "security policy"},
		{"no buffers", func(r sockdiagtest.Request) [][]byte { return [][]byte{r.Error(unix.ENOBUFS)} }, unix.ENOBUFS, "no buffer space"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked := make(chan string, 2)
			c := fakeConn(t, func(r sockdiagtest.Request) [][]byte {
				asked <- fmt.Sprintf("%d/%d/%d", r.Type, r.Body[0], r.Body[1])
				return tt.answer(r)
			})
			timeout := time.Minute
			if errors.Is(tt.want, os.ErrDeadlineExceeded) {
				timeout = 100 * time.Millisecond
			}
			c.SetDeadline(time.Now().Add(timeout))
			_, err := collectUDP(c)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || !strings.HasPrefix(err.Error(), "sockdiag: dump udp sockets: ") {
				t.Errorf("got %v, want %v that says %q", err, tt.want, tt.text)
			}
			if got := <-asked; got != "20/2/17" {
				t.Errorf("request type/family/protocol: got %s, want 20/2/17", got)
			}
		})
	}
}

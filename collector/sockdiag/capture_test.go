//go:build linux

package sockdiag

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
)

var updateCapture = flag.Bool("update-capture", false, "capture the dumps in testdata anew from this kernel")

// TestCapture decodes dumps of a real kernel. It compares them with the output of ss(8) for the
// same sockets in the same second.
//
// The files were written by
//
//	go test ./collector/sockdiag -run TestCapture -update-capture
//
// on Linux 6.18 x86_64 with ss of iproute2 6.1. One file is the output of "ss -Htan". For each
// type of request, another has the datagrams of the answer, each after its length.
func TestCapture(t *testing.T) {
	if *updateCapture {
		capture(t)
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the captured bytes are those of a little-endian machine")
	}
	ss, err := os.ReadFile("testdata/ss.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := parseSS(t, string(ss))
	if len(want) < 6 {
		t.Fatalf("ss.txt has %d sockets only", len(want))
	}

	both := decode(t, "testdata/getsock.bin", typeGetSock)
	if diff := cmp.Diff(want, both); diff != "" {
		t.Errorf("one dump for both families (-ss +got):\n%s", diff)
	}
	each := append(
		decode(t, "testdata/by_family_inet.bin", typeByFamily),
		decode(t, "testdata/by_family_inet6.bin", typeByFamily)...)
	slices.Sort(each)
	if diff := cmp.Diff(want, each); diff != "" {
		t.Errorf("a dump for each family (-ss +got):\n%s", diff)
	}
}

// decode returns the sockets of a captured dump as sorted lines of text.
func decode(t *testing.T, file string, typ netlink.HeaderType) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var sockets []string
	r := reply{typ: typ, seq: 1, each: func(s *Socket) {
		sockets = append(sockets, fmt.Sprintf("%v %v %v", s.State, s.Local, s.Remote))
	}}
	done := false
	for len(b) > 0 {
		end := 4 + binary.LittleEndian.Uint32(b)
		if done, err = r.datagram(b[4:end]); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		b = b[end:]
	}
	if !done {
		t.Errorf("%s: the dump has no end", file)
	}
	slices.Sort(sockets)
	return sockets
}

// parseSS returns the sockets of "ss -Htan" as sorted lines of text, in the form of decode.
func parseSS(t *testing.T, text string) []string {
	t.Helper()
	names := map[string]tcpstate.State{
		"ESTAB": tcpstate.Established, "SYN-SENT": tcpstate.SynSent, "SYN-RECV": tcpstate.SynRecv, "FIN-WAIT-1": tcpstate.FinWait1, "FIN-WAIT-2": tcpstate.FinWait2,
		"TIME-WAIT": tcpstate.TimeWait, "CLOSE-WAIT": tcpstate.CloseWait, "LAST-ACK": tcpstate.LastAck, "CLOSING": tcpstate.Closing,
	}
	var sockets []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		state, ok := names[fields[0]]
		if !ok {
			continue
		}
		local, remote := netip.MustParseAddrPort(fields[3]), netip.MustParseAddrPort(fields[4])
		unmap := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
		sockets = append(sockets, fmt.Sprintf("%v %v %v", state, unmap(local), unmap(remote)))
	}
	slices.Sort(sockets)
	return sockets
}

// capture makes sockets in several states and writes the files of TestCapture.
func capture(t *testing.T) {
	t.Helper()
	netnstest.New(t)
	hold := func(fds ...int) {
		for _, fd := range fds {
			t.Cleanup(func() { unix.Close(fd) })
		}
	}
	client := func(destination string, mapped bool) netnstest.Client {
		return netnstest.Client{Destination: netip.MustParseAddrPort(destination), Mapped: mapped}
	}
	listener := netnstest.Listen(t, "[::]:80", false)
	c, s := netnstest.Pair(t, client("198.51.100.7:80", false), listener)
	hold(c, s)
	c, s = netnstest.Pair(t, client("[::1]:80", false), listener)
	hold(c)
	netnstest.Hangup(s)
	netnstest.TimeWait(t, client("198.51.100.7:80", true), listener, 3)
	netnstest.TimeWait(t, client("[::1]:80", false), listener, 2)
	fd, err := client("192.0.2.1:443", false).Dial()
	if err != nil {
		t.Fatal(err)
	}
	hold(fd)

	ss, err := exec.Command("ss", "-Htan").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("testdata/ss.txt", ss, 0o644); err != nil {
		t.Fatal(err)
	}
	req := request{high: 65535}
	for s := tcpstate.Established; s <= tcpstate.Closing; s++ {
		if s != tcpstate.Listen {
			req.states |= bit(s)
		}
	}
	captureDump(t, "testdata/getsock.bin", typeGetSock, req.getSock())
	captureDump(t, "testdata/by_family_inet.bin", typeByFamily, req.byFamily(unix.AF_INET))
	captureDump(t, "testdata/by_family_inet6.bin", typeByFamily, req.byFamily(unix.AF_INET6))
}

// captureDump writes the datagrams that answer a request.
func captureDump(t *testing.T, file string, typ netlink.HeaderType, body []byte) {
	t.Helper()
	c := dial(t)
	seq, err := c.conn.Send(typ, netlink.Request|netlink.Dump, body)
	if err != nil {
		t.Fatal(err)
	}
	var datagrams []byte
	r := reply{typ: typ, seq: seq, each: func(*Socket) {}}
	for done := false; !done; {
		b, err := c.conn.Receive()
		if err != nil {
			t.Fatal(err)
		}
		datagrams = binary.LittleEndian.AppendUint32(datagrams, uint32(len(b)))
		datagrams = append(datagrams, b...)
		if done, err = r.datagram(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, datagrams, 0o644); err != nil {
		t.Fatal(err)
	}
}

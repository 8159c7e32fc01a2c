//go:build linux

package sockdiag

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
)

var (
	compareAddrs = cmpopts.EquateComparable(netip.AddrPort{})

	testRequest = sockdiagtest.Request{Type: uint16(typeGetSock), Sequence: 7}

	v4Local  = netip.MustParseAddrPort("10.0.0.1:40000")
	v4Remote = netip.MustParseAddrPort("10.0.0.2:443")
	v6Local  = netip.MustParseAddrPort("[2001:db8::1]:40001")
	v6Remote = netip.MustParseAddrPort("[2001:db8::2]:443")
)

// patch returns b with the bytes at offset replaced.
func patch(b []byte, offset int, with ...byte) []byte {
	b = slices.Clone(b)
	copy(b[offset:], with)
	return b
}

// native32 returns n as bytes in native order.
func native32(n uint32) []byte { return concat(n) }

// TestReplyErrors checks what is wrong with rows, and the explanations. What can be wrong with any message of netlink
// is tested in nlconn.
func TestReplyErrors(t *testing.T) {
	r := testRequest
	row := r.Socket(uint8(tcpstate.TimeWait), v4Local, v4Remote, 1000)
	listener := func(attrs ...byte) []byte {
		body := append(r.Socket(uint8(tcpstate.Listen), v6Local, v6Remote, 0)[16:], attrs...)
		return r.Message(r.Type, 0, body)
	}
	unconnected := func(attrs ...byte) []byte {
		return r.Message(r.Type, 0, append(r.Socket(uint8(tcpstate.Close), v6Local, v6Remote, 0)[16:], attrs...))
	}
	client := func(attrs ...byte) []byte {
		return r.Message(r.Type, 0, append(r.Socket(uint8(tcpstate.Established), v4Local, v4Remote, 0)[16:], attrs...))
	}
	tests := []struct {
		name     string
		datagram []byte
		want     error
		text     string
	}{
		{"half a row", row[:len(row)/2], ErrMalformed, "length 88, 44 bytes left"},
		{"short row", r.Message(r.Type, 0, row[16:87]), ErrMalformed, "socket of 71 bytes, expected at least 72"},
		{"row without body", r.Message(r.Type, 0, nil), ErrMalformed, "socket of 0 bytes"},
		{"second message truncated", append(slices.Clone(row), row[:20]...), ErrMalformed, "length 88, 20 bytes left"},
		{"bytes left over", append(slices.Clone(row), 0, 0), ErrMalformed, "2 bytes, expected a message header"},
		{"unknown message", r.Message(99, 0, row[16:]), ErrMalformed, "type 99"},
		{"row of another type", r.Message(20, 0, row[16:]), ErrMalformed, "type 20"},
		{"attribute too long", listener(9, 0, 11, 0, 1), ErrMalformed, "attribute length 9, 5 bytes left"},
		{"attribute of a client truncated", client(12, 0, 21, 0, 1), ErrMalformed, "attribute length 12, 5 bytes left"},
		{"control group of no bytes", client(4, 0, 21, 0), ErrMalformed, "control group of 0 bytes"},
		{"control group of 7 bytes", client(11, 0, 21, 0, 1, 2, 3, 4, 5, 6, 7), ErrMalformed, "control group of 7 bytes"},
		{"no inet_diag", r.Error(unix.ENOENT), ErrUnsupported, "inet_diag is not loaded: modprobe inet_diag"},
		{"no inet_diag by GETSOCK", r.Error(unix.EOPNOTSUPP), ErrUnsupported, "inet_diag is not loaded: modprobe inet_diag"},
		{"no tcp_diag", r.Done(unix.ENOENT), ErrUnsupported, "tcp_diag is not loaded: modprobe tcp_diag"},
		{"attribute of a UDP socket truncated", unconnected(5, 0, 11, 0, 1, 0, 0, 0, 12, 0, 21, 0), ErrMalformed, "attribute length 12, 4 bytes left"},
		{"forbidden", r.Error(unix.EPERM), unix.EPERM, "security policy"},
		{"refused", r.Error(unix.EINVAL), unix.EINVAL, "refused by the kernel"},
		{"failed", r.Done(unix.ENOMEM), unix.ENOMEM, "failed in the kernel"},
		{"failed with an errno of a refusal", r.Done(unix.EPERM), unix.EPERM, "failed in the kernel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reply := reply{typ: typeGetSock, seq: 7, each: func(*Socket) {}}
			done, err := reply.datagram(tt.datagram)
			if done || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, %v, want an error %v that says %q", done, err, tt.want, tt.text)
			}
		})
	}
}

func TestReply(t *testing.T) {
	r := testRequest
	row := r.Socket(uint8(tcpstate.TimeWait), v4Local, v4Remote, 59990)
	socket := Socket{State: tcpstate.TimeWait, Local: v4Local, Remote: v4Remote, Expires: 59990 * time.Millisecond}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(v4Local.Addr().As16()), v4Local.Port())
	mappedRemote := netip.AddrPortFrom(netip.AddrFrom16(v4Remote.Addr().As16()), v4Remote.Port())
	listener := func(attrs ...byte) []byte {
		body := append(r.Socket(uint8(tcpstate.Listen), v6Local, v6Remote, 0)[16:], attrs...)
		return r.Message(r.Type, 0, body)
	}
	unconnected := func(attrs ...byte) []byte {
		return r.Message(r.Type, 0, append(r.Socket(uint8(tcpstate.Close), v6Local, v6Remote, 0)[16:], attrs...))
	}
	shutdown := []byte{5, 0, 8, 0, 0, 0, 0, 0} // INET_DIAG_SHUTDOWN
	cgroup := []byte{12, 0, 21, 0, 1, 0, 0, 0, 2, 0, 0, 0}
	withCgroup := func(state tcpstate.State) []byte {
		body := append(r.Socket(uint8(state), v4Local, v4Remote, 0)[16:], shutdown...)
		return r.Message(r.Type, 0, append(append(body, cgroup...), 5, 0, 22, 0, 0, 0, 0, 0))
	}

	tests := []struct {
		name     string
		datagram []byte
		done     bool
		want     []Socket
	}{
		{"nothing", nil, false, nil},
		{"end", r.Done(0), true, nil},
		{"noop", r.Message(unix.NLMSG_NOOP, 0, nil), false, nil},
		{"unknown family", patch(row, 16, unix.AF_VSOCK), false, nil},
		{"IPv4", row, false, []Socket{socket}},
		{"row longer than ours", r.Message(r.Type, 0, append(slices.Clone(row[16:]), 9, 0, 77, 0, 1, 2, 3, 4, 5)), false, []Socket{socket}},
		{"mini-socket", patch(row, 18, 3), false, []Socket{{State: tcpstate.TimeWait, Mini: true, Local: v4Local, Remote: v4Remote, Expires: socket.Expires}}},
		{"timer for keepalive", patch(row, 18, 2), false, []Socket{socket}},
		{"unknown state", patch(row, 17, 200), false, []Socket{{State: 200, Local: v4Local, Remote: v4Remote, Expires: socket.Expires}}},
		{
			"IPv6 with interface", patch(r.Socket(uint8(tcpstate.Established), v6Local, v6Remote, 0), 16+40, native32(3)...), false,
			[]Socket{{State: tcpstate.Established, Local: v6Local, Remote: v6Remote, Interface: 3}},
		},
		{"mapped", r.Socket(uint8(tcpstate.TimeWait), mapped, mappedRemote, 59990), false, []Socket{socket}},
		{"two and the end", slices.Concat(row, row, r.Done(0)), true, []Socket{socket, socket}},
		{"control group", withCgroup(tcpstate.SynSent), false, []Socket{{State: tcpstate.SynSent, Local: v4Local, Remote: v4Remote, Cgroup: 2<<32 + 1}}},
		{
			"control group, and then none", slices.Concat(withCgroup(tcpstate.Established), patch(row, 18, 3)), false,
			[]Socket{
				{State: tcpstate.Established, Local: v4Local, Remote: v4Remote, Cgroup: 2<<32 + 1},
				{State: tcpstate.TimeWait, Mini: true, Local: v4Local, Remote: v4Remote, Expires: socket.Expires},
			},
		},
		{"listener", listener(), false, []Socket{{State: tcpstate.Listen, Local: v6Local, Remote: v6Remote}}},
		{
			"listener for both", listener(append(shutdown, 5, 0, 11, 0, 0, 0, 0, 0)...), false,
			[]Socket{{State: tcpstate.Listen, Local: v6Local, Remote: v6Remote}},
		},
		{
			"listener for IPv6 only", listener(append(shutdown, 5, 0, 11, 0, 1, 0, 0, 0)...), false,
			[]Socket{{State: tcpstate.Listen, Local: v6Local, Remote: v6Remote, V6Only: true}},
		},
		{
			"UDP without a peer", slices.Concat(unconnected(slices.Concat([]byte{5, 0, 11, 0, 1, 0, 0, 0}, cgroup)...), unconnected()), false,
			[]Socket{{State: tcpstate.Close, Local: v6Local, Remote: v6Remote, V6Only: true, Cgroup: 2<<32 + 1}, {State: tcpstate.Close, Local: v6Local, Remote: v6Remote}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []Socket
			reply := reply{typ: typeGetSock, seq: 7, each: func(s *Socket) { got = append(got, *s) }}
			done, err := reply.datagram(tt.datagram)
			if done != tt.done || err != nil {
				t.Errorf("got %v, %v, want %v", done, err, tt.done)
			}
			if diff := cmp.Diff(tt.want, got, compareAddrs); diff != "" {
				t.Errorf("sockets (-want +got):\n%s", diff)
			}
			if reply.rows != len(tt.want) {
				t.Errorf("rows: got %d, want %d", reply.rows, len(tt.want))
			}
		})
	}
}

// TestReplyAllocates checks that a reply allocates nothing for a socket.
func TestReplyAllocates(t *testing.T) {
	row := testRequest.Socket(uint8(tcpstate.TimeWait), v6Local, v6Remote, 1)
	datagram := slices.Repeat(row, 100)
	sockets := 0
	reply := reply{typ: typeGetSock, seq: 7, each: func(*Socket) { sockets++ }}
	allocs := testing.AllocsPerRun(10, func() {
		if _, err := reply.datagram(datagram); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 || sockets != 1100 {
		t.Errorf("%v allocations for %d sockets, want 0 for 1100", allocs, sockets)
	}
}

// FuzzReply decodes any bytes. The decoder must not panic or return an impossible socket.
func FuzzReply(f *testing.F) {
	r := testRequest
	row := r.Socket(uint8(tcpstate.TimeWait), v4Local, v4Remote, 1000)
	f.Add([]byte{})
	f.Add(row)
	f.Add(slices.Concat(row, r.Socket(uint8(tcpstate.Listen), v6Local, v6Remote, 0), r.Done(0)))
	f.Add(r.Error(unix.EINVAL))
	f.Add(r.Message(r.Type, 0, append(r.Socket(uint8(tcpstate.Close), v6Local, v6Remote, 0)[16:], 5, 0, 11, 0, 1, 0, 0, 0, 12, 0, 21, 0, 1, 0, 0, 0, 2, 0, 0, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		sockets := 0
		reply := reply{typ: typeGetSock, seq: 7, each: func(s *Socket) {
			sockets++
			if !s.Local.IsValid() || !s.Remote.IsValid() || s.Local.Addr().Is4In6() || s.Expires < 0 {
				t.Errorf("impossible socket %+v", s)
			}
		}}
		done, err := reply.datagram(b)
		if done && err != nil {
			t.Errorf("done with the error %v", err)
		}
		if sockets*(unix.SizeofNlMsghdr+sizeofMsg) > len(b) {
			t.Errorf("%d sockets out of %d bytes", sockets, len(b))
		}
	})
}

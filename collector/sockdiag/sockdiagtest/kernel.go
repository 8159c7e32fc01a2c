//go:build linux

package sockdiagtest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// A Request is a request to the fake kernel.
type Request struct {
	Type     uint16 // of the message: TCPDIAG_GETSOCK or SOCK_DIAG_BY_FAMILY
	Sequence uint32
	Body     []byte
}

// Dial connects to a fake kernel, which ends when fd is closed. It sends the datagrams that
// answer returns for a request. If there are none, the reader of fd waits.
func Dial(answer func(Request) [][]byte) (fd int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("sockdiagtest: %w", err)
	}
	f := os.NewFile(uintptr(fds[1]), "sockdiagtest")
	defer f.Close()
	kernel, err := net.FileConn(f)
	if err != nil {
		unix.Close(fds[0])
		return -1, fmt.Errorf("sockdiagtest: %w", err)
	}
	go serve(kernel, answer)
	return fds[0], nil
}

// Queue returns a socket with these datagrams, and its peer. Nothing answers what is written to fd. All
// datagrams must fit into a socket buffer.
func Queue(datagrams ...[]byte) (fd, peer int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("sockdiagtest: %w", err)
	}
	for _, d := range datagrams {
		if _, err := unix.SendmsgN(fds[1], d, nil, nil, unix.MSG_DONTWAIT); err != nil {
			unix.Close(fds[0])
			unix.Close(fds[1])
			return -1, -1, fmt.Errorf("sockdiagtest: %w", err)
		}
	}
	return fds[0], fds[1], nil
}

func serve(c net.Conn, answer func(Request) [][]byte) {
	defer c.Close()
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		if err != nil || n < 16 {
			return
		}
		for _, datagram := range answer(Request{
			Type:     binary.NativeEndian.Uint16(b[4:]),
			Sequence: binary.NativeEndian.Uint32(b[8:]),
			Body:     b[16:n],
		}) {
			if _, err := c.Write(datagram); err != nil {
				return
			}
		}
	}
}

// Message returns a netlink message that answers r.
func (r Request) Message(typ, flags uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, r.Sequence)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// Done returns NLMSG_DONE with an errno, 0 for success.
func (r Request) Done(errno unix.Errno) []byte {
	return r.Message(unix.NLMSG_DONE, unix.NLM_F_MULTI, binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno))))
}

// Error returns NLMSG_ERROR with an errno.
func (r Request) Error(errno unix.Errno) []byte {
	return r.Message(unix.NLMSG_ERROR, 0, binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno))))
}

// Socket returns a row: struct inet_diag_msg without attributes. expires is in milliseconds.
func (r Request) Socket(state uint8, local, remote netip.AddrPort, expires uint32) []byte {
	b := make([]byte, 72)
	b[0], b[1] = unix.AF_INET, state
	if local.Addr().Is6() {
		b[0] = unix.AF_INET6
	}
	binary.BigEndian.PutUint16(b[4:], local.Port())
	binary.BigEndian.PutUint16(b[6:], remote.Port())
	copy(b[8:], local.Addr().AsSlice())
	copy(b[24:], remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(b[52:], expires)
	return r.Message(r.Type, unix.NLM_F_MULTI, b)
}

//go:build linux

package conntracktest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// A Table changes the kernel's table of the network namespace in which it was opened. It needs
// CAP_NET_ADMIN, and conntrack and NAT in the kernel.
type Table struct{ fd int }

// Open opens the table of the calling thread's network namespace until the end of the test.
func Open(tb testing.TB) *Table {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		tb.Fatalf("conntracktest: %v", err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	return &Table{fd}
}

// Create creates flows, as if packets had come. A flow that is there already is an error.
func (t *Table) Create(n int, flow func(i int) Flow) error {
	const typeNew = unix.NFNL_SUBSYS_CTNETLINK << 8 // IPCTNL_MSG_CT_NEW
	return t.batch(typeNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, n, func(i int) []byte { return flow(i).order() })
}

// Delete deletes flows, known by their Original and their zones.
func (t *Table) Delete(n int, flow func(i int) Flow) error {
	const typeDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
	return t.batch(typeDelete, 0, n, func(i int) []byte {
		f := flow(i)
		b := append(f.genMsg(), attr(ctaTupleOrig|nested, f.tuple(f.Original))...)
		if f.Zone != 0 {
			b = append(b, attr16(ctaZone, f.Zone)...)
		}
		return b
	})
}

// batch sends messages, 100 in a datagram, and waits until the kernel has acknowledged the last one
// of each datagram. It answers in order, and to the others only with errors.
func (t *Table) batch(typ, flags uint16, n int, body func(i int) []byte) error {
	const size = 100
	var b []byte
	in := make([]byte, 64<<10)
	for i := range n {
		last := i == n-1 || i%size == size-1
		f := flags | unix.NLM_F_REQUEST
		if last {
			f |= unix.NLM_F_ACK
		}
		content := body(i)
		b = binary.NativeEndian.AppendUint32(b, uint32(16+len(content)))
		b = binary.NativeEndian.AppendUint16(b, typ)
		b = binary.NativeEndian.AppendUint16(b, f)
		b = binary.NativeEndian.AppendUint32(b, uint32(i))
		b = append(append(b, 0, 0, 0, 0), content...)
		if !last {
			continue
		}
		if _, err := unix.Write(t.fd, b); err != nil {
			return fmt.Errorf("conntracktest: %w", err)
		}
		b = b[:0]
		m, err := unix.Read(t.fd, in)
		for errors.Is(err, unix.EINTR) {
			m, err = unix.Read(t.fd, in)
		}
		if err != nil {
			return fmt.Errorf("conntracktest: %w", err)
		} else if m < 20 {
			return fmt.Errorf("conntracktest: answer of %d bytes", m)
		}
		if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(in[16:]))); errno != 0 {
			return fmt.Errorf("conntracktest: flow %d: %w", binary.NativeEndian.Uint32(in[8:]), errno)
		}
	}
	return nil
}

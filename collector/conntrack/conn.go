//go:build linux

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// BufferSize is the length in bytes of the buffer for Dial. A datagram of a dump is as long as
// the largest buffer that the kernel has seen, but at most 32 KiB (netlink_recvmsg). A datagram
// that fills this buffer was therefore truncated.
const BufferSize = 64 << 10

// A Conn lists the flows of one network namespace: the namespace of the thread that called Dial.
//
// It needs CAP_NET_ADMIN in the user namespace of that network namespace. It serves one request at
// a time. It must not be used after an error: the rest of the broken answer is still in the socket.
type Conn struct {
	fd       int
	read     func(fd int, b []byte) (int, error) // read(2)
	buf      []byte
	deadline time.Time
	timeout  unix.Timeval // of the next read
	seq      uint32
}

// Dial opens a connection to the kernel. The Conn receives into buffer, which must have
// BufferSize bytes and may be used again after Close. The error is ErrUnsupported if the kernel
// has no NETLINK_NETFILTER. Whether the kernel will answer is told by Check.
func Dial(buffer []byte) (*Conn, error) {
	nc, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, dialError(err)
	}
	fd, err := takeDescriptor(nc)
	if err != nil {
		return nil, dialError(err)
	}
	// From here on the kernel rejects messages of other senders (netlink_getsockbyportid).
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, dialError(os.NewSyscallError("connect", err))
	}
	return NewConn(fd, buffer), nil
}

// takeDescriptor returns a blocking descriptor of the socket of nc and closes nc. With the
// runtime's poller, each datagram that the kernel queues would wake a thread without need.
func takeDescriptor(nc *netlink.Conn) (fd int, err error) {
	defer nc.Close()
	raw, err := nc.SyscallConn()
	if err != nil {
		return -1, err
	}
	var dupErr error
	err = raw.Control(func(from uintptr) {
		fd, dupErr = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(err, os.NewSyscallError("fcntl", dupErr)); err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}

// NewConn returns a Conn that uses fd: a blocking datagram socket whose peer answers ctnetlink
// requests. The Conn owns fd and closes it.
func NewConn(fd int, buffer []byte) *Conn {
	return &Conn{fd: fd, read: unix.Read, buf: buffer}
}

// Close closes the connection.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// SetDeadline bounds all requests from now on. It is checked before each datagram: the kernel
// cannot be stopped while it fills one.
func (c *Conn) SetDeadline(t time.Time) { c.deadline = t }

// Check asks the kernel for the number of flows, which takes microseconds. The error says why
// Flows cannot work: os.ErrPermission without CAP_NET_ADMIN, ErrUnsupported without
// nf_conntrack_netlink.
//
// The kernel loads nf_conntrack and nf_conntrack_netlink for this request if it has them as
// modules. Whoever must not load them looks for /proc/sys/net/netfilter/nf_conntrack_count first.
func (c *Conn) Check() error {
	if err := c.roundTrip(typeGetStats, netlink.Request, nil, reply{typ: typeGetStats}); err != nil {
		return fmt.Errorf("conntrack: count flows: %w", err)
	}
	return nil
}

// Flows calls each for every TCP and UDP flow that has all bits of status: SrcNAT for those whose
// source was changed, 0 for all. The Flow is valid until the call returns. The namespace's own flows
// from a translated address, and those whose source NAT left as it was, are without SrcNAT, but
// have ports of the same pools.
//
// Before an error, each may have been called for some flows: these are incomplete and must not be
// used. A dump is not atomic: a flow that begins, ends or changes meanwhile can be missing or
// appear twice. If a flow ends at the border of two datagrams, others of its hash bucket appear
// twice (ctnetlink_dump_table). Flows that have expired are missing.
//
// The kernel does not say if its hash table was resized during the dump: flows are then missing
// or appear twice. So whoever needs them all compares nf_conntrack_buckets before and after.
//
// All namespaces share the table, so a dump takes time also where there are no flows. The kernel
// walks it without softirqs until a datagram is full. That delays packets on this CPU, the longer the
// fewer flows have the status.
func (c *Conn) Flows(status Status, each func(*Flow)) error {
	err := c.roundTrip(typeGet, netlink.Request|netlink.Dump, flowsRequest(status), reply{typ: typeNew, status: status, each: each})
	if err != nil {
		return fmt.Errorf("conntrack: dump flows: %w", err)
	}
	return nil
}

// flowsRequest returns the attributes of a request for the flows with all bits of status. Kernels
// before 5.15 ignore them and send all flows.
func flowsRequest(status Status) []byte {
	if status == 0 { // such a filter is an error
		return nil
	}
	var b []byte
	for _, typ := range []uint16{attrStatus, attrStatusMask} {
		b = binary.NativeEndian.AppendUint16(b, sizeofAttr+4)
		b = binary.NativeEndian.AppendUint16(b, typ)
		b = binary.BigEndian.AppendUint32(b, uint32(status))
	}
	return b
}

// roundTrip sends one request and decodes the answer with r.
func (c *Conn) roundTrip(typ netlink.HeaderType, flags netlink.HeaderFlags, attrs []byte, r reply) error {
	c.seq++
	r.seq = c.seq
	if err := c.send(typ, flags, attrs); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	for {
		b, err := c.receive()
		if err != nil {
			return fmt.Errorf("receive answer: %w", err)
		}
		done, err := r.datagram(b)
		if done || err != nil {
			return err
		}
	}
}

// send writes a request to the kernel. Its struct nfgenmsg is for all address families.
func (c *Conn) send(typ netlink.HeaderType, flags netlink.HeaderFlags, attrs []byte) error {
	b := make([]byte, sizeofHeader+sizeofGenMsg, sizeofHeader+sizeofGenMsg+len(attrs))
	binary.NativeEndian.PutUint32(b[0:], uint32(len(b)+len(attrs)))
	binary.NativeEndian.PutUint16(b[4:], uint16(typ))
	binary.NativeEndian.PutUint16(b[6:], uint16(flags))
	binary.NativeEndian.PutUint32(b[8:], c.seq)
	b = append(b, attrs...)

	for {
		_, err := unix.Write(c.fd, b)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive returns one datagram of the kernel, valid until the next call.
func (c *Conn) receive() ([]byte, error) {
	for {
		if err := c.applyDeadline(); err != nil {
			return nil, err
		}
		n, err := c.read(c.fd, c.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil, os.ErrDeadlineExceeded
		case errors.Is(err, unix.ENOBUFS):
			return nil, fmt.Errorf("%w: receive buffer overflow: %w", ErrInterrupted, err)
		case err != nil:
			return nil, err
		case n == 0:
			return nil, fmt.Errorf("%w: empty datagram", ErrMalformed)
		case n == len(c.buf):
			return nil, fmt.Errorf("%w: datagram of %d bytes or more", ErrMalformed, n)
		}
		return c.buf[:n], nil
	}
}

// applyDeadline sets the timeout of the next read: it fails with EAGAIN at the deadline.
func (c *Conn) applyDeadline() error {
	if c.deadline.IsZero() {
		return nil
	}
	left := time.Until(c.deadline)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	// A timeout of zero would mean no timeout.
	c.timeout = unix.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
	return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &c.timeout))
}

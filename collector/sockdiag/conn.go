//go:build linux

package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// BufferSize is the length of the buffer that Dial takes. The kernel fills a datagram of
// a dump up to the largest buffer it has seen, and no further than 32 KiB
// (netlink_recvmsg): one that fills this buffer was cut.
const BufferSize = 64 << 10

// A Conn asks for the TCP sockets of one network namespace: the one that the
// calling thread was in when the Conn was dialed.
//
// It needs no privilege. It serves one request at a time, and none after an
// error: what is left of a broken answer is still in the socket.
type Conn struct {
	fd       int
	read     func(fd int, b []byte) (int, error) // read(2)
	buf      []byte
	deadline time.Time
	timeout  unix.Timeval // of the next read
	seq      uint32

	// byFamily is set once the kernel refused TCPDIAG_GETSOCK.
	byFamily bool
}

// Dial opens a connection to the kernel that receives into a buffer of BufferSize bytes.
// The buffer may be used again once the Conn is closed. The error is ErrUnsupported where
// there is no NETLINK_SOCK_DIAG.
func Dial(buffer []byte) (*Conn, error) {
	nc, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, dialError(err)
	}
	fd, err := takeDescriptor(nc)
	if err != nil {
		return nil, dialError(err)
	}
	// From here on the kernel keeps messages of other senders away (netlink_getsockbyportid).
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, dialError(os.NewSyscallError("connect", err))
	}
	return NewConn(fd, buffer), nil
}

// takeDescriptor returns a blocking descriptor of the same socket and closes nc. In the
// runtime's poller, each datagram that the kernel queues while it answers would wake a
// thread for nothing: a sixth of the time of a dump.
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

// NewConn makes a Conn of the descriptor of a datagram socket that blocks, and whose
// peer speaks sock_diag. The Conn owns it from here on.
func NewConn(fd int, buffer []byte) *Conn {
	return &Conn{fd: fd, read: unix.Read, buf: buffer}
}

// Close closes the connection.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// SetDeadline bounds all requests from now on; a zero t lifts the bound. It is checked
// before each datagram: the kernel cannot be stopped while it fills one.
func (c *Conn) SetDeadline(t time.Time) { c.deadline = t }

// Listeners calls each for every listening socket whose local port lies from low
// to high, both included. It costs microseconds: the kernel walks its table of
// listeners only.
//
// See Sockets for what each is given, and for errors.
func (c *Conn) Listeners(low, high uint16, each func(*Socket)) error {
	if err := c.dump(request{states: Listen.bit(), low: low, high: high}, each); err != nil {
		return fmt.Errorf("sockdiag: dump listeners: %w", err)
	}
	return nil
}

// Sockets calls each for every socket in one of these states whose local port lies
// from low to high, both included. The Socket is valid until the call returns.
//
// On an error each may have been called for some sockets: what it gathered is
// not the namespace's state and must not be used. A dump is not atomic: a socket
// that comes, goes or changes state meanwhile can be missing or be there twice.
func (c *Conn) Sockets(states []State, low, high uint16, each func(*Socket)) error {
	req := request{low: low, high: high}
	for _, s := range states {
		req.states |= s.bit()
	}
	if err := c.dump(req, each); err != nil {
		return fmt.Errorf("sockdiag: dump tcp sockets: %w", err)
	}
	return nil
}

// dump sends req for both address families and folds the answers.
func (c *Conn) dump(req request, each func(*Socket)) error {
	if !c.byFamily {
		rows, err := c.roundTrip(typeGetSock, req.getSock(), each)
		refused := errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
		if !refused || rows > 0 {
			return err
		}
		c.byFamily = true
	}

	if _, err := c.roundTrip(typeByFamily, req.byFamily(unix.AF_INET), each); err != nil {
		return err
	}
	// A kernel without IPv6 has an answer to this too, without rows.
	_, err := c.roundTrip(typeByFamily, req.byFamily(unix.AF_INET6), each)
	return err
}

// roundTrip sends one request and hands the sockets of the answer to each. It
// returns their number, also with an error.
func (c *Conn) roundTrip(typ netlink.HeaderType, body []byte, each func(*Socket)) (rows int, err error) {
	c.seq++
	if err := c.send(typ, body); err != nil {
		return 0, fmt.Errorf("send request: %w", err)
	}

	r := reply{typ: typ, seq: c.seq, each: each}
	for {
		b, err := c.receive()
		if err != nil {
			return r.rows, fmt.Errorf("receive answer: %w", err)
		}
		done, err := r.datagram(b)
		if done || err != nil {
			return r.rows, err
		}
	}
}

// send writes a request to the kernel.
func (c *Conn) send(typ netlink.HeaderType, body []byte) error {
	b := make([]byte, sizeofHeader, sizeofHeader+len(body))
	binary.NativeEndian.PutUint32(b[0:], uint32(sizeofHeader+len(body)))
	binary.NativeEndian.PutUint16(b[4:], uint16(typ))
	binary.NativeEndian.PutUint16(b[6:], uint16(netlink.Request|netlink.Dump))
	binary.NativeEndian.PutUint32(b[8:], c.seq)
	b = append(b, body...)

	for {
		_, err := unix.Write(c.fd, b)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive reads one datagram of the kernel's. It is valid until the next call.
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

// applyDeadline lets the next read end at the deadline, with EAGAIN.
func (c *Conn) applyDeadline() error {
	if c.deadline.IsZero() {
		return nil
	}
	left := time.Until(c.deadline)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	// Zero would mean no bound.
	c.timeout = unix.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
	return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &c.timeout))
}

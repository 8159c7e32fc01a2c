//go:build linux

package nlconn

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// BufferSize is the length in bytes of the buffer for Dial. A datagram of a dump is as long as
// the largest buffer that the kernel has seen, but at most 32 KiB (netlink_recvmsg). A datagram
// that fills this buffer was therefore truncated.
const BufferSize = 64 << 10

// A Conn is a connection to the kernel in one network namespace: the namespace of the thread that
// called Dial.
//
// It serves one request at a time. It must not be used after an error: the rest of the broken
// answer is still in the socket.
type Conn struct {
	fd       int
	read     func(fd int, b []byte) (int, error) // read(2)
	buf      []byte
	deadline time.Time
	timeout  unix.Timeval // of the next read
	seq      uint32
	yielded  time.Time // see yield
}

// Dial opens a connection to a part of the kernel, a NETLINK_* protocol of linux/netlink.h. The Conn
// receives into buffer, which must have BufferSize bytes and may be used again after Close. absent says what a kernel
// lacks that does not have the protocol: the error is then ErrUnsupported.
//
// It is a blocking socket. netlink.Dial opens one for the runtime's poller: each datagram that the kernel
// queues would wake a thread without need. That would take a sixth of the time of a dump of sockets.
func Dial(protocol int, absent string, buffer []byte) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, dialError(os.NewSyscallError("socket", err), absent)
	}
	// From here on the kernel rejects messages of other senders (netlink_getsockbyportid).
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, dialError(os.NewSyscallError("connect", err), absent)
	}
	return New(fd, buffer), nil
}

// New returns a Conn that uses fd: a blocking datagram socket whose peer answers requests. The Conn
// owns fd and closes it.
func New(fd int, buffer []byte) *Conn {
	return &Conn{fd: fd, read: unix.Read, buf: buffer, yielded: time.Now()}
}

// Close closes the connection.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// SetDeadline bounds all requests from now on. It is checked before each datagram: the kernel
// cannot be stopped while it fills one.
func (c *Conn) SetDeadline(t time.Time) { c.deadline = t }

// Send sends a request and returns its sequence number. Its answer must be received whole before the
// next request.
func (c *Conn) Send(typ netlink.HeaderType, flags netlink.HeaderFlags, body []byte) (seq uint32, err error) {
	c.seq++
	message := netlink.Message{Header: netlink.Header{Length: uint32(unix.SizeofNlMsghdr + len(body)), Type: typ, Flags: flags, Sequence: c.seq}, Data: body}
	b, err := message.MarshalBinary()
	if err != nil {
		return 0, fmt.Errorf("send request: %w", err)
	}
	for {
		_, err := unix.Write(c.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("send request: %w", err)
		}
		return c.seq, nil
	}
}

// Ask sends a request that has one message of the same type as its answer, and returns the body of that, valid until the
// next call. The error is that of Receive or Rows.
func (c *Conn) Ask(typ netlink.HeaderType, body []byte) (answer []byte, err error) {
	seq, err := c.Send(typ, netlink.Request, body)
	if err != nil {
		return nil, err
	}
	b, err := c.Receive()
	if err != nil {
		return nil, err
	}
	_, err = Rows(b, seq, typ, func(body []byte) error {
		answer = body
		return nil
	})
	if err == nil && answer == nil {
		err = fmt.Errorf("%w: end without an answer", ErrMalformed)
	}
	return answer, err
}

// Receive returns one datagram of the answer, valid until the next call. Rows takes it apart.
//
// The error is os.ErrDeadlineExceeded, ErrInterrupted, ErrMalformed or an errno of read(2).
func (c *Conn) Receive() ([]byte, error) {
	b, err := c.receive()
	if err != nil {
		return nil, fmt.Errorf("receive answer: %w", err)
	}
	return b, nil
}

func (c *Conn) receive() ([]byte, error) {
	for {
		c.yield()
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

// yield lets other goroutines run from time to time. When a goroutine has run for 10 ms, the scheduler takes it from its thread, most likely
// within a system call, and then wakes every 20 µs to see whether it must do so again: that is 3 to 5% of the CPU time of a long dump.
func (c *Conn) yield() {
	if now := time.Now(); now.Sub(c.yielded) > 5*time.Millisecond {
		runtime.Gosched()
		c.yielded = now
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

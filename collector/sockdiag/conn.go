//go:build linux

package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// bufferSize is what one read takes. The kernel fills a datagram of a dump up to
// the largest buffer it has seen, and no further than 32 KiB (netlink_recvmsg).
const bufferSize = 64 << 10

// An openSocket is a datagram socket whose peer speaks sock_diag. A
// *netlink.Conn is one.
type openSocket interface {
	syscall.Conn
	io.Closer
	SetDeadline(time.Time) error
}

// A Conn asks for the TCP sockets of one network namespace: the one that the
// calling thread was in when the Conn was dialed.
//
// It needs no privilege. It serves one request at a time, and none after an
// error: what is left of a broken answer is still in the socket.
type Conn struct {
	sock openSocket
	raw  syscall.RawConn
	seq  uint32

	// One read of a datagram: the function is made once, for a dump has thousands.
	read  func(fd uintptr) (done bool)
	buf   []byte
	n     int // length of the datagram, also of what did not fit into buf
	from  unix.Sockaddr
	errno error

	// byFamily is set once the kernel refused TCPDIAG_GETSOCK.
	byFamily bool
}

// Dial opens a connection to the kernel. The error is ErrUnsupported where there
// is no NETLINK_SOCK_DIAG.
func Dial() (*Conn, error) {
	nc, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, dialError(err)
	}
	return NewConn(nc)
}

// NewConn makes a Conn of a socket that is open and, where it is of AF_NETLINK,
// bound. The Conn owns it from here on.
func NewConn(sock openSocket) (*Conn, error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sockdiag: get file descriptor: %w", err), sock.Close())
	}
	c := &Conn{sock: sock, raw: raw, buf: make([]byte, bufferSize)}
	c.read = func(fd uintptr) bool {
		c.n, c.from, c.errno = unix.Recvfrom(int(fd), c.buf, unix.MSG_TRUNC)
		return !errors.Is(c.errno, unix.EAGAIN)
	}
	return c, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.sock.Close() }

// SetDeadline bounds all requests from now on; a zero t lifts the bound. It is
// looked at before each datagram: the kernel cannot be stopped while it fills
// one.
func (c *Conn) SetDeadline(t time.Time) error { return c.sock.SetDeadline(t) }

// Listeners calls each for every listening socket whose local port lies from low
// to high, both included. It costs microseconds: the kernel walks its table of
// listeners only.
//
// See Sockets for errors.
func (c *Conn) Listeners(low, high uint16, each func(Socket)) error {
	if err := c.dump(request{states: Listen.bit(), low: low, high: high}, each); err != nil {
		return fmt.Errorf("sockdiag: dump listeners: %w", err)
	}
	return nil
}

// Sockets calls each for every socket in one of these states whose local port lies
// from low to high, both included. Nothing is kept of a socket after its call.
//
// On an error each may have been called for some sockets: what it gathered is
// not the namespace's state and must not be used. A dump is not atomic: a socket
// that comes, goes or changes state meanwhile can be missing or be there twice.
func (c *Conn) Sockets(states []State, low, high uint16, each func(Socket)) error {
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
func (c *Conn) dump(req request, each func(Socket)) error {
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
func (c *Conn) roundTrip(typ netlink.HeaderType, body []byte, each func(Socket)) (rows int, err error) {
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

	var errno error
	err := c.raw.Write(func(fd uintptr) bool {
		_, errno = unix.Write(int(fd), b)
		return !errors.Is(errno, unix.EAGAIN)
	})
	if err != nil {
		return err
	}
	return errno
}

// receive reads one datagram of the kernel's. It is valid until the next call.
func (c *Conn) receive() ([]byte, error) {
	if err := c.raw.Read(c.read); err != nil {
		return nil, err
	}
	if errors.Is(c.errno, unix.ENOBUFS) {
		return nil, fmt.Errorf("%w: receive buffer overflow: %w", ErrInterrupted, c.errno)
	}
	if c.errno != nil {
		return nil, c.errno
	}
	if sa, ok := c.from.(*unix.SockaddrNetlink); ok && sa.Pid != 0 {
		return nil, fmt.Errorf("%w: sent by port %d, which is not the kernel", ErrMalformed, sa.Pid)
	}
	if c.n == 0 {
		return nil, fmt.Errorf("%w: empty datagram", ErrMalformed)
	}
	if c.n > len(c.buf) {
		return nil, fmt.Errorf("%w: datagram of %d bytes, truncated to %d", ErrMalformed, c.n, len(c.buf))
	}
	return c.buf[:c.n], nil
}

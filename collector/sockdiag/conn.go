//go:build linux

package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/nlconn"
	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// BufferSize is the length in bytes of the buffer for Dial.
const BufferSize = nlconn.BufferSize

// A Conn lists the TCP and UDP sockets of one network namespace: the namespace of the thread that
// called Dial.
//
// It needs no privilege. It serves one request at a time. It must not be used after an error:
// the rest of the broken answer is still in the socket.
type Conn struct {
	conn *nlconn.Conn

	// byFamily is set once the kernel refused TCPDIAG_GETSOCK.
	byFamily bool
}

// Dial opens a connection to the kernel. The Conn receives into buffer, which must have
// BufferSize bytes and may be used again after Close. The error is ErrUnsupported if the kernel
// has no NETLINK_SOCK_DIAG.
func Dial(buffer []byte) (*Conn, error) {
	c, err := nlconn.Dial(unix.NETLINK_SOCK_DIAG, "no NETLINK_SOCK_DIAG here (a sandbox such as gVisor, or CONFIG_INET_DIAG=n)", buffer)
	if err != nil {
		return nil, fmt.Errorf("sockdiag: %w", err)
	}
	return &Conn{conn: c}, nil
}

// NewConn returns a Conn that uses fd: a blocking datagram socket whose peer answers sock_diag
// requests. The Conn owns fd and closes it.
func NewConn(fd int, buffer []byte) *Conn {
	return &Conn{conn: nlconn.New(fd, buffer)}
}

// Close closes the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// SetDeadline bounds all requests from now on. It is checked before each datagram: the kernel
// cannot be stopped while it fills one.
func (c *Conn) SetDeadline(t time.Time) { c.conn.SetDeadline(t) }

// Listeners calls each for every listening socket whose local port lies from low to high, both
// included. It takes microseconds: the kernel walks only its table of listeners.
//
// The Socket and the errors are as for Sockets.
func (c *Conn) Listeners(low, high uint16, each func(*Socket)) error {
	if err := c.dump(request{states: bit(tcpstate.Listen), low: low, high: high}, each); err != nil {
		return fmt.Errorf("sockdiag: dump listeners: %w", err)
	}
	return nil
}

// Sockets calls each for every socket in one of these states whose local port lies
// from low to high, both included. The Socket is valid until the call returns.
//
// Before an error, each may have been called for some sockets: these are incomplete and must
// not be used. A dump is not atomic: a socket that opens, closes or changes its state meanwhile
// can be missing or appear twice.
func (c *Conn) Sockets(states []tcpstate.State, low, high uint16, each func(*Socket)) error {
	req := request{low: low, high: high}
	for _, s := range states {
		req.states |= bit(s)
	}
	if err := c.dump(req, each); err != nil {
		return fmt.Errorf("sockdiag: dump tcp sockets: %w", err)
	}
	return nil
}

// UDP calls each for every UDP socket that has a local port. Sockets of UDP-Lite are not among them:
// these have ports of their own.
//
// The Socket and the errors are as for Sockets.
func (c *Conn) UDP(each func(*Socket)) error {
	req := request{states: bit(tcpstate.Established) | bit(tcpstate.Close), low: 1, high: 65535, udp: true}
	if err := c.dumpFamilies(req, each); err != nil {
		return fmt.Errorf("sockdiag: dump udp sockets: %w", err)
	}
	return nil
}

// Timestamps asks whether an open connection uses TCP timestamps (RFC 7323). iface is
// Socket.Interface. known is false if the connection does not exist any more, or if the kernel does
// not say, as of one in TIME_WAIT. It takes microseconds: the kernel walks no table.
func (c *Conn) Timestamps(local, remote netip.AddrPort, iface uint32) (timestamps, known bool, err error) {
	timestamps, known, err = c.timestamps(local, remote, iface)
	if err != nil {
		return false, false, fmt.Errorf("sockdiag: read tcp socket: %w", err)
	}
	return timestamps, known, nil
}

func (c *Conn) timestamps(local, remote netip.AddrPort, iface uint32) (timestamps, known bool, err error) {
	b, err := c.conn.Ask(typeByFamily, oneSocket(local, remote, iface))
	if errors.Is(err, unix.ENOENT) {
		return false, false, nil
	} else if err != nil {
		return false, false, answerError(err, false)
	}
	if len(b) < sizeofMsg {
		return false, false, shortSocket(b)
	}
	info, err := nlconn.Attr(b[sizeofMsg:], attrInfo)
	if err != nil {
		return false, false, err
	}
	// struct tcp_info of linux/tcp.h begins with __u8 tcpi_state, tcpi_ca_state, tcpi_retransmits,
	// tcpi_probes, tcpi_backoff, tcpi_options.
	if len(info) < 6 {
		return false, false, nil
	}
	return info[5]&tcpiOptTimestamps != 0, true, nil
}

// dump calls each for the TCP sockets of both address families.
func (c *Conn) dump(req request, each func(*Socket)) error {
	if !c.byFamily {
		rows, err := c.roundTrip(req, typeGetSock, req.getSock(), each)
		refused := errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
		if !refused || rows > 0 {
			return err
		}
		c.byFamily = true
	}
	return c.dumpFamilies(req, each)
}

// dumpFamilies calls each for the sockets of one address family, and then for those of the other.
func (c *Conn) dumpFamilies(req request, each func(*Socket)) error {
	if _, err := c.roundTrip(req, typeByFamily, req.byFamily(unix.AF_INET), each); err != nil {
		return err
	}
	// A kernel without IPv6 answers this too, with no rows.
	_, err := c.roundTrip(req, typeByFamily, req.byFamily(unix.AF_INET6), each)
	return err
}

// roundTrip sends one request, of which typ and body are a form, and calls each for the sockets of the
// answer. It returns their number, with an error too.
func (c *Conn) roundTrip(req request, typ netlink.HeaderType, body []byte, each func(*Socket)) (rows int, err error) {
	seq, err := c.conn.Send(typ, netlink.Request|netlink.Dump, body)
	if err != nil {
		return 0, err
	}
	r := reply{typ: typ, seq: seq, udp: req.udp, each: each}
	for {
		// The kernel fills a datagram when it gets the request, or when the one before it is received.
		if r.socket.Seen, err = Now(); err != nil {
			return r.rows, err
		}
		b, err := c.conn.Receive()
		if err != nil {
			return r.rows, err
		}
		done, err := r.datagram(b)
		if done || err != nil {
			return r.rows, err
		}
	}
}

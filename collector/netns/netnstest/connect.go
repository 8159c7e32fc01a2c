//go:build linux

package netnstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A Bind says how a client gets its source address and port.
type Bind int

// The ways in which a Client gets its source before it connects.
const (
	NoBind        Bind = iota // nothing: the kernel chooses address and port
	BindNoPort                // bind(source, 0) with IP_BIND_ADDRESS_NO_PORT: the kernel chooses the port in connect()
	BindFirst                 // bind(source, port): if 0, the kernel chooses the port in bind()
	BindReuseAddr             // BindFirst with SO_REUSEADDR: several connections can share a port
)

// A Client makes connections to one destination.
type Client struct {
	Bind        Bind
	Source      netip.AddrPort // address and port for bind(), unless NoBind
	Destination netip.AddrPort
	Mapped      bool   // IPv4 over an AF_INET6 socket
	Device      string // SO_BINDTODEVICE, if not empty

	// Low and High are IP_LOCAL_PORT_RANGE, unless 0. The error is ENOPROTOOPT where the kernel
	// has no such option.
	Low, High uint16
}

// Connect opens a connection that is ESTABLISHED and has no peer: in TCP_REPAIR mode,
// connect() takes a real port and sends no packet. The connection leaves no TIME_WAIT when it is
// closed. The error is the errno of bind() or connect().
func (c Client) Connect() (fd int, err error) { return c.connect(true) }

// Dial opens a real connection. The socket does not block, so it may still be in SYN_SENT.
func (c Client) Dial() (fd int, err error) { return c.connect(false) }

func (c Client) connect(repair bool) (fd int, err error) {
	fd, err = c.bound()
	if err != nil {
		return -1, err
	}
	if repair {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("TCP_REPAIR: %w", err)
		}
	}
	err = unix.Connect(fd, Sockaddr(c.Destination, c.Mapped))
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return -1, err
	}
	if repair {
		// It uses timestamps, as connections to real peers do.
		option := binary.NativeEndian.AppendUint32(nil, tcpoptTimestamp) // struct tcp_repair_opt
		option = binary.NativeEndian.AppendUint32(option, 0)
		if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_OPTIONS, string(option)); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("TCP_REPAIR_OPTIONS: %w", err)
		}
	}
	return fd, nil
}

// ipLocalPortRange is IP_LOCAL_PORT_RANGE of linux/in.h.
const ipLocalPortRange = 51

// tcpoptTimestamp is TCPOPT_TIMESTAMP of include/net/tcp.h.
const tcpoptTimestamp = 8

// bound returns a new socket, bound as c.Bind says.
func (c Client) bound() (fd int, err error) {
	family := unix.AF_INET
	if c.Mapped || c.Destination.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if c.Device != "" {
		if err := unix.BindToDevice(fd, c.Device); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	if c.Low != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, ipLocalPortRange, int(c.High)<<16|int(c.Low)); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	switch c.Bind {
	case NoBind:
		return fd, nil
	case BindNoPort:
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	case BindReuseAddr:
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, Sockaddr(c.Source, c.Mapped))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Fill connects until the kernel refuses or maximum connections are open. It returns the number
// of connections and the kernel's error, which is nil at maximum. All are closed when the test
// ends.
func (c Client) Fill(tb testing.TB, maximum int) (granted int, refusal error) {
	tb.Helper()
	for granted < maximum {
		fd, err := c.Connect()
		if err != nil {
			return granted, err
		}
		tb.Cleanup(func() { CloseRepaired(fd) })
		granted++
	}
	return granted, nil
}

// Hold opens exactly n connections for the rest of the test.
func (c Client) Hold(tb testing.TB, n int) {
	tb.Helper()
	if granted, err := c.Fill(tb, n); granted != n {
		tb.Fatalf("hold %d connections to %v: got %d: %v", n, c.Destination, granted, err)
	}
}

// CloseRepaired closes a connection without TIME_WAIT.
func CloseRepaired(fd int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
	_ = unix.Close(fd)
}

// Listen opens a listener until the test ends. v6only sets IPV6_V6ONLY for an IPv6 address.
func Listen(tb testing.TB, addr string, v6only bool) (fd int) {
	tb.Helper()
	ap := netip.MustParseAddrPort(addr)
	family := unix.AF_INET
	if ap.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatalf("listen on %s: %v", addr, err)
	}
	tb.Cleanup(func() { unix.Close(fd) })

	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil && v6only {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, Sockaddr(ap, false))
	}
	if err == nil {
		err = unix.Listen(fd, 1024)
	}
	if err != nil {
		tb.Fatalf("listen on %s: %v", addr, err)
	}
	return fd
}

// Sockaddr converts an address for the system calls: to AF_INET6 if it is IPv6 or mapped is set,
// else to AF_INET.
func Sockaddr(ap netip.AddrPort, mapped bool) unix.Sockaddr {
	if ap.Addr().Is4() && !mapped {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

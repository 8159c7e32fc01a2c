//go:build linux

package netnstest

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A Bind tells how a client comes by its source.
type Bind int

// What a Client does before it connects.
const (
	NoBind        Bind = iota // nothing: the kernel chooses address and port
	BindNoPort                // bind(source, 0) with IP_BIND_ADDRESS_NO_PORT: the kernel chooses the port in connect()
	BindFirst                 // bind(source, port): if 0, the kernel chooses the port in bind()
	BindReuseAddr             // BindFirst with SO_REUSEADDR, so that connections can share a given port
)

// A Client makes connections to one destination.
type Client struct {
	Bind        Bind
	Source      netip.AddrPort // what to bind to
	Destination netip.AddrPort
	Mapped      bool   // IPv4 over an AF_INET6 socket
	Device      string // SO_BINDTODEVICE, if not empty
}

// Connect opens a connection that is ESTABLISHED and has no peer: in TCP_REPAIR
// mode connect() takes a real port and sends no packet. Closing it leaves no
// TIME_WAIT. The error is the errno of bind() or connect().
func (c Client) Connect() (fd int, err error) { return c.connect(true) }

// Dial opens a real connection. It is non-blocking and so may be in SYN_SENT.
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
	return fd, nil
}

// bound opens a socket that has done what c.Bind says.
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

// Fill connects until the kernel refuses or max connections are open. It returns
// how many the kernel granted and its refusal, nil at max. All are closed when the
// test ends.
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

// CloseRepaired closes a connection so that nothing is left of it.
func CloseRepaired(fd int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
	_ = unix.Close(fd)
}

// Listen opens a listener. v6only is IPV6_V6ONLY, for an IPv6 address.
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

// Sockaddr converts an address for the system calls, to AF_INET6 where it is IPv6
// or where mapped is set.
func Sockaddr(ap netip.AddrPort, mapped bool) unix.Sockaddr {
	if ap.Addr().Is4() && !mapped {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

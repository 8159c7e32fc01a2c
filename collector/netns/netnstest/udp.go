//go:build linux

package netnstest

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A UDP says how to make a UDP socket.
type UDP struct {
	IPv6      bool           // AF_INET6, else AF_INET
	V6Only    bool           // IPV6_V6ONLY
	ReuseAddr bool           // SO_REUSEADDR
	ReusePort bool           // SO_REUSEPORT
	Device    string         // SO_BINDTODEVICE, if not empty
	Lite      bool           // UDP-Lite instead of UDP
	Local     netip.AddrPort // for bind(), if it is valid
	Remote    netip.AddrPort // for connect(), if it is valid
}

// Open makes the socket. The error is the errno of bind() or connect(). Without both, it has no port.
func (u UDP) Open() (fd int, err error) {
	family, protocol := unix.AF_INET, unix.IPPROTO_UDP
	if u.IPv6 {
		family = unix.AF_INET6
	}
	if u.Lite {
		protocol = unix.IPPROTO_UDPLITE
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, err
	}
	if err := u.prepare(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (u UDP) prepare(fd int) error {
	for _, o := range []struct {
		set         bool
		level, name int
	}{
		{u.V6Only, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY},
		{u.ReuseAddr, unix.SOL_SOCKET, unix.SO_REUSEADDR},
		{u.ReusePort, unix.SOL_SOCKET, unix.SO_REUSEPORT},
	} {
		if !o.set {
			continue
		}
		if err := unix.SetsockoptInt(fd, o.level, o.name, 1); err != nil {
			return fmt.Errorf("option %d: %w", o.name, err)
		}
	}
	if u.Device != "" {
		if err := unix.BindToDevice(fd, u.Device); err != nil {
			return fmt.Errorf("bind to device: %w", err)
		}
	}
	if u.Local.IsValid() {
		if err := unix.Bind(fd, Sockaddr(u.Local, u.IPv6)); err != nil {
			return err
		}
	}
	if u.Remote.IsValid() {
		return unix.Connect(fd, Sockaddr(u.Remote, u.IPv6))
	}
	return nil
}

// Fill makes sockets until the kernel refuses or there are maximum. It returns their number and the
// kernel's error, which is nil at maximum. All are closed when the test ends.
func (u UDP) Fill(tb testing.TB, maximum int) (granted int, refusal error) {
	tb.Helper()
	for granted < maximum {
		fd, err := u.Open()
		if err != nil {
			return granted, err
		}
		tb.Cleanup(func() { unix.Close(fd) })
		granted++
	}
	return granted, nil
}

// Hold makes exactly n sockets for the rest of the test.
func (u UDP) Hold(tb testing.TB, n int) {
	tb.Helper()
	if granted, err := u.Fill(tb, n); granted != n {
		tb.Fatalf("hold %d UDP sockets %+v: got %d: %v", n, u, granted, err)
	}
}

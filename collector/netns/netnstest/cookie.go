//go:build linux

package netnstest

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// HasCookies reports whether the kernel numbers network namespaces (SO_NETNS_COOKIE, Linux 5.14).
func HasCookies(tb testing.TB) bool {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Close(fd)
	_, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		tb.Fatal(err)
	}
	return err == nil
}

// Cookies skips the test on kernels without them.
func Cookies(tb testing.TB) {
	tb.Helper()
	if !HasCookies(tb) {
		tb.Skip("the kernel lacks cookies of network namespaces")
	}
}

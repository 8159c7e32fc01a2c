//go:build linux

package netnstest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Pair makes a real connection to a listener of this test and returns both ends. The
// caller closes them.
func Pair(tb testing.TB, c Client, listener int) (client, server int) {
	tb.Helper()
	client, err := c.Dial()
	if err != nil {
		tb.Fatalf("connect to %v: %v", c.Destination, err)
	}
	server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		tb.Fatalf("accept from %v: %v", c.Destination, err)
	}
	return client, server
}

// TimeWait makes n connections that the client closes first: the client's ends are then in
// TIME_WAIT.
func TimeWait(tb testing.TB, c Client, listener, n int) {
	tb.Helper()
	for range n {
		client, server := Pair(tb, c, listener)
		Hangup(client)
		// On a busy machine, the FIN may be on its way: if both ends closed now, both would be in TIME_WAIT.
		if _, err := unix.Read(server, make([]byte, 1)); err != nil {
			tb.Fatalf("wait for the end of the connection to %v: %v", c.Destination, err)
		}
		Hangup(server)
	}
}

// Hangup closes a connection at once. close(2) alone would have no effect as long as a
// concurrent fork holds a copy of the descriptor, which it does until its exec.
func Hangup(fd int) {
	_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	_ = unix.Close(fd)
}

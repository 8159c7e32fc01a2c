package web

import (
	"errors"
	"net"
	"syscall"
)

// A Listener lets a server go on when the kernel has no memory for a connection: the server logs that, and tries again
// within a second. Other failures end it.
type Listener struct{ net.Listener }

// Accept implements net.Listener.
func (l Listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ENOBUFS) {
		err = memoryError{err}
	}
	return conn, err
}

// A memoryError is a net.Error that http.Server takes for one that passes, as it does too many open files.
type memoryError struct{ error }

func (memoryError) Timeout() bool   { return false }
func (memoryError) Temporary() bool { return true }
func (e memoryError) Unwrap() error { return e.error }

package web

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A failingListener fails with its errors first, as accept(2) does.
type failingListener struct {
	pipeListener
	errs []syscall.Errno
}

// Accept implements net.Listener.
func (l *failingListener) Accept() (net.Conn, error) {
	if len(l.errs) == 0 {
		return l.pipeListener.Accept()
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
}

// TestListener serves after the kernel had no memory, and ends when it has no such socket.
func TestListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &failingListener{pipeListener{make(chan net.Conn)}, []syscall.Errno{syscall.ENOMEM, syscall.ENOBUFS, syscall.ENOMEM}}
		server := newServer(t, newConfig(&scanner{}))
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(Listener{l}) }()
		start := time.Now()
		conn := l.dial()
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 4096)); n == 0 || time.Since(start) > time.Second {
			t.Errorf("answer after %v: %v", time.Since(start), err)
		}
		server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("ended with %v", err)
		}
		if err := newServer(t, newConfig(&scanner{})).Serve(Listener{&failingListener{pipeListener{make(chan net.Conn)}, []syscall.Errno{syscall.EINVAL}}}); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("ended with %v, want EINVAL", err)
		}
	})
}

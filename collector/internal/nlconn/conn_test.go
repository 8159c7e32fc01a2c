//go:build linux

package nlconn

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
)

// TestSend checks what is sent to the kernel.
func TestSend(t *testing.T) {
	fd, kernel, err := sockdiagtest.Queue()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kernel)
	c := New(fd, make([]byte, BufferSize))
	defer c.Close()
	for want := uint32(1); want < 3; want++ {
		seq, err := c.Send(300, netlink.Request|netlink.Dump, []byte{1, 2, 3, 4})
		if err != nil || seq != want {
			t.Fatalf("sequence number %d, %v, want %d", seq, err, want)
		}
		got := make([]byte, 100)
		n, err := unix.Read(kernel, got)
		if err != nil {
			t.Fatal(err)
		}
		message := sockdiagtest.Request{Sequence: seq}.Message(300, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, []byte{1, 2, 3, 4})
		if !bytes.Equal(got[:n], message) {
			t.Errorf("sent %v, want %v", got[:n], message)
		}
	}
}

// TestReceiveErrors fakes results of read(2) that only a netlink socket has.
func TestReceiveErrors(t *testing.T) {
	tests := []struct {
		name string
		n    int
		err  error
		want error
		text string
	}{
		{"overflow", -1, unix.ENOBUFS, ErrInterrupted, "no buffer space"},
		{"refused", -1, unix.EIO, unix.EIO, "input/output error"},
		{"timeout", -1, unix.EAGAIN, os.ErrDeadlineExceeded, "timeout"},
		{"empty", 0, nil, ErrMalformed, "empty"},
		{"truncated", 100, nil, ErrMalformed, "100 bytes or more"},
		{"whole", 99, nil, nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reads := 0
			c := &Conn{buf: make([]byte, 100), read: func(int, []byte) (int, error) {
				if reads++; reads < 3 {
					return -1, unix.EINTR // a signal is no error
				}
				return tt.n, tt.err
			}}
			b, err := c.Receive()
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v that says %q", err, tt.want, tt.text)
			}
			if err == nil && len(b) != tt.n {
				t.Errorf("got %d bytes, want %d", len(b), tt.n)
			}
		})
	}
}

// TestReceiveSignals interrupts the wait for an answer again and again: with SO_RCVTIMEO, the kernel
// does not restart read(2), see signal(7). That is no error, and does not move the deadline.
func TestReceiveSignals(t *testing.T) {
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		want    error
	}{
		{"answer", time.Minute, nil},
		{"no answer", 200 * time.Millisecond, os.ErrDeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const most = 10
			interrupted := make(chan struct{})
			fd, err := sockdiagtest.Dial(func(r sockdiagtest.Request) [][]byte {
				if tt.want != nil {
					return nil
				}
				<-interrupted
				return [][]byte{r.Done(0)}
			})
			if err != nil {
				t.Fatal(err)
			}
			c := New(fd, make([]byte, BufferSize))
			defer c.Close()
			interrupts := 0
			c.read = func(fd int, b []byte) (int, error) {
				n, err := unix.Read(fd, b)
				if errors.Is(err, unix.EINTR) {
					if interrupts++; interrupts == most {
						close(interrupted)
					}
				}
				return n, err
			}
			thread, result := make(chan int), make(chan error)
			go func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				thread <- unix.Gettid()
				c.SetDeadline(time.Now().Add(tt.timeout))
				if _, err := c.Send(20, netlink.Request, nil); err != nil {
					t.Error(err)
				}
				_, err := c.Receive()
				result <- err
			}()
			for tid := <-thread; ; {
				// Go's runtime does nothing with SIGURG.
				if err := unix.Tgkill(unix.Getpid(), tid, unix.SIGURG); err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-result:
					if !errors.Is(err, tt.want) || interrupts == 0 {
						t.Errorf("got %v after %d interrupts, want %v", err, interrupts, tt.want)
					}
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
}

// TestDeadlineNear checks that the timeout of the last moment before a deadline is not rounded to 0, which would
// mean none.
func TestDeadlineNear(t *testing.T) {
	fd, kernel, err := sockdiagtest.Queue()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kernel)
	c := New(fd, make([]byte, BufferSize))
	defer c.Close()
	err = os.ErrDeadlineExceeded
	for errors.Is(err, os.ErrDeadlineExceeded) { // on a busy machine
		c.SetDeadline(time.Now().Add(900 * time.Microsecond))
		err = c.applyDeadline()
	}
	if got := time.Duration(c.timeout.Nano()); err != nil || got != time.Millisecond {
		t.Errorf("timeout of %v, %v, want %v", got, err, time.Millisecond)
	}
}

// TestDialErrors checks the explanations of a socket that cannot be opened.
func TestDialErrors(t *testing.T) {
	for _, tt := range []struct {
		errno unix.Errno
		want  error
		text  string
	}{
		{unix.EPROTONOSUPPORT, ErrUnsupported, "modprobe it"},
		{unix.EAFNOSUPPORT, ErrUnsupported, "modprobe it"},
		{unix.EPERM, os.ErrPermission, "RestrictAddressFamilies"},
		{unix.EACCES, os.ErrPermission, "RestrictAddressFamilies"},
		{unix.EMFILE, unix.EMFILE, "too many open files"},
	} {
		err := dialError(os.NewSyscallError("socket", tt.errno), "modprobe it")
		if !errors.Is(err, tt.want) || !errors.Is(err, tt.errno) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%v: got %v, want %v that says %q", tt.errno, err, tt.want, tt.text)
		}
	}
	if _, err := Dial(1<<10, "modprobe it", nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("no such protocol: got %v, want %v", err, ErrUnsupported)
	}
}

// TestDialDescriptors leaves none behind, without the help of the garbage collector.
func TestDialDescriptors(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := open()
	for range 10 {
		c, err := Dial(unix.NETLINK_SOCK_DIAG, "", make([]byte, BufferSize))
		if err != nil {
			t.Fatal(err)
		}
		// Fewer are possible: a garbage collection that began before may still end others.
		if n := open(); n > before+1 {
			t.Errorf("%d descriptors for a Conn", n-before)
		}
		c.Close()
	}
	if n := open(); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// TestConnForeignSender checks that no other process can send an answer to a Conn.
func TestConnForeignSender(t *testing.T) {
	c, err := Dial(unix.NETLINK_SOCK_DIAG, "", make([]byte, BufferSize))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		t.Fatal(err)
	}
	forger, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(forger)
	if err := unix.Sendto(forger, make([]byte, 16), 0, sa); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a message of another process: %v, want %v", err, unix.ECONNREFUSED)
	}
}

//go:build linux

package scan

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
)

// A finWait2Trial finds out whether connect() takes over a mini-socket in FIN_WAIT2 where tcp_tw_reuse
// applies. Linux 6.12 has stopped that, stable branches did at different times, and no version tells.
// So the trial has such a socket on the port that connect() tries first, in a network namespace of its own, and
// connects a second later. There is a second port, so that no connect() fails: others may count that.
type finWait2Trial struct {
	done chan struct{}
	fact pool.Fact
	err  error // if fact is Unknown
}

// trialServer is what a trial connects to, outside of its range of ports.
var trialServer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 40002)

// startFinWait2Trial starts a trial and returns when it needs no privilege any more. It ends about a second
// later. proc is the mount point of procfs.
func startFinWait2Trial(proc string) *finWait2Trial {
	t := &finWait2Trial{done: make(chan struct{})}
	prepared := make(chan struct{})
	go func() {
		defer close(t.done)
		started := false
		t.err = netns.Unshare(func() (err error) {
			t.fact, err = tryFinWait2(proc, func() { started = true; close(prepared) })
			return err
		})
		if !started {
			close(prepared)
		}
	}()
	<-prepared
	return t
}

// result waits for the end of the trial, but not beyond the deadline. The error says why it is not known.
func (t *finWait2Trial) result(deadline time.Time) (pool.Fact, error) {
	select {
	case <-t.done:
		return t.fact, t.err
	case <-time.After(time.Until(deadline)):
		return pool.Unknown, os.ErrDeadlineExceeded
	}
}

// tryFinWait2 makes the trial in the calling thread's namespace, which is new. It calls prepared when it needs
// no privilege any more.
func tryFinWait2(proc string, prepared func()) (pool.Fact, error) {
	if !isProcfs(proc) {
		return pool.Unknown, fmt.Errorf("%s is not a proc file system", proc)
	}
	const port = 40000 // connect() tries ports with the parity of the lowest one first
	for file, value := range map[string]string{
		"ip_local_port_range": fmt.Sprintf("%d %d", port, port+1), "tcp_tw_reuse": "1", "tcp_timestamps": "1",
	} {
		if err := os.WriteFile(filepath.Join(proc, "sys/net/ipv4", file), []byte(value), 0); err != nil {
			return pool.Unknown, err
		}
	}
	if err := setUp("lo"); err != nil {
		return pool.Unknown, err
	}
	prepared()

	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return pool.Unknown, os.NewSyscallError("socket", err)
	}
	defer unix.Close(listener)
	server := &unix.SockaddrInet4{Port: int(trialServer.Port()), Addr: trialServer.Addr().As4()}
	if err := errors.Join(unix.Bind(listener, server), unix.Listen(listener, 2)); err != nil {
		return pool.Unknown, os.NewSyscallError("listen", err)
	}
	switch got, err := connectOnce(server); {
	case err != nil:
		return pool.Unknown, err
	case got != port:
		return pool.Unknown, fmt.Errorf("connect() chose port %d before %d", got, port)
	}
	if err := awaitFinWait2(port); err != nil {
		return pool.Unknown, err
	}
	now, err := sockdiag.Now()
	if err != nil {
		return pool.Unknown, err
	}
	time.Sleep(time.Second + 20*time.Millisecond) // the kernel's clock has ticks of up to 10 ms
	got, err := connectOnce(server)
	if err != nil {
		return pool.Unknown, err
	}
	if end, err := sockdiag.Now(); err != nil || end-now > 30*time.Second {
		return pool.Unknown, errors.Join(err, errors.New("the process stood still: FIN_WAIT2 may have ended by itself"))
	}
	return factOf(got == port), nil
}

// setUp sets a network interface up.
func setUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return os.NewSyscallError("ioctl SIOCSIFFLAGS", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request))
}

// connectOnce opens a connection and closes it. Its peer does not. It returns its local port.
func connectOnce(to unix.Sockaddr) (port int, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	// A rule of the host can drop the packets.
	timeout := unix.NsecToTimeval((5 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return 0, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Connect(fd, to); err != nil {
		return 0, os.NewSyscallError("connect", err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	return local.(*unix.SockaddrInet4).Port, nil
}

// awaitFinWait2 waits until the connection from a port is a mini-socket in FIN_WAIT2: until its peer has
// acknowledged its FIN, after up to 200 ms (TCP_DELACK_MAX).
func awaitFinWait2(port uint16) error {
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		conn, err := sockdiag.Dial(make([]byte, sockdiag.BufferSize))
		if err != nil {
			return err
		}
		there := false
		err = conn.Sockets([]tcpstate.State{tcpstate.FinWait2}, port, port, func(s *sockdiag.Socket) {
			there = there || s.Mini && s.Remote == trialServer
		})
		conn.Close()
		if err != nil || there {
			return err
		}
	}
	return errors.New("a closed connection does not come to FIN_WAIT2")
}

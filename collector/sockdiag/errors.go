//go:build linux

package sockdiag

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Errors for errors.Is. Besides these, an expired deadline is os.ErrDeadlineExceeded and a
// refusal is os.ErrPermission. An errno that the kernel sent is in the chain, as a
// syscall.Errno.
var (
	// ErrUnsupported means that this kernel cannot answer: it has no netlink or no sock_diag,
	// or tcp_diag or udp_diag is not loaded. A retry does not help.
	ErrUnsupported = errors.New("not supported by this kernel")

	// ErrInterrupted means that the answer is incomplete: the table changed during the
	// dump, or the receive buffer overflowed. A retry may help.
	ErrInterrupted = errors.New("dump was interrupted")

	// ErrMalformed means that the answer is not what the kernel's headers promise.
	ErrMalformed = errors.New("malformed answer")
)

// The modules that answer requests. The kernel loads them on demand, unless that is disabled or
// the process has no right to it.
var (
	errNoInetDiag = fmt.Errorf("%w: inet_diag is not loaded: modprobe inet_diag", ErrUnsupported)
	errNoTCPDiag  = fmt.Errorf("%w: tcp_diag is not loaded: modprobe tcp_diag", ErrUnsupported)
	errNoUDPDiag  = fmt.Errorf("%w: udp_diag is not loaded: modprobe udp_diag", ErrUnsupported)
)

// dialError explains why the netlink socket could not be opened.
func dialError(err error) error {
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("sockdiag: open netlink socket: %w: no NETLINK_SOCK_DIAG here (a sandbox such as gVisor, or CONFIG_INET_DIAG=n): %w", ErrUnsupported, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("sockdiag: open netlink socket: forbidden, allow AF_NETLINK in seccomp, RestrictAddressFamilies= or the LSM policy: %w", err)
	default:
		return fmt.Errorf("sockdiag: open netlink socket: %w", err)
	}
}

// requestError explains the errno of an NLMSG_ERROR: the kernel refused the request.
func requestError(errno unix.Errno) error {
	switch errno {
	case unix.ENOENT, unix.EOPNOTSUPP:
		return fmt.Errorf("%w (%w)", errNoInetDiag, errno)
	case unix.EPERM, unix.EACCES:
		return fmt.Errorf("forbidden by the kernel's security policy: %w", errno)
	default:
		return fmt.Errorf("refused by the kernel: %w", errno)
	}
}

// doneError explains the errno of an NLMSG_DONE: the dump failed. Without a check of that errno,
// it would look like a dump without sockets.
func doneError(errno unix.Errno, udp bool) error {
	if errno == unix.ENOENT {
		module := errNoTCPDiag
		if udp {
			module = errNoUDPDiag
		}
		return fmt.Errorf("%w (%w)", module, errno)
	}
	return fmt.Errorf("failed in the kernel: %w", errno)
}

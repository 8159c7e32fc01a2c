//go:build linux

package sockdiag

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Errors that a caller may want to tell apart with errors.Is. A deadline that
// passed is os.ErrDeadlineExceeded, a refusal os.ErrPermission, and every errno
// that the kernel sent is in the chain as a syscall.Errno.
var (
	// ErrUnsupported means that this kernel cannot answer at all until somebody
	// changes it: there is no netlink, no sock_diag, or tcp_diag is not loaded.
	ErrUnsupported = errors.New("not supported by this kernel")

	// ErrInterrupted means that the kernel gave an incomplete answer that may
	// well be complete the next time: the table changed under the dump, or the
	// receive buffer overflowed.
	ErrInterrupted = errors.New("dump was interrupted")

	// ErrMalformed means that the answer is not what the kernel's headers promise.
	ErrMalformed = errors.New("malformed answer")
)

// The modules behind a request. The kernel loads them on demand, unless it was
// told not to or the asking process may not.
var (
	errNoInetDiag = fmt.Errorf("%w: inet_diag is not loaded: modprobe inet_diag", ErrUnsupported)
	errNoTCPDiag  = fmt.Errorf("%w: tcp_diag is not loaded: modprobe tcp_diag", ErrUnsupported)
)

// dialError explains why no netlink socket could be had.
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

// requestError explains an errno that the kernel answered to a request as a
// whole, in NLMSG_ERROR.
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

// doneError explains an errno that the kernel put into NLMSG_DONE, where a dump
// that failed looks like one that found nothing.
func doneError(errno unix.Errno) error {
	if errno == unix.ENOENT {
		return fmt.Errorf("%w (%w)", errNoTCPDiag, errno)
	}
	return fmt.Errorf("failed in the kernel: %w", errno)
}

//go:build linux

package nlconn

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Errors for errors.Is. Besides these, an expired deadline is os.ErrDeadlineExceeded.
var (
	// ErrUnsupported means that this kernel cannot answer: it has no netlink, or not this protocol of it.
	// A retry does not help.
	ErrUnsupported = errors.New("not supported by this kernel")

	// ErrInterrupted means that the answer is incomplete: the table changed during the
	// dump, or the receive buffer overflowed. A retry may help.
	ErrInterrupted = errors.New("dump was interrupted")

	// ErrMalformed means that the answer is not what the kernel's headers promise.
	ErrMalformed = errors.New("malformed answer")
)

// An Error is an errno in the answer. Without a check of that of NLMSG_DONE, a dump that failed would
// look like one without rows.
type Error struct {
	Errno unix.Errno
	Done  bool // of NLMSG_DONE: the dump failed; else of NLMSG_ERROR: the kernel refused the request
}

func (e *Error) Error() string {
	if e.Done {
		return fmt.Sprintf("failed in the kernel: %v", e.Errno)
	}
	return fmt.Sprintf("refused by the kernel: %v", e.Errno)
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// dialError explains why a socket could not be opened.
func dialError(err error, absent string) error {
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("open netlink socket: %w: %s: %w", ErrUnsupported, absent, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("open netlink socket: forbidden, allow AF_NETLINK in seccomp, RestrictAddressFamilies= or the LSM policy: %w", err)
	default:
		return fmt.Errorf("open netlink socket: %w", err)
	}
}

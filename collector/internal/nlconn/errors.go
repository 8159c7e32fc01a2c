//go:build linux

package nlconn

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Errors for errors.Is. Besides these, an expired deadline is os.ErrDeadlineExceeded.
var (
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

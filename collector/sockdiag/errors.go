//go:build linux

package sockdiag

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/nlconn"
)

// Errors for errors.Is. Besides these, an expired deadline is os.ErrDeadlineExceeded and a
// refusal is os.ErrPermission. An errno that the kernel sent is in the chain, as a
// syscall.Errno.
var (
	// ErrUnsupported means that this kernel cannot answer: it has no netlink or no sock_diag,
	// or tcp_diag or udp_diag is not loaded. A retry does not help.
	ErrUnsupported = nlconn.ErrUnsupported

	// ErrInterrupted means that the answer is incomplete: the table changed during the
	// dump, or the receive buffer overflowed. A retry may help.
	ErrInterrupted = nlconn.ErrInterrupted

	// ErrMalformed means that the answer is not what the kernel's headers promise.
	ErrMalformed = nlconn.ErrMalformed
)

// The modules that answer requests. The kernel loads them on demand, unless that is disabled or
// the process has no right to it.
var (
	errNoInetDiag = fmt.Errorf("%w: inet_diag is not loaded: modprobe inet_diag", ErrUnsupported)
	errNoTCPDiag  = fmt.Errorf("%w: tcp_diag is not loaded: modprobe tcp_diag", ErrUnsupported)
	errNoUDPDiag  = fmt.Errorf("%w: udp_diag is not loaded: modprobe udp_diag", ErrUnsupported)
)

// answerError explains an error of nlconn.Rows.
func answerError(err error, udp bool) error {
	var answer *nlconn.Error
	if !errors.As(err, &answer) {
		return err
	}
	switch errno := answer.Errno; {
	case answer.Done && errno == unix.ENOENT && udp:
		return fmt.Errorf("%w (%w)", errNoUDPDiag, errno)
	case answer.Done && errno == unix.ENOENT:
		return fmt.Errorf("%w (%w)", errNoTCPDiag, errno)
	case answer.Done:
		return err
	case errno == unix.ENOENT, errno == unix.EOPNOTSUPP:
		return fmt.Errorf("%w (%w)", errNoInetDiag, errno)
	case errno == unix.EPERM, errno == unix.EACCES:
		return fmt.Errorf("forbidden by the kernel's security policy: %w", errno)
	}
	return err
}

//go:build linux

package conntrack

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
	// ErrUnsupported means that this kernel cannot answer: it has no netlink, no nfnetlink or no
	// nf_conntrack_netlink. A retry does not help.
	ErrUnsupported = nlconn.ErrUnsupported

	// ErrInterrupted means that the answer is incomplete. A retry may help.
	ErrInterrupted = nlconn.ErrInterrupted

	// ErrMalformed means that the answer is not what the kernel's headers promise.
	ErrMalformed = nlconn.ErrMalformed
)

// answerError explains an error of nlconn.Rows.
func answerError(err error) error {
	var answer *nlconn.Error
	if !errors.As(err, &answer) || answer.Done {
		return err
	}
	switch errno := answer.Errno; errno {
	case unix.EINVAL, unix.EOPNOTSUPP: // nfnetlink_rcv_msg: nothing answers this type of message
		return fmt.Errorf("%w: nf_conntrack_netlink is not loaded: modprobe nf_conntrack_netlink (%w)", ErrUnsupported, errno)
	case unix.EPERM, unix.EACCES: // nfnetlink_rcv
		return fmt.Errorf("it needs CAP_NET_ADMIN in the user namespace of the network namespace: %w", errno)
	}
	return err
}

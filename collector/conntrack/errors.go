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
	ErrUnsupported = errors.New("not supported by this kernel")

	// ErrInterrupted means that the answer is incomplete. A retry may help.
	ErrInterrupted = nlconn.ErrInterrupted

	// ErrMalformed means that the answer is not what the kernel's headers promise.
	ErrMalformed = nlconn.ErrMalformed
)

// dialError explains why the netlink socket could not be opened.
func dialError(err error) error {
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("conntrack: open netlink socket: %w: no NETLINK_NETFILTER here (a sandbox such as gVisor, or nfnetlink is not loaded: modprobe nf_conntrack_netlink): %w", ErrUnsupported, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("conntrack: open netlink socket: forbidden, allow AF_NETLINK in seccomp, RestrictAddressFamilies= or the LSM policy: %w", err)
	default:
		return fmt.Errorf("conntrack: open netlink socket: %w", err)
	}
}

// answerError explains an error of nlconn.Next.
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

//go:build linux

package sockdiag

import (
	"net/netip"
	"os"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"

	"golang.org/x/sys/unix"
)

// Now returns CLOCK_MONOTONIC_COARSE, see clock_gettime(2), since the host started. Its whole seconds are
// those of ktime_get_seconds() in the kernel, but in a time namespace with an offset.
func Now() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(ts.Nano()), nil
}

// bit returns the bit of the state in idiag_states, a mask of 1 << TCP_*.
func bit(s tcpstate.State) uint32 { return 1 << s }

// A Socket is one row of a dump: struct inet_diag_msg of linux/inet_diag.h.
type Socket struct {
	State tcpstate.State

	// Local and Remote are the two ends. An AF_INET6 socket that uses IPv4 has IPv4
	// addresses here: the kernel has one port space for both.
	Local, Remote netip.AddrPort

	// Mini is set for a mini-socket (struct inet_timewait_sock), which the kernel keeps in
	// place of a closed socket: always in TimeWait, and in FinWait2 if no process has it any
	// more.
	Mini bool

	// Expires is the remaining time of the socket's timer. For a mini-socket, it is the time
	// until the kernel frees the port. It is never negative. It is 0 while the kernel is
	// late, which it can be by up to 5 s.
	Expires time.Duration

	// Seen is when the kernel had reported the socket, by Now. It is at most as much too late as the kernel
	// took to fill one datagram.
	Seen time.Duration

	// Interface is the index of the interface that the socket is bound to, or 0.
	// A socket with a link-local address is always bound to one (RFC 4007).
	Interface uint32

	// Cgroup is the number of the control group whose process made the socket: the inode of its
	// directory in the cgroup2 file system, see cgroups(7). It stays the same when the process moves
	// to another control group, and when that one is removed. It is 0 for mini-sockets, in SynRecv and
	// in Listen, and before Linux 5.8.
	Cgroup uint64

	// V6Only is true for an AF_INET6 listener, or UDP socket without a peer, that does not
	// use IPv4: IPV6_V6ONLY of ipv6(7), or bound to an IPv6 address. It is false for all other
	// sockets, as the kernel does not tell.
	V6Only bool
}

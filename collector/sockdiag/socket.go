//go:build linux

package sockdiag

import (
	"net/netip"
	"time"
)

// A State is the state of a TCP socket, RFC 9293 section 3.3.2, numbered as in
// include/net/tcp_states.h.
type State uint8

// The states that a Socket can be in. TCP_CLOSE is missing: a closed socket is
// in no table that a dump walks.
const (
	Established State = 1  // TCP_ESTABLISHED
	SynSent     State = 2  // TCP_SYN_SENT
	SynRecv     State = 3  // TCP_SYN_RECV
	FinWait1    State = 4  // TCP_FIN_WAIT1
	FinWait2    State = 5  // TCP_FIN_WAIT2, also of the mini-socket that outlives the process
	TimeWait    State = 6  // TCP_TIME_WAIT
	CloseWait   State = 8  // TCP_CLOSE_WAIT
	LastAck     State = 9  // TCP_LAST_ACK
	Listen      State = 10 // TCP_LISTEN
	Closing     State = 11 // TCP_CLOSING
)

// bit is the state's place in idiag_states, a mask of 1 << TCP_*.
func (s State) bit() uint32 { return 1 << s }

// A Socket is one row of a dump: struct inet_diag_msg of linux/inet_diag.h.
type Socket struct {
	State State

	// Local and Remote are the two ends. IPv4 that runs over an AF_INET6 socket
	// is shown as IPv4, for the kernel keeps both in one port space.
	Local, Remote netip.AddrPort

	// Expires is what remains of the socket's running timer; in TimeWait that is
	// the time until the kernel frees the port. Never negative. It reads 0 while
	// the kernel is late, up to 4 s.
	Expires time.Duration

	// Interface is the index of the interface that the socket is bound to, or 0.
	// A socket with a link-local address is always bound to one (RFC 4007).
	Interface uint32

	// V6Only is set for an AF_INET6 listener that takes no IPv4 connections,
	// IPV6_V6ONLY of ipv6(7). False for everything else.
	V6Only bool
}

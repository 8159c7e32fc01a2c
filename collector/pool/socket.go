package pool

import (
	"net/netip"
	"time"
)

// A State is the state of a TCP socket, RFC 9293 section 3.3.2, numbered as in
// include/net/tcp_states.h.
type State uint8

// The states in which a socket holds its local port: a connect() to the same destination
// cannot choose that port.
const (
	Established State = 1  // TCP_ESTABLISHED
	SynSent     State = 2  // TCP_SYN_SENT
	SynRecv     State = 3  // TCP_SYN_RECV
	FinWait1    State = 4  // TCP_FIN_WAIT1
	FinWait2    State = 5  // TCP_FIN_WAIT2, also of the mini-socket that outlives the process
	TimeWait    State = 6  // TCP_TIME_WAIT
	CloseWait   State = 8  // TCP_CLOSE_WAIT
	LastAck     State = 9  // TCP_LAST_ACK
	Closing     State = 11 // TCP_CLOSING
)

// States lists these states in the order of their numbers.
var States = [...]State{
	Established, SynSent, SynRecv, FinWait1, FinWait2, TimeWait, CloseWait, LastAck, Closing,
}

// String returns the kernel's name in lower case without "TCP_". It returns "unknown" for a
// state that is not in States.
func (s State) String() string {
	switch s {
	case Established:
		return "established"
	case SynSent:
		return "syn_sent"
	case SynRecv:
		return "syn_recv"
	case FinWait1:
		return "fin_wait1"
	case FinWait2:
		return "fin_wait2"
	case TimeWait:
		return "time_wait"
	case CloseWait:
		return "close_wait"
	case LastAck:
		return "last_ack"
	case Closing:
		return "closing"
	default:
		return "unknown"
	}
}

// A Fact is a property of a socket that not every reader can see.
type Fact uint8

// The values of a Fact.
const (
	Unknown Fact = iota // the reader cannot tell
	No
	Yes
)

// A Socket is a TCP socket that is not a listener.
type Socket struct {
	State State

	// Local and Remote are the two ends. An AF_INET6 socket that uses IPv4 has IPv4
	// addresses here: the kernel has one port space for both.
	Local, Remote netip.AddrPort

	// Interface is the index of the interface that the socket is bound to, or 0.
	Interface uint32

	// Mini is set for a socket in TimeWait, and for one in FinWait2 that no process has any
	// more: the kernel keeps a mini-socket (struct inet_timewait_sock) in its place.
	Mini bool

	// Expires is the time until the kernel frees the port of a mini-socket. It is 0 if the
	// kernel is late.
	Expires time.Duration

	// Seen is when the kernel reported the socket, on its CLOCK_MONOTONIC_COARSE: the clock of
	// ktime_get_seconds(), by which kernels without tcp_tw_reuse_delay decide. Only mini-sockets need it.
	Seen time.Duration

	// Bound says whether the local port is bound: some socket got it by bind(), on any address.
	// connect() never chooses such a port, whatever the destination. All sockets on a port share
	// this (fastreuse and fastreuseport of struct inet_bind_bucket). Those that a listener
	// accepted keep the port bound when the listener is gone.
	Bound Fact

	// Cgroup is the number of the control group that the socket belongs to. It is 0 if the reader
	// cannot tell, as for mini-sockets.
	Cgroup uint64

	// Timestamps says whether the connection used TCP timestamps (RFC 7323), for a mini-socket.
	// connect() takes over its port only if it did (tcp_twsk_unique).
	Timestamps Fact

	// LastTimestamp is the second of Seen's clock in which the last timestamp came (tw_ts_recent_stamp of
	// struct tcp_timewait_sock), for a mini-socket. It is 0 if the reader cannot tell.
	LastTimestamp uint32
}

// A Listener is a listening TCP socket.
type Listener struct {
	Local  netip.AddrPort
	V6Only bool // it accepts no IPv4 connections, IPV6_V6ONLY of ipv6(7)
}

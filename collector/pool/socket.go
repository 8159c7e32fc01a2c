package pool

import (
	"net/netip"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// States are the states in which a socket holds its local port, in the order of their numbers: a connect() to the same
// destination cannot choose that port.
var States = [...]tcpstate.State{
	tcpstate.Established, tcpstate.SynSent, tcpstate.SynRecv, tcpstate.FinWait1, tcpstate.FinWait2, tcpstate.TimeWait, tcpstate.CloseWait, tcpstate.LastAck, tcpstate.Closing,
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
	State tcpstate.State

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

//go:build linux

package sockiter

import "ephemeral_port_exporter/collector/sockdiag"

// A Socket is a TCP socket, also a listener.
type Socket struct {
	// Expires is 0 unless the socket is a mini-socket.
	sockdiag.Socket

	// Bound is true if the local port is bound: some socket got it by bind(), on any address. All
	// sockets on the port share this. A bucket of ports (struct inet_bind_bucket) with a
	// negative fastreuse and fastreuseport was made by connect(); then it is false.
	Bound bool

	// Stamp is when a mini-socket, or its connection before, received the last timestamp:
	// tw_ts_recent_stamp, in seconds of CLOCK_MONOTONIC, rounded down. It is 0 if the connection did
	// not use timestamps, and for all other sockets.
	Stamp uint32
}

// Package connectfail counts connect() calls that fail with EADDRNOTAVAIL because no port is free,
// by source address, destination address and destination port. The kernel has no counter for them.
//
// connect() moves a TCP socket to SYN_SENT, searches a port, and moves the socket back to CLOSE if
// no port is free. The tracepoint sock:inet_sock_set_state then records a change from SYN_SENT to
// CLOSE with source port 0. It records this once for each such failure. The only other cause is a
// kernel without free memory. A BPF program on the tracepoint counts the records in a map.
//
// One kind of failure is not counted: that of a socket that had a port before and connects again.
// Its record still has the old port, which the socket has lost (inet_put_port leaves inet_sport).
// So it looks like the failure of a socket that was bound to the port.
package connectfail

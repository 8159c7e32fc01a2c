// Package connectfail counts connect() calls that fail with EADDRNOTAVAIL because no
// port is free, by what they tried to connect. No counter of the kernel does.
//
// connect() puts a TCP socket into SYN_SENT before it looks for a port, and back into CLOSE
// when it finds none: the tracepoint sock:inet_sock_set_state tells of a change from SYN_SENT to
// CLOSE with source port 0, once for each such failure and for nothing else but a kernel that
// is out of memory. A BPF program on it counts in a map, which is read when somebody asks.
//
// A socket that had a port before, and tries again, keeps that in the record although it has lost
// it (inet_put_port leaves inet_sport): its failures look like those of a socket that was bound to the
// port, and do not count.
package connectfail

// Package pool says what the sockets of one network namespace mean for its
// ephemeral ports. It is pure: no I/O, no clock, nothing kept between two calls.
//
// connect() calls share one pool of ports per source address, destination address
// and destination port; bind(ip, 0) calls share one per source address. A Table
// counts listeners and sockets by pool and judges them by the rules of the kernel's
// port search (net/ipv4/inet_hashtables.c, net/ipv4/inet_connection_sock.c). The
// result is a Report.
package pool

// Package pool computes how the sockets of one network namespace use its ephemeral
// ports. It is pure: it does no I/O, reads no clock and keeps nothing between two calls.
//
// connect() calls share one pool of ports per source address, destination address
// and destination port; bind(ip, 0) calls share one per source address. A Table
// counts listeners and sockets by pool. It applies the rules of the kernel's port search
// (net/ipv4/inet_hashtables.c, net/ipv4/inet_connection_sock.c) and returns a Report.
package pool

// Package sockdiag lists the TCP and UDP sockets of the Linux kernel over netlink socket
// diagnostics, see sock_diag(7).
//
// It encodes requests and decodes answers. What the sockets mean for ephemeral ports is
// computed in package pool.
package sockdiag

// Package sockdiag asks the Linux kernel for TCP sockets over netlink socket
// diagnostics, see sock_diag(7).
//
// It knows the kernel's bytes and nothing of what they mean to a port pool.
package sockdiag

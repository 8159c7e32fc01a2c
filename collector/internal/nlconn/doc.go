// Package nlconn sends netlink requests to the Linux kernel and receives the answers, without an
// allocation for a datagram or a message, see netlink(7).
package nlconn

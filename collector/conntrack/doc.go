// Package conntrack lists the flows that the Linux kernel tracks, with what NAT made of their
// addresses, over netlink, see linux/netfilter/nfnetlink_conntrack.h.
//
// It encodes requests and decodes answers. What the flows mean for ports is computed in package
// pool.
package conntrack

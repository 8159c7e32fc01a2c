// Package conntrack lists the flows that the Linux kernel tracks, with what NAT made of their
// addresses, over netlink, see linux/netfilter/nfnetlink_conntrack.h.
//
// It encodes requests and decodes answers. What the flows mean for ports is computed in package
// pool.
//
// It is not github.com/ti-mo/conntrack (v0.6.0): that holds all flows in memory. For 300,000 flows it
// took 490 MB and 2.9 times the CPU time.
package conntrack

// Package snat computes how the flows of one network namespace use the ports of source NAT. It is pure: it does no
// I/O, reads no clock and keeps nothing between two calls.
//
// Connections that source NAT translates to one address share one pool of ports for each protocol, destination
// address and destination port. A Table counts flows by pool. It applies the rules of the kernel's search for a port
// (net/netfilter/nf_nat_core.c) and returns a Report.
package snat

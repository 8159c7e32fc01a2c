// Package scan makes one pass over a host: it finds the network namespaces in scope,
// enters each, reads its settings and sockets within a deadline, and returns a Snapshot.
//
// It decides which namespaces are read, in which order and for how long. Packages sockdiag,
// procfs, netns, cgroup and trace read them. Package pool computes what their sockets mean.
//
// A Scanner exports no value of an earlier scan, except for failed connects, which it adds up. It
// remembers the labels, workloads and capacities of other namespaces, to name them and to choose which
// are read; the failures that it has logged; and how long TIME_WAIT lasted. All of this is bounded,
// and a restart may lose it.
package scan

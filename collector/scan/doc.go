// Package scan makes one pass over a host: it finds the network namespaces in scope,
// enters each, reads its settings and sockets within a deadline, and returns a Snapshot.
//
// It decides which namespaces are read, in which order and for how long. What their
// sockets mean is the matter of package pool, how they are read that of packages
// sockdiag, procfs, netns, cgroup and connectfail.
//
// No number is remembered from one scan to the next. What is remembered is bounded and may be
// lost: labels and owners of other namespaces, failures that are logged already, how long
// TIME_WAIT was seen to last, and which pools have a series of failed connects.
package scan

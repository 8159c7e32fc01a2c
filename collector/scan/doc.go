// Package scan makes one pass over a host: it finds the network namespaces in scope,
// enters each, reads its settings and sockets within a deadline, and returns a Snapshot.
//
// It decides which namespaces are read, in which order and for how long. Packages sockdiag,
// procfs, netns, cgroup and connectfail read them. Package pool computes what their sockets mean.
//
// A Scanner keeps no measured value from one scan to the next. It keeps the labels and owners of
// other namespaces, the failures that it has logged, how long TIME_WAIT lasted, and which pools
// have a series of failed connects. All of this is bounded, and a restart may lose it.
package scan

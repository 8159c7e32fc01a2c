// Package netns lists the network namespaces of a host with their processes, and enters them.
// See namespaces(7) and network_namespaces(7).
//
// It keeps no descriptor open between two calls: an open namespace would keep the interfaces
// of a dead container alive.
package netns

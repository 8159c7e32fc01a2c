// Package netns finds the network namespaces of a host, enters them and tells whose they
// are. See namespaces(7) and network_namespaces(7).
//
// Nothing is kept open between two calls: a namespace that is open keeps the interfaces
// of a dead container alive.
package netns

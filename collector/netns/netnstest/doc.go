// Package netnstest gives tests a kernel of their own: throw-away network
// namespaces, and sockets in them that reach any destination without a peer.
package netnstest

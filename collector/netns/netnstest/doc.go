// Package netnstest gives tests temporary network namespaces. Sockets in them can connect to any
// destination without a peer.
package netnstest

// Package nattest gives tests a NAT gateway between a client and a server, each in a network
// namespace of its own. Packets are sent one by one, so a test knows for each whether the gateway
// forwarded it and with which source port.
package nattest

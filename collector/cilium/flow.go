package cilium

import (
	"encoding/binary"
	"net/netip"
)

// A Protocol is a protocol number of IP.
type Protocol uint8

// The protocols of a Flow. Others are not listed: ICMP has identifiers and no ports, and Cilium does not translate ports of SCTP.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// A State is what Cilium's connection tracking knows of a Flow.
type State uint8

// The states. Those of TCP come from the packets that passed.
const (
	NoConnection State = iota // nothing: the flow is left over, and keeps its port until the agent collects it
	SynSent                   // of TCP: a SYN alone was seen
	Connected
	Closing // of TCP: one end has sent a FIN or a RST
	Closed  // of TCP: both have
)

// A Flow is an entry of the NAT map that holds a port: that by which answers find back.
type Flow struct {
	Protocol    Protocol
	State       State
	Client      netip.AddrPort // the source before translation
	Translated  netip.AddrPort // the source that the destination sees
	Destination netip.AddrPort // after the choice of a service's backend
}

// Sizes in bytes of what the maps have: struct ipv4_ct_tuple and ipv6_ct_tuple, struct ipv4_nat_entry and ipv6_nat_entry,
// struct ct_entry of bpf/lib/common.h, nat.h and conntrack.h.
const (
	tuple4Size = 14
	tuple6Size = 38
	entry4Size = 40
	entry6Size = 56
	trackSize  = 56
)

// Flags of a tuple: TUPLE_F_OUT and TUPLE_F_IN of bpf/lib/common.h.
const (
	outgoing = 0
	incoming = 1
)

// A family has the offsets of one version of IP in tuples and entries.
type family struct {
	address int // size of an address
	tuple   int // size of a tuple
	entry   int // size of an entry of NAT
}

var (
	ipv4 = family{4, tuple4Size, entry4Size}
	ipv6 = family{16, tuple6Size, entry6Size}
)

// translated is the offset in an entry of NAT of the other address, which a port follows.
const translated = 32

// parse sets a Flow to an entry of the NAT map. It reports whether that holds a port. The state is not set.
func (f family) parse(flow *Flow, tuple, entry []byte) bool {
	ports := tuple[2*f.address:]
	protocol, flags := Protocol(ports[4]), ports[5]
	if flags != incoming || protocol != TCP && protocol != UDP {
		return false
	}
	*flow = Flow{
		Protocol:    protocol,
		Client:      f.end(entry[translated:], entry[translated+f.address:]),
		Translated:  f.end(tuple, ports),
		Destination: f.end(tuple[f.address:], ports[2:]),
	}
	return true
}

// end returns an address and a port, in network byte order.
func (f family) end(address, port []byte) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(address[:f.address]) // the length is right
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port))
}

// connection sets key to that of the connection which a Flow is of, in the map of connection tracking. Its addresses are swapped, its ports are not
// (egressCTKeyFromIngressNatKeyAndVal of pkg/maps/ctmap).
func (f family) connection(key, tuple, entry []byte) {
	copy(key, entry[translated:translated+f.address])
	copy(key[f.address:], tuple[f.address:2*f.address])
	ports := key[2*f.address:]
	copy(ports, tuple[2*f.address+2:2*f.address+4])
	copy(ports[2:], entry[translated+f.address:translated+f.address+2])
	ports[4], ports[5] = tuple[2*f.address+4], outgoing
}

// Of an entry of connection tracking, the offset of its flags, and those that matter, in host byte order.
const (
	flagsOffset = 36
	rxClosing   = 1 << 0
	txClosing   = 1 << 1
	seenNonSYN  = 1 << 4
)

// stateOf returns the state of a connection that is tracked.
func stateOf(p Protocol, track []byte) State {
	flags := binary.NativeEndian.Uint16(track[flagsOffset:])
	switch closing := flags & (rxClosing | txClosing); {
	case p != TCP:
		return Connected
	case closing == rxClosing|txClosing:
		return Closed
	case closing != 0:
		return Closing
	case flags&seenNonSYN == 0:
		return SynSent
	default:
		return Connected
	}
}

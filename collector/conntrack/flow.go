//go:build linux

package conntrack

import "net/netip"

// A Protocol is a protocol number of IP.
type Protocol uint8

// The protocols of a Flow. Others are not listed: those that have ports (SCTP, UDP-Lite) have
// pools of their own, and are rare.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// A State is the state of a TCP flow, enum tcp_conntrack of linux/netfilter/nf_conntrack_tcp.h. It
// is what the kernel concludes from the packets, not the state of a socket.
type State uint8

// The states of a Flow.
const (
	None        State = 0 // TCP_CONNTRACK_NONE: not TCP, or in a flow table (Offload)
	SynSent     State = 1 // TCP_CONNTRACK_SYN_SENT
	SynRecv     State = 2 // TCP_CONNTRACK_SYN_RECV
	Established State = 3 // TCP_CONNTRACK_ESTABLISHED
	FinWait     State = 4 // TCP_CONNTRACK_FIN_WAIT
	CloseWait   State = 5 // TCP_CONNTRACK_CLOSE_WAIT
	LastAck     State = 6 // TCP_CONNTRACK_LAST_ACK
	TimeWait    State = 7 // TCP_CONNTRACK_TIME_WAIT
	Close       State = 8 // TCP_CONNTRACK_CLOSE: reset
	SynSent2    State = 9 // TCP_CONNTRACK_SYN_SENT2: both ends sent a SYN
)

// A Status is a set of bits, enum ip_conntrack_status of
// linux/netfilter/nf_conntrack_common.h.
type Status uint32

// Bits of a Status.
const (
	Expected  Status = 1 << 0  // IPS_EXPECTED: a helper expected it, as of a data connection of FTP
	SeenReply Status = 1 << 1  // IPS_SEEN_REPLY: packets came in both directions
	Assured   Status = 1 << 2  // IPS_ASSURED: never dropped early for a new flow
	SrcNAT    Status = 1 << 4  // IPS_SRC_NAT: the source address or port was changed
	DstNAT    Status = 1 << 5  // IPS_DST_NAT: the destination address or port was changed
	Offload   Status = 1 << 14 // IPS_OFFLOAD: in a flow table, without State
)

// A Tuple is the two ends of packets in one direction.
type Tuple struct {
	Source, Destination netip.AddrPort
}

// A Flow is one entry of the kernel's table: struct nf_conn.
type Flow struct {
	Protocol Protocol
	State    State // None for UDP

	// Original is what the client sends, before NAT. Reply is what the server sends, before NAT
	// is undone. So Reply.Destination is the translated source, and Reply.Source is the real
	// destination behind DNAT. Without NAT, Reply is Original with its ends swapped.
	Original, Reply Tuple

	Status Status

	// Zone is that of the direction of Reply (CT target of iptables-extensions(8)), in which the ports of
	// SNAT conflict. 0 is the default zone.
	Zone uint16
}

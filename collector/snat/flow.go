package snat

import "net/netip"

// A Protocol is a transport protocol whose ports source NAT translates.
type Protocol string

// The protocols.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// A State is the state of a flow as connection tracking sees it. Those of TCP are enum
// tcp_conntrack of linux/netfilter/nf_conntrack_tcp.h; a packet alone makes them, whatever the
// sockets of the two ends do.
type State uint8

// The states: first those of TCP, then those of UDP, then that of flows of Cilium of both.
const (
	SynSent State = iota
	SynRecv
	Established
	FinWait
	CloseWait
	LastAck
	TimeWait
	Close    // reset
	SynSent2 // both ends sent a SYN
	Unreplied
	Replied
	Assured      // replied, and then used again
	NoConnection // Cilium tracks no connection that it is of: it is left until the agent collects it
	numStates
)

// States returns the states of a protocol.
func States(p Protocol) []State {
	if p == UDP {
		return []State{Unreplied, Replied, Assured, NoConnection}
	}
	return []State{SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Close, SynSent2, NoConnection}
}

// String returns the kernel's name in lower case, without a prefix.
func (s State) String() string {
	return [...]string{
		"syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close", "syn_sent2",
		"unreplied", "replied", "assured", "no_connection",
	}[s]
}

// TakenOver reports whether a new connection may take over the port of such a flow, see
// Settings.TakesOver.
func (s State) TakenOver() bool { return s == TimeWait || s == Close || s == SynSent2 }

// Open reports whether a flow holds its port as long as its ends use it. Of the others, only the time
// until it expires is left.
func (s State) Open() bool {
	return s != TimeWait && s != Close && s != Unreplied && s != Replied && s != NoConnection
}

// A Flow is a flow whose packets leave this host with the address Translated: one that source NAT
// translates, or one of the host's own sockets. Both compete for the same ports.
type Flow struct {
	Protocol    Protocol
	State       State
	Client      netip.Addr // the source before translation, as ClientPort; of no use for an own socket
	ClientPort  uint16
	Translated  netip.AddrPort // the source that the destination sees
	Destination netip.AddrPort // after destination NAT, as of a Kubernetes service

	// Zone is that of the reply direction: flows conflict only within a zone.
	Zone uint16

	// Expected is set if a helper expected this flow, as of a data connection of FTP. It gets the translated address of the flow
	// that announced it, and any port: the range of a rule is not for it (nf_nat_follow_master of net/netfilter/nf_nat_helper.c).
	Expected bool

	// Cilium is set if the flow is in a map of Cilium's datapath, which then has the port, and not the kernel.
	Cilium bool

	// SNAT is set if the source is translated. Without it, this is a flow of an own socket.
	SNAT bool
}

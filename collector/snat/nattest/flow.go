//go:build linux

package nattest

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TakesOver reports whether a new connection gets the port of a closed one on this kernel: it makes a
// gateway that has only one port, and sends packets through it.
func TakesOver(t *testing.T) (granted bool) {
	t.Helper()
	t.Run("does the kernel take over", func(t *testing.T) {
		g := New(t, Postrouting("masquerade to :40000"))
		to := netip.AddrPortFrom(Host(Servers4, 0), 80)
		open := func(state State, client int, seq uint32) bool {
			_, granted := g.Open(state, netip.AddrPortFrom(Host(Clients4, client), 20000), to, seq)
			return granted
		}
		if !open(TimeWait, 0, 1) || open(SynSent, 1, 0) {
			t.Fatal("a closed flow does not hold the only port against a connection with an earlier sequence number")
		}
		granted = open(SynSent, 2, 1<<30)
	})
	return granted
}

// A State is a state of a TCP flow (enum tcp_conntrack of uapi/linux/netfilter/nf_conntrack_tcp.h),
// by its name in /proc/net/nf_conntrack.
type State string

// The states of a TCP flow.
const (
	SynSent     State = "SYN_SENT"
	SynSent2    State = "SYN_SENT2"
	SynRecv     State = "SYN_RECV"
	Established State = "ESTABLISHED"
	FinWait     State = "FIN_WAIT"
	CloseWait   State = "CLOSE_WAIT"
	LastAck     State = "LAST_ACK"
	TimeWait    State = "TIME_WAIT"
	Close       State = "CLOSE"
)

// steps has the packet that leads to each state, and from which state it does.
var steps = map[State]struct {
	from   State
	server bool
	flags  uint8
}{
	SynSent:     {"", false, SYN},
	SynSent2:    {SynSent, true, SYN},
	SynRecv:     {SynSent, true, SYN | ACK},
	Established: {SynRecv, false, ACK},
	FinWait:     {Established, false, FIN | ACK},
	CloseWait:   {FinWait, true, ACK},
	LastAck:     {CloseWait, true, FIN | ACK},
	TimeWait:    {LastAck, false, ACK},
	Close:       {Established, false, RST | ACK},
}

// Open opens a TCP connection from an address of Clients to one of Servers and brings its flow to a
// state. The client's first sequence number is seq: a flow that is closed only yields its port to
// one with a later number. Open returns the translated source, or false if the gateway dropped the first packet.
func (g *Gateway) Open(state State, source, destination netip.AddrPort, seq uint32) (translated netip.AddrPort, granted bool) {
	g.tb.Helper()
	var path []State
	for ; state != ""; state = steps[state].from {
		path = append(path, state)
	}
	slices.Reverse(path)

	client := Packet{Protocol: unix.IPPROTO_TCP, Source: source, Destination: destination, Seq: seq}
	server := Packet{Protocol: unix.IPPROTO_TCP, Seq: 1 << 20}
	for i, state := range path {
		from, to, pass := &client, &server, g.Send
		if steps[state].server {
			from, to, pass = &server, &client, g.Reply
		}
		from.Flags = steps[state].flags
		arrived, forwarded := pass(*from)
		switch {
		case !forwarded && i == 0:
			return netip.AddrPort{}, false
		case !forwarded:
			g.tb.Fatalf("the gateway dropped %+v", *from)
		case i == 0:
			translated = arrived.Source
			server.Source, server.Destination = arrived.Destination, arrived.Source
		}
		if from.Flags&(SYN|FIN) != 0 {
			from.Seq++
			to.Ack = from.Seq
		}
	}
	return translated, true
}

// Refuse answers the first packet of a connection that Open brought to SynSent with a reset. The
// kernel forgets the flow at once.
func (g *Gateway) Refuse(translated, destination netip.AddrPort, seq uint32) {
	g.tb.Helper()
	reset := Packet{Protocol: unix.IPPROTO_TCP, Source: destination, Destination: translated, Flags: RST | ACK, Ack: seq + 1}
	if _, forwarded := g.Reply(reset); !forwarded {
		g.tb.Fatalf("the gateway dropped %+v", reset)
	}
}

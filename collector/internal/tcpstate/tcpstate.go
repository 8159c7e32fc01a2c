// Package tcpstate has the states of TCP sockets.
package tcpstate

// A State is the state of a TCP socket, RFC 9293 section 3.3.2, numbered as in
// include/net/tcp_states.h. UDP uses two of them.
type State uint8

// The states. A UDP socket is Established if it has a peer, and Close if it has none.
const (
	Established State = 1  // TCP_ESTABLISHED
	SynSent     State = 2  // TCP_SYN_SENT
	SynRecv     State = 3  // TCP_SYN_RECV
	FinWait1    State = 4  // TCP_FIN_WAIT1
	FinWait2    State = 5  // TCP_FIN_WAIT2, also of the mini-socket that outlives the process
	TimeWait    State = 6  // TCP_TIME_WAIT
	Close       State = 7  // TCP_CLOSE
	CloseWait   State = 8  // TCP_CLOSE_WAIT
	LastAck     State = 9  // TCP_LAST_ACK
	Listen      State = 10 // TCP_LISTEN
	Closing     State = 11 // TCP_CLOSING
)

var names = [...]string{
	Established: "established", SynSent: "syn_sent", SynRecv: "syn_recv", FinWait1: "fin_wait1", FinWait2: "fin_wait2",
	TimeWait: "time_wait", Close: "close", CloseWait: "close_wait", LastAck: "last_ack", Listen: "listen", Closing: "closing",
}

// String returns the kernel's name in lower case without "TCP_". It returns "unknown" for a number that is no state.
func (s State) String() string {
	if s == 0 || int(s) >= len(names) {
		return "unknown"
	}
	return names[s]
}

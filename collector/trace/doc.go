// Package trace counts connect() calls that fail with EADDRNOTAVAIL because no port is free,
// by network namespace, control group, source address, destination address and destination port. The
// kernel has no counter for them.
//
// connect() moves a TCP socket to SYN_SENT, searches a port, and moves the socket back to CLOSE if
// no port is free. The tracepoint sock:inet_sock_set_state then records a change from SYN_SENT to
// CLOSE with source port 0. It records this once for each such failure. The only other cause is a
// kernel without free memory. A BPF program on the tracepoint counts the records in a map. It runs in
// the process that called connect(), so it knows its control group. The network namespace is that of
// the socket, to which the record has the address.
//
// The table of pools is small, and anybody can fill it with pools of his own. So each tenant has a
// share of it, all control groups of a tenant below one on the second level have a part of that
// together, and user space frees the slots of pools that do not fail any more:
//
//	free ──a new pool fails──▶ used ──idle, or over the share──▶ unlinked ──after a time of grace──▶ free
//
// A slot is unlinked by removing its pool from the index. A run of the program that has just found
// the slot there still counts in it. Only the time of grace later, another pool can have it. The
// failures of a slot are never set to 0: user space remembers what it has read, and a late one is
// an increment like others. So none is lost or counted twice.
//
// A Probe also counts bind() with port 0 that finds none, where the kernel runs BPF programs at the end of its functions.
// The search for a port that bind() makes is also that of listen(), and of connect() and sendto() of UDP, for a socket
// that has no port: these count as binds too. A bind has no destination. It has slots and shares like a connect.
//
// One kind of failure is not counted: that of a socket that had a port before and connects again.
// Its record still has the old port, which the socket has lost (inet_put_port leaves inet_sport).
// So it looks like the failure of a socket that was bound to the port.
package trace

//go:build linux

package conntrack

import (
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/nlconn"
)

// BufferSize is the length in bytes of the buffer for Dial.
const BufferSize = nlconn.BufferSize

// A Conn lists the flows of one network namespace: the namespace of the thread that called Dial.
//
// It needs CAP_NET_ADMIN in the user namespace of that network namespace. It serves one request at
// a time. It must not be used after an error: the rest of the broken answer is still in the socket.
type Conn struct {
	conn *nlconn.Conn
}

// Dial opens a connection to the kernel. The Conn receives into buffer, which must have
// BufferSize bytes and may be used again after Close. The error is ErrUnsupported if the kernel
// has no NETLINK_NETFILTER. Whether the kernel will answer is told by Check.
func Dial(buffer []byte) (*Conn, error) {
	c, err := nlconn.Dial(unix.NETLINK_NETFILTER, "no NETLINK_NETFILTER here (a sandbox such as gVisor, or nfnetlink is not loaded: modprobe nf_conntrack_netlink)", buffer)
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	return &Conn{conn: c}, nil
}

// NewConn returns a Conn that uses fd: a blocking datagram socket whose peer answers ctnetlink
// requests. The Conn owns fd and closes it.
func NewConn(fd int, buffer []byte) *Conn {
	return &Conn{conn: nlconn.New(fd, buffer)}
}

// Close closes the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// SetDeadline bounds all requests from now on. It is checked before each datagram: the kernel
// cannot be stopped while it fills one.
func (c *Conn) SetDeadline(t time.Time) { c.conn.SetDeadline(t) }

// Check asks the kernel for the number of flows, which takes microseconds. The error says why
// Flows cannot work: os.ErrPermission without CAP_NET_ADMIN, ErrUnsupported without
// nf_conntrack_netlink.
//
// The kernel loads nf_conntrack and nf_conntrack_netlink for this request if it has them as
// modules. Whoever must not load them looks for /proc/sys/net/netfilter/nf_conntrack_count first.
func (c *Conn) Check() error {
	if _, err := c.conn.Ask(typeGetStats, allFamilies()); err != nil {
		return fmt.Errorf("conntrack: count flows: %w", answerError(err))
	}
	return nil
}

// Flows calls each for every TCP and UDP flow. The Flow is valid until the call returns. The
// namespace's own flows from a translated address, and those whose source NAT left as it was, are
// without SrcNAT, but have ports of the same pools.
//
// Before an error, each may have been called for some flows: these are incomplete and must not be
// used. A dump is not atomic: a flow that begins, ends or changes meanwhile can be missing or
// appear twice. If a flow ends at the border of two datagrams, others of its hash bucket appear
// twice (ctnetlink_dump_table). Flows that have expired are missing.
//
// The kernel does not say if its hash table was resized during the dump: flows are then missing
// or appear twice. So whoever needs them all compares nf_conntrack_buckets before and after.
//
// All namespaces share the table, so a dump takes time also where there are no flows. The kernel
// walks it without softirqs until a datagram is full. That delays packets on this CPU, the longer the
// fewer flows the namespace has.
func (c *Conn) Flows(each func(*Flow)) error {
	if err := c.dump(each); err != nil {
		return fmt.Errorf("conntrack: dump flows: %w", err)
	}
	return nil
}

// dump calls each for the flows of all address families.
func (c *Conn) dump(each func(*Flow)) (err error) {
	r := reply{each: each}
	if r.seq, err = c.conn.Send(typeGet, netlink.Request|netlink.Dump, allFamilies()); err != nil {
		return err
	}
	for {
		b, err := c.conn.Receive()
		if err != nil {
			return err
		}
		done, err := r.datagram(b)
		if done || err != nil {
			return err
		}
	}
}

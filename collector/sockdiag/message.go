//go:build linux

package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/nlconn"
	"ephemeral_port_exporter/collector/internal/tcpstate"
)

const (
	sizeofMsg    = 72 // struct inet_diag_msg
	sizeofCgroup = 8  // the u64 of INET_DIAG_CGROUP_ID

	// timerTimeWait is the idiag_timer of mini-sockets, see inet_twsk_diag_fill in
	// net/ipv4/inet_diag.c.
	timerTimeWait = 3

	attrInfo   = 2  // INET_DIAG_INFO
	attrV6Only = 11 // INET_DIAG_SKV6ONLY
	attrCgroup = 21 // INET_DIAG_CGROUP_ID

	tcpiOptTimestamps = 1 // TCPI_OPT_TIMESTAMPS of linux/tcp.h
)

// A reply decodes the datagrams that answer one request.
type reply struct {
	typ  netlink.HeaderType // of the request, and of every row
	seq  uint32             // of the request
	udp  bool               // it is about UDP sockets
	each func(*Socket)
	rows int

	socket Socket // the argument of each
}

// datagram decodes the messages in b. It is done when the answer is complete.
func (r *reply) datagram(b []byte) (done bool, err error) {
	done, err = nlconn.Rows(b, r.seq, r.typ, r.row)
	if err != nil { // errors.As allocates
		err = answerError(err, r.udp)
	}
	return done, err
}

// row decodes a message.
func (r *reply) row(body []byte) error {
	ok, err := r.socket.parse(body)
	if ok {
		r.rows++
		r.each(&r.socket)
	}
	return err
}

// shortSocket returns the error of a struct inet_diag_msg that is not whole.
func shortSocket(b []byte) error {
	return fmt.Errorf("%w: socket of %d bytes, expected at least %d", ErrMalformed, len(b), sizeofMsg)
}

// parse decodes a struct inet_diag_msg and the attributes behind it. For an unknown address
// family it returns false and no error.
func (s *Socket) parse(b []byte) (ok bool, err error) {
	// struct inet_diag_sockid {        struct inet_diag_msg {
	//	__be16	idiag_sport;             	__u8	idiag_family;
	//	__be16	idiag_dport;             	__u8	idiag_state;
	//	__be32	idiag_src[4];            	__u8	idiag_timer;
	//	__be32	idiag_dst[4];            	__u8	idiag_retrans;
	//	__u32	idiag_if;                	struct inet_diag_sockid id;
	//	__u32	idiag_cookie[2];         	__u32	idiag_expires;
	// };                                	__u32	idiag_rqueue;
	//                                   	__u32	idiag_wqueue;
	//                                   	__u32	idiag_uid;
	//                                   	__u32	idiag_inode;
	//                                   };
	if len(b) < sizeofMsg {
		return false, shortSocket(b)
	}

	var local, remote netip.Addr
	switch b[0] {
	case unix.AF_INET:
		local = netip.AddrFrom4([4]byte(b[8:12]))
		remote = netip.AddrFrom4([4]byte(b[24:28]))
	case unix.AF_INET6:
		local = netip.AddrFrom16([16]byte(b[8:24])).Unmap()
		remote = netip.AddrFrom16([16]byte(b[24:40])).Unmap()
	default:
		return false, nil
	}

	s.State = tcpstate.State(b[1])
	s.Local = netip.AddrPortFrom(local, binary.BigEndian.Uint16(b[4:6]))
	s.Remote = netip.AddrPortFrom(remote, binary.BigEndian.Uint16(b[6:8]))
	s.Interface = binary.NativeEndian.Uint32(b[40:44])
	s.Mini = b[2] == timerTimeWait
	s.Expires = time.Duration(binary.NativeEndian.Uint32(b[52:56])) * time.Millisecond
	s.V6Only, s.Cgroup = false, 0
	if s.State == tcpstate.Listen || s.State == tcpstate.Close {
		s.V6Only, err = parseV6Only(b[sizeofMsg:])
	}
	if err == nil && s.State != tcpstate.Listen && !s.Mini {
		s.Cgroup, err = parseCgroup(b[sizeofMsg:])
	}
	return err == nil, err
}

// parseCgroup returns the value of INET_DIAG_CGROUP_ID from the attributes in b. The kernel adds it
// to each socket since Linux 5.8, without a request for it. Without it, the value is 0.
func parseCgroup(b []byte) (uint64, error) {
	value, err := nlconn.Attr(b, attrCgroup)
	if err != nil || value == nil {
		return 0, err
	}
	if len(value) < sizeofCgroup {
		return 0, fmt.Errorf("%w: control group of %d bytes, expected %d", ErrMalformed, len(value), sizeofCgroup)
	}
	return binary.NativeEndian.Uint64(value), nil
}

// parseV6Only returns the value of INET_DIAG_SKV6ONLY from the attributes in b. The kernel adds
// it to each AF_INET6 listener since Linux 3.19, and to each UDP socket without a peer, without a
// request for it. A socket without it counts as dual-stack, which is the default.
func parseV6Only(b []byte) (bool, error) {
	value, err := nlconn.Attr(b, attrV6Only)
	return len(value) > 0 && value[0] != 0, err
}

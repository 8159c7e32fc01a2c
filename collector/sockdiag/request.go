//go:build linux

package sockdiag

import (
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Constants of linux/inet_diag.h and linux/sock_diag.h.
const (
	typeGetSock  netlink.HeaderType = 18                       // TCPDIAG_GETSOCK
	typeByFamily netlink.HeaderType = unix.SOCK_DIAG_BY_FAMILY // 20

	attrReqBytecode = 1 // INET_DIAG_REQ_BYTECODE

	extInfo = 1 << (attrInfo - 1) // in idiag_ext

	opPortGE = 2 // INET_DIAG_BC_S_GE
	opPortLE = 3 // INET_DIAG_BC_S_LE
)

// Sizes of the kernel's structures.
const (
	sizeofSockID   = 48 // struct inet_diag_sockid
	sizeofReq      = 60 // struct inet_diag_req, of TCPDIAG_GETSOCK
	sizeofReqV2    = 56 // struct inet_diag_req_v2, of SOCK_DIAG_BY_FAMILY
	sizeofOp       = 4  // struct inet_diag_bc_op
	sizeofBytecode = 4 * sizeofOp
)

// A request selects the sockets in some states whose local port lies from low to high, both
// included. states is a mask of bit.
type request struct {
	states    uint32
	low, high uint16
	udp       bool // UDP sockets, else TCP sockets
}

// getSock returns the body of a TCPDIAG_GETSOCK request. It dumps both families in one walk of
// the kernel's table.
func (r request) getSock() []byte {
	// struct inet_diag_req {
	//	__u8	idiag_family;
	//	__u8	idiag_src_len;
	//	__u8	idiag_dst_len;
	//	__u8	idiag_ext;
	//	struct inet_diag_sockid id;
	//	__u32	idiag_states;
	//	__u32	idiag_dbs;
	// };
	b := make([]byte, sizeofReq, sizeofReq+unix.SizeofNlAttr+sizeofBytecode)
	binary.NativeEndian.PutUint32(b[4+sizeofSockID:], r.states)
	return r.appendFilter(b)
}

// byFamily returns the body of a SOCK_DIAG_BY_FAMILY request for AF_INET or AF_INET6.
func (r request) byFamily(family uint8) []byte {
	// struct inet_diag_req_v2 {
	//	__u8	sdiag_family;
	//	__u8	sdiag_protocol;
	//	__u8	idiag_ext;
	//	__u8	pad;
	//	__u32	idiag_states;
	//	struct inet_diag_sockid id;
	// };
	b := make([]byte, sizeofReqV2, sizeofReqV2+unix.SizeofNlAttr+sizeofBytecode)
	b[0] = family
	b[1] = unix.IPPROTO_TCP
	if r.udp {
		b[1] = unix.IPPROTO_UDP
	}
	binary.NativeEndian.PutUint32(b[4:], r.states)
	return r.appendFilter(b)
}

// oneSocket returns the body of a SOCK_DIAG_BY_FAMILY request for one socket with its struct
// tcp_info. An AF_INET6 socket that uses IPv4 is found by its IPv4 addresses.
func oneSocket(local, remote netip.AddrPort, iface uint32) []byte {
	b := make([]byte, sizeofReqV2)
	b[0] = unix.AF_INET
	if local.Addr().Is6() {
		b[0] = unix.AF_INET6
	}
	b[1] = unix.IPPROTO_TCP
	b[2] = extInfo
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0))
	// struct inet_diag_sockid, see Socket.parse. The cookie is INET_DIAG_NOCOOKIE.
	id := b[8:]
	binary.BigEndian.PutUint16(id[0:], local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(id[36:], iface)
	binary.NativeEndian.PutUint64(id[40:], ^uint64(0))
	return b
}

// appendFilter appends the attribute that makes the kernel filter by local port. On a server,
// nearly all sockets have other ports.
//
// A comparison is two operations. The second holds the port, in the place of the "no" offset.
// "yes" and "no" are byte offsets from the operation. The program accepts a socket if it ends
// exactly at its length, and rejects it if it jumps 4 bytes past that (inet_diag_bc_run).
func (r request) appendFilter(b []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofNlAttr+sizeofBytecode)
	b = binary.NativeEndian.AppendUint16(b, attrReqBytecode)

	b = appendOp(b, opPortGE, 2*sizeofOp, sizeofBytecode+4)
	b = appendOp(b, 0, 0, r.low)
	b = appendOp(b, opPortLE, 2*sizeofOp, sizeofBytecode-2*sizeofOp+4)
	return appendOp(b, 0, 0, r.high)
}

// appendOp appends a struct inet_diag_bc_op.
func appendOp(b []byte, code, yes uint8, no uint16) []byte {
	b = append(b, code, yes)
	return binary.NativeEndian.AppendUint16(b, no)
}

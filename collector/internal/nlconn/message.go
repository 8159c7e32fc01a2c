//go:build linux

package nlconn

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	sizeofErrno = 4 // the int at the start of NLMSG_ERROR and NLMSG_DONE

	attrTypeMask = 0x3fff // NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

// Rows calls each with the body of every message of a type in a datagram that answers the request with this sequence
// number. It is done when it finds NLMSG_DONE: then the answer is complete.
//
// The error is an *Error, ErrInterrupted, ErrMalformed or that of each.
func Rows(b []byte, request uint32, row netlink.HeaderType, each func(body []byte) error) (done bool, err error) {
	for len(b) > 0 {
		typ, body, rest, err := next(b, request)
		if err != nil {
			return false, err
		}
		switch typ {
		case row:
			if err := each(body); err != nil {
				return false, err
			}
		case netlink.Done:
			return true, nil
		case netlink.Noop:
		default:
			return false, fmt.Errorf("%w: message of type %d", ErrMalformed, typ)
		}
		b = rest
	}
	return false, nil
}

// next returns the first message of b, part of a datagram that answers the request with this sequence
// number, and what is behind it. b must not be empty. The type is netlink.Done at the end of a whole
// dump, netlink.Noop, or one of the protocol.
//
// The error is an *Error, ErrInterrupted or ErrMalformed.
func next(b []byte, request uint32) (typ netlink.HeaderType, body, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return 0, nil, nil, fmt.Errorf("%w: %d bytes, expected a message header of %d", ErrMalformed, len(b), unix.SizeofNlMsghdr)
	}

	// struct nlmsghdr {
	//	__u32 nlmsg_len;
	//	__u16 nlmsg_type;
	//	__u16 nlmsg_flags;
	//	__u32 nlmsg_seq;
	//	__u32 nlmsg_pid;
	// };
	length := binary.NativeEndian.Uint32(b[0:4])
	typ = netlink.HeaderType(binary.NativeEndian.Uint16(b[4:6]))
	flags := netlink.HeaderFlags(binary.NativeEndian.Uint16(b[6:8]))
	seq := binary.NativeEndian.Uint32(b[8:12])
	if length < unix.SizeofNlMsghdr || uint64(length) > uint64(len(b)) {
		return 0, nil, nil, fmt.Errorf("%w: message length %d, %d bytes left", ErrMalformed, length, len(b))
	}
	if seq != request {
		return 0, nil, nil, fmt.Errorf("%w: sequence number %d, sent %d", ErrMalformed, seq, request)
	}
	if flags&netlink.DumpInterrupted != 0 {
		return 0, nil, nil, fmt.Errorf("%w: the kernel's table changed during the dump", ErrInterrupted)
	}
	body, rest = b[unix.SizeofNlMsghdr:length], b[min(align(int(length)), len(b)):]
	switch typ {
	case netlink.Done, netlink.Error:
		err = checkErrno(body, typ == netlink.Done)
	case netlink.Overrun:
		err = fmt.Errorf("%w: the kernel lost messages", ErrInterrupted)
	}
	return typ, body, rest, err
}

// checkErrno returns the error that the body of NLMSG_DONE or NLMSG_ERROR begins with: a negative
// errno.
func checkErrno(body []byte, done bool) error {
	if len(body) < sizeofErrno {
		return fmt.Errorf("%w: error code of %d bytes", ErrMalformed, len(body))
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	switch {
	case errno != 0:
		return &Error{Errno: errno, Done: done}
	case !done:
		return fmt.Errorf("%w: acknowledgement, expected an answer", ErrMalformed)
	}
	return nil
}

// align rounds n up to the start of the next message or attribute.
//
//	#define NLMSG_ALIGN(len) ( ((len)+NLMSG_ALIGNTO-1) & ~(NLMSG_ALIGNTO-1) )
func align(n int) int { return (n + 3) &^ 3 }

// Attr returns the value of an attribute among those in b, or nil if there is none.
func Attr(b []byte, want uint16) ([]byte, error) {
	// A loop over NextAttr would decode sockets 12% slower.
	for len(b) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofNlAttr || length > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[2:])&attrTypeMask == want {
			return b[unix.SizeofNlAttr:length], nil
		}
		b = b[min(align(length), len(b)):]
	}
	if len(b) > 0 {
		return nil, AttrError(b)
	}
	return nil, nil
}

// NextAttr returns the first attribute of b and what is behind it. If it is not ok, AttrError says
// why: so NextAttr is small enough to be inlined.
func NextAttr(b []byte) (typ uint16, value, rest []byte, ok bool) {
	// struct nlattr {
	//	__u16 nla_len;
	//	__u16 nla_type;
	// };
	if len(b) < unix.SizeofNlAttr {
		return 0, nil, nil, false
	}
	length := int(binary.NativeEndian.Uint16(b))
	if length < unix.SizeofNlAttr || length > len(b) {
		return 0, nil, nil, false
	}
	return binary.NativeEndian.Uint16(b[2:]) & attrTypeMask, b[unix.SizeofNlAttr:length], b[min(align(length), len(b)):], true
}

// AttrError says why NextAttr found no attribute in b.
func AttrError(b []byte) error {
	if len(b) < unix.SizeofNlAttr {
		return fmt.Errorf("%w: %d bytes, expected an attribute", ErrMalformed, len(b))
	}
	return fmt.Errorf("%w: attribute length %d, %d bytes left", ErrMalformed, binary.NativeEndian.Uint16(b), len(b))
}

//go:build linux

package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/nlconn"
)

// sizeofGenMsg is the size of a struct nfgenmsg.
const sizeofGenMsg = 4

// Constants of linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
const (
	typeNew      netlink.HeaderType = unix.NFNL_SUBSYS_CTNETLINK << 8   // IPCTNL_MSG_CT_NEW
	typeGet      netlink.HeaderType = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	typeGetStats netlink.HeaderType = unix.NFNL_SUBSYS_CTNETLINK<<8 | 5 // IPCTNL_MSG_CT_GET_STATS

	attrTupleOrig  = 1  // CTA_TUPLE_ORIG
	attrTupleReply = 2  // CTA_TUPLE_REPLY
	attrStatus     = 3  // CTA_STATUS
	attrProtoInfo  = 4  // CTA_PROTOINFO
	attrZone       = 18 // CTA_ZONE

	attrTupleIP    = 1 // CTA_TUPLE_IP
	attrTupleProto = 2 // CTA_TUPLE_PROTO
	attrTupleZone  = 3 // CTA_TUPLE_ZONE

	attrIPv4Source      = 1 // CTA_IP_V4_SRC
	attrIPv4Destination = 2 // CTA_IP_V4_DST
	attrIPv6Source      = 3 // CTA_IP_V6_SRC
	attrIPv6Destination = 4 // CTA_IP_V6_DST

	attrProtoNum             = 1 // CTA_PROTO_NUM
	attrProtoSourcePort      = 2 // CTA_PROTO_SRC_PORT
	attrProtoDestinationPort = 3 // CTA_PROTO_DST_PORT

	attrProtoInfoTCP      = 1 // CTA_PROTOINFO_TCP
	attrProtoInfoTCPState = 1 // CTA_PROTOINFO_TCP_STATE
)

// allFamilies returns a struct nfgenmsg, the body of a request about all address families.
func allFamilies() []byte { return make([]byte, sizeofGenMsg) }

// A reply decodes the datagrams that answer one request for flows.
type reply struct {
	seq  uint32 // of the request
	each func(*Flow)

	flow Flow // the argument of each
}

// datagram decodes the messages in b. It is done when the answer is complete.
func (r *reply) datagram(b []byte) (done bool, err error) {
	done, err = nlconn.Rows(b, r.seq, typeNew, r.row)
	if err != nil { // errors.As allocates
		err = answerError(err)
	}
	return done, err
}

// row decodes a message.
func (r *reply) row(body []byte) error {
	ok, err := r.flow.parse(body)
	if ok {
		r.each(&r.flow)
	}
	return err
}

// parse decodes a struct nfgenmsg and the attributes behind it. For an unknown address family,
// and for a protocol that is neither TCP nor UDP, it returns false and no error.
func (f *Flow) parse(b []byte) (ok bool, err error) {
	// struct nfgenmsg {
	//	__u8	nfgen_family;
	//	__u8	version;
	//	__be16	res_id;
	// };
	if len(b) < sizeofGenMsg {
		return false, fmt.Errorf("%w: flow of %d bytes, expected at least %d", ErrMalformed, len(b), sizeofGenMsg)
	}
	if b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return false, nil
	}
	is4 := b[0] == unix.AF_INET
	*f = Flow{}
	var orig, reply tuple
	for b = b[sizeofGenMsg:]; len(b) > 0; {
		typ, value, rest, ok := nlconn.NextAttr(b)
		if !ok {
			return false, nlconn.AttrError(b)
		}
		switch typ {
		case attrTupleOrig:
			err = orig.parse(value)
			if err == nil && orig.protocol != TCP && orig.protocol != UDP {
				return false, nil
			}
		case attrTupleReply:
			err = reply.parse(value)
			f.Zone = reply.zone
		case attrStatus:
			var n uint32
			n, err = parseUint32(value)
			f.Status = Status(n)
		case attrProtoInfo:
			f.State, err = parseState(value)
		case attrZone: // of both directions; the kernel sends it after the tuples, and then these have none
			f.Zone, err = parseUint16(value)
		}
		if err != nil {
			return false, err
		}
		b = rest
	}
	if !orig.complete(is4) || !reply.complete(is4) || orig.protocol != reply.protocol {
		return false, fmt.Errorf("%w: flow without addresses, ports or protocol", ErrMalformed)
	}
	f.Protocol = orig.protocol
	f.Original, f.Reply = orig.ends(), reply.ends()
	return true, nil
}

// A tuple is what the attributes of CTA_TUPLE_ORIG or CTA_TUPLE_REPLY say.
type tuple struct {
	source, destination         netip.Addr
	sourcePort, destinationPort uint16
	ports                       int // number of port attributes
	protocol                    Protocol
	zone                        uint16
}

// complete reports whether all attributes of TCP and UDP were there, with addresses of the family.
func (t *tuple) complete(is4 bool) bool {
	return t.source.IsValid() && t.destination.IsValid() && t.source.Is4() == is4 && t.destination.Is4() == is4 && t.ports == 2
}

func (t *tuple) ends() Tuple {
	return Tuple{netip.AddrPortFrom(t.source, t.sourcePort), netip.AddrPortFrom(t.destination, t.destinationPort)}
}

// parse decodes the attributes in b.
func (t *tuple) parse(b []byte) (err error) {
	*t = tuple{}
	for len(b) > 0 {
		typ, value, rest, ok := nlconn.NextAttr(b)
		if !ok {
			return nlconn.AttrError(b)
		}
		switch typ {
		case attrTupleIP:
			err = t.parseIP(value)
		case attrTupleProto:
			err = t.parseProto(value)
		case attrTupleZone:
			t.zone, err = parseUint16(value)
		}
		if err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// parseIP decodes the attributes of CTA_TUPLE_IP.
func (t *tuple) parseIP(b []byte) error {
	for len(b) > 0 {
		typ, value, rest, ok := nlconn.NextAttr(b)
		if !ok {
			return nlconn.AttrError(b)
		}
		size := 0
		switch typ {
		case attrIPv4Source, attrIPv4Destination:
			size = 4
		case attrIPv6Source, attrIPv6Destination:
			size = 16
		}
		if len(value) < size {
			return fmt.Errorf("%w: address of %d bytes, expected %d", ErrMalformed, len(value), size)
		}
		switch typ {
		case attrIPv4Source:
			t.source = netip.AddrFrom4([4]byte(value))
		case attrIPv4Destination:
			t.destination = netip.AddrFrom4([4]byte(value))
		case attrIPv6Source:
			t.source = netip.AddrFrom16([16]byte(value))
		case attrIPv6Destination:
			t.destination = netip.AddrFrom16([16]byte(value))
		}
		b = rest
	}
	return nil
}

// parseProto decodes the attributes of CTA_TUPLE_PROTO.
func (t *tuple) parseProto(b []byte) (err error) {
	for len(b) > 0 {
		typ, value, rest, ok := nlconn.NextAttr(b)
		if !ok {
			return nlconn.AttrError(b)
		}
		switch typ {
		case attrProtoNum:
			if len(value) < 1 {
				return fmt.Errorf("%w: protocol of 0 bytes", ErrMalformed)
			}
			t.protocol = Protocol(value[0])
		case attrProtoSourcePort:
			t.sourcePort, err = parseUint16(value)
			t.ports++
		case attrProtoDestinationPort:
			t.destinationPort, err = parseUint16(value)
			t.ports++
		}
		if err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// parseState returns CTA_PROTOINFO_TCP_STATE from the attributes of CTA_PROTOINFO, or None.
func parseState(b []byte) (State, error) {
	info, err := nlconn.Attr(b, attrProtoInfoTCP)
	if err != nil {
		return None, err
	}
	value, err := nlconn.Attr(info, attrProtoInfoTCPState)
	if err != nil || value == nil {
		return None, err
	}
	if len(value) < 1 {
		return None, fmt.Errorf("%w: state of 0 bytes", ErrMalformed)
	}
	return State(value[0]), nil
}

func parseUint16(b []byte) (uint16, error) {
	if len(b) < 2 {
		return 0, fmt.Errorf("%w: number of %d bytes, expected 2", ErrMalformed, len(b))
	}
	return binary.BigEndian.Uint16(b), nil
}

func parseUint32(b []byte) (uint32, error) {
	if len(b) < 4 {
		return 0, fmt.Errorf("%w: number of %d bytes, expected 4", ErrMalformed, len(b))
	}
	return binary.BigEndian.Uint32(b), nil
}

//go:build linux

package conntracktest

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Tuple is the two ends of packets in one direction. Zone is sent with the tuple unless 0.
type Tuple struct {
	Source, Destination netip.AddrPort
	Zone                uint16
}

// Reverse returns the tuple of the answers, without NAT and without a zone.
func (t Tuple) Reverse() Tuple { return Tuple{Source: t.Destination, Destination: t.Source} }

// A Flow is an entry of the table. The fields have the kernel's numbers.
type Flow struct {
	Protocol        uint8 // unix.IPPROTO_TCP
	State           uint8 // TCP_CONNTRACK_*, for TCP
	Original, Reply Tuple
	Status          uint32
	Timeout         uint32 // seconds
	Zone            uint16 // of both directions, unless 0
}

// Constants of linux/netfilter/nfnetlink_conntrack.h and linux/netlink.h.
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaNATSrc     = 6
	ctaTimeout    = 7
	ctaID         = 12
	ctaNATDst     = 13
	ctaZone       = 18

	nested = 0x8000 // NLA_F_NESTED

	ipsConfirmed = 1 << 3 // IPS_CONFIRMED: the kernel creates no others
)

// Body returns the body of the row that the kernel sends for the flow.
func (f Flow) Body() []byte {
	b := f.genMsg()
	b = append(b, attr(ctaTupleOrig|nested, f.tuple(f.Original))...)
	b = append(b, attr(ctaTupleReply|nested, f.tuple(f.Reply))...)
	if f.Zone != 0 {
		b = append(b, attr16(ctaZone, f.Zone)...)
	}
	b = append(b, attr32(ctaStatus, f.Status)...)
	b = append(b, attr32(ctaID, 4711)...)
	b = append(b, attr32(ctaTimeout, f.Timeout)...)
	return append(b, f.protoInfo()...)
}

// order returns the body of the request that creates the flow. The kernel translates the addresses
// that differ between Original and Reply.
func (f Flow) order() []byte {
	b := f.genMsg()
	b = append(b, attr(ctaTupleOrig|nested, f.tuple(f.Original))...)
	plain := f.Original.Reverse()
	plain.Zone = f.Reply.Zone
	b = append(b, attr(ctaTupleReply|nested, f.tuple(plain))...)
	if f.Zone != 0 {
		b = append(b, attr16(ctaZone, f.Zone)...)
	}
	if f.Reply.Source != f.Original.Destination {
		b = append(b, attr(ctaNATDst|nested, natRange(f.Reply.Source))...)
	}
	if f.Reply.Destination != f.Original.Source {
		b = append(b, attr(ctaNATSrc|nested, natRange(f.Reply.Destination))...)
	}
	b = append(b, attr32(ctaStatus, f.Status|ipsConfirmed)...)
	b = append(b, attr32(ctaTimeout, f.Timeout)...)
	return append(b, f.protoInfo()...)
}

// genMsg returns the struct nfgenmsg.
func (f Flow) genMsg() []byte {
	if f.Original.Source.Addr().Is6() {
		return []byte{unix.AF_INET6, 0, 0, 0}
	}
	return []byte{unix.AF_INET, 0, 0, 0}
}

func (f Flow) tuple(t Tuple) []byte {
	source, destination := uint16(1), uint16(2) // CTA_IP_V4_SRC, CTA_IP_V4_DST
	if t.Source.Addr().Is6() {
		source, destination = 3, 4 // CTA_IP_V6_SRC, CTA_IP_V6_DST
	}
	ip := append(attr(source, t.Source.Addr().AsSlice()), attr(destination, t.Destination.Addr().AsSlice())...)
	// CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT
	proto := append(attr(1, []byte{f.Protocol}), attr16(2, t.Source.Port())...)
	proto = append(proto, attr16(3, t.Destination.Port())...)
	b := append(attr(1|nested, ip), attr(2|nested, proto)...) // CTA_TUPLE_IP, CTA_TUPLE_PROTO
	if t.Zone != 0 {
		b = append(b, attr16(3, t.Zone)...) // CTA_TUPLE_ZONE
	}
	return b
}

// protoInfo returns CTA_PROTOINFO of a TCP flow.
func (f Flow) protoInfo() []byte {
	if f.Protocol != unix.IPPROTO_TCP {
		return nil
	}
	state := attr(1, []byte{f.State})                       // CTA_PROTOINFO_TCP_STATE
	state = append(state, attr(2, []byte{0})...)            // CTA_PROTOINFO_TCP_WSCALE_ORIGINAL
	return attr(ctaProtoInfo|nested, attr(1|nested, state)) // CTA_PROTOINFO_TCP
}

// natRange returns the attributes of a range with one address and one port.
func natRange(to netip.AddrPort) []byte {
	low, high := uint16(1), uint16(2) // CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP
	if to.Addr().Is6() {
		low, high = 4, 5 // CTA_NAT_V6_MINIP, CTA_NAT_V6_MAXIP
	}
	b := append(attr(low, to.Addr().AsSlice()), attr(high, to.Addr().AsSlice())...)
	ports := append(attr16(1, to.Port()), attr16(2, to.Port())...) // CTA_PROTONAT_PORT_MIN, _MAX
	return append(b, attr(3|nested, ports)...)                     // CTA_NAT_PROTO
}

// attr returns a padded attribute.
func attr(typ uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func attr16(typ, value uint16) []byte {
	return attr(typ, binary.BigEndian.AppendUint16(nil, value))
}

func attr32(typ uint16, value uint32) []byte {
	return attr(typ, binary.BigEndian.AppendUint32(nil, value))
}

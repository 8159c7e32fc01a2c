//go:build linux

package nattest

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flags of the TCP header, RFC 9293 section 3.1.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// A Packet is a TCP or UDP packet, IPv4 or IPv6.
type Packet struct {
	Protocol            uint8 // unix.IPPROTO_TCP or unix.IPPROTO_UDP
	Source, Destination netip.AddrPort
	Flags               uint8 // TCP only, as are the numbers
	Seq, Ack            uint32

	// id is in a place that the gateway leaves as it is: UDP's data or TCP's urgent pointer, which
	// nobody reads without the flag URG.
	id uint16
}

const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	udpHeaderLen  = 8
)

// marshal returns the packet with its IP header.
func (p Packet) marshal() []byte {
	var segment []byte
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		segment = make([]byte, tcpHeaderLen)
		binary.BigEndian.PutUint32(segment[4:], p.Seq)
		binary.BigEndian.PutUint32(segment[8:], p.Ack)
		segment[12] = tcpHeaderLen / 4 << 4
		segment[13] = p.Flags
		binary.BigEndian.PutUint16(segment[14:], 65535) // window
		binary.BigEndian.PutUint16(segment[18:], p.id)
	case unix.IPPROTO_UDP:
		segment = make([]byte, udpHeaderLen+2)
		binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
		binary.BigEndian.PutUint16(segment[8:], p.id)
	default:
		panic(fmt.Sprintf("nattest: protocol %d", p.Protocol))
	}
	binary.BigEndian.PutUint16(segment, p.Source.Port())
	binary.BigEndian.PutUint16(segment[2:], p.Destination.Port())

	source, destination := p.Source.Addr().AsSlice(), p.Destination.Addr().AsSlice()
	sum := checksum(segment, source, destination, []byte{0, p.Protocol, 0, uint8(len(segment))})
	if p.Protocol == unix.IPPROTO_TCP {
		binary.BigEndian.PutUint16(segment[16:], sum)
	} else {
		binary.BigEndian.PutUint16(segment[6:], sum)
	}

	var header []byte
	if p.Source.Addr().Is4() {
		header = make([]byte, ipv4HeaderLen) // the kernel fills in length and checksum
		header[0] = 4<<4 | ipv4HeaderLen/4
		header[8] = 64
		header[9] = p.Protocol
		copy(header[12:], source)
		copy(header[16:], destination)
	} else {
		header = make([]byte, ipv6HeaderLen)
		header[0] = 6 << 4
		binary.BigEndian.PutUint16(header[4:], uint16(len(segment)))
		header[6] = p.Protocol
		header[7] = 64
		copy(header[8:], source)
		copy(header[24:], destination)
	}
	return append(header, segment...)
}

// unmarshal parses a packet with its IP header. It returns false for other protocols.
func unmarshal(b []byte) (Packet, bool) {
	var (
		p     Packet
		s, d  netip.Addr
		first int // byte of the segment
	)
	switch {
	case len(b) >= ipv4HeaderLen && b[0]>>4 == 4:
		first = int(b[0]&0xf) * 4
		p.Protocol = b[9]
		s, d = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	case len(b) >= ipv6HeaderLen && b[0]>>4 == 6:
		first = ipv6HeaderLen
		p.Protocol = b[6]
		s, d = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	default:
		return Packet{}, false
	}
	b = b[min(first, len(b)):]
	switch {
	case p.Protocol == unix.IPPROTO_TCP && len(b) >= tcpHeaderLen:
		p.Seq, p.Ack, p.Flags = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), b[13]
		p.id = binary.BigEndian.Uint16(b[18:])
	case p.Protocol == unix.IPPROTO_UDP && len(b) >= udpHeaderLen+2:
		p.id = binary.BigEndian.Uint16(b[8:])
	default:
		return Packet{}, false
	}
	p.Source = netip.AddrPortFrom(s, binary.BigEndian.Uint16(b))
	p.Destination = netip.AddrPortFrom(d, binary.BigEndian.Uint16(b[2:]))
	return p, true
}

// checksum returns the Internet checksum (RFC 1071) of parts that have an even length.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

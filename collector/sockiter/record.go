//go:build linux

package sockiter

import (
	"encoding/binary"
	"net/netip"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/sockdiag"
)

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -tags linux -no-global-types -output-stem sockiter bpf sockiter.bpf.c -- -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

// A record describes one socket: struct record in sockiter.bpf.c. The remote port is in network byte order,
// and so are the addresses: IPv6 or IPv4-mapped. Other numbers are in the byte order of the host.
const (
	addressSize = 16

	recordState      = 0
	recordFlags      = 1
	recordPort       = 2
	recordRemotePort = 4 // two unused bytes follow
	recordInterface  = 8
	recordExpires    = 12 // in ticks, 0 if late
	recordLocal      = 16
	recordRemote     = recordLocal + addressSize
	recordCgroup     = recordRemote + addressSize
	recordStamp      = recordCgroup + 8 // four unused bytes follow
	recordSize       = recordStamp + 8
)

// Flags of a record.
const (
	flagBound = 1 << iota
	flagMini
	flagV6Only
)

// parse calls each for the records in b, which the kernel had written at a time. It returns the bytes behind the
// last whole one.
func (it *Iterator) parse(b []byte, seen time.Duration, each func(*Socket)) (rest []byte) {
	s := Socket{Socket: sockdiag.Socket{Seen: seen}}
	for ; len(b) >= recordSize; b = b[recordSize:] {
		flags := b[recordFlags]
		s.State = tcpstate.State(b[recordState])
		s.Local = netip.AddrPortFrom(parseAddress(b[recordLocal:]), binary.NativeEndian.Uint16(b[recordPort:]))
		s.Remote = netip.AddrPortFrom(parseAddress(b[recordRemote:]), binary.BigEndian.Uint16(b[recordRemotePort:]))
		s.Interface = binary.NativeEndian.Uint32(b[recordInterface:])
		s.Mini = flags&flagMini != 0
		s.Expires = time.Duration(binary.NativeEndian.Uint32(b[recordExpires:])) * it.tick
		s.V6Only = s.State == tcpstate.Listen && flags&flagV6Only != 0
		s.Cgroup = 0
		if s.State != tcpstate.Listen {
			s.Cgroup = binary.NativeEndian.Uint64(b[recordCgroup:])
		}
		s.Bound = flags&flagBound != 0
		s.Stamp = binary.NativeEndian.Uint32(b[recordStamp:])
		each(&s)
	}
	return b
}

// parseAddress parses an address of a record.
func parseAddress(b []byte) netip.Addr {
	return netip.AddrFrom16([addressSize]byte(b)).Unmap()
}

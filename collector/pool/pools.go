package pool

import (
	"cmp"
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"

	"ephemeral_port_exporter/collector/internal/portset"
)

// A poolKey identifies a pool: connect() calls with the same key compete for the same ports.
// It has no pointers and no padding, because the table is searched for it for each socket.
type poolKey struct {
	source, destination [16]byte // IPv6 or IPv4-mapped
	zone                uint32   // interface index, for link-local addresses; else 0
	port                uint32
}

// An ipv4Key is the poolKey of a pool of IPv4: its source, its destination and the port of that.
type ipv4Key [3]uint32

// A sourceKey identifies a source: bind(ip, 0) calls with the same key compete for the same
// ports.
type sourceKey struct {
	address [16]byte
	zone    uint32
}

// sourceKey returns the key of the source of the pool's sockets.
func (k poolKey) sourceKey() sourceKey {
	key := sourceKey{address: k.source}
	if isLinkLocal(netip.AddrFrom16(k.source)) {
		key.zone = k.zone
	}
	return key
}

// sourceAddr returns the source address.
func (k poolKey) sourceAddr() netip.Addr { return keyAddr(k.source, k.zone) }

// destinationAddr returns the destination.
func (k poolKey) destinationAddr() netip.AddrPort {
	return netip.AddrPortFrom(keyAddr(k.destination, k.zone), uint16(k.port))
}

// ipv4 returns the key in 12 bytes, if it is one of IPv4.
func (k poolKey) ipv4() (key ipv4Key, ok bool) {
	source, destination := netip.AddrFrom16(k.source), netip.AddrFrom16(k.destination)
	if !source.Is4In6() || !destination.Is4In6() {
		return ipv4Key{}, false
	}
	return ipv4Key{binary.BigEndian.Uint32(k.source[12:]), binary.BigEndian.Uint32(k.destination[12:]), k.port}, true
}

// addresses returns the two ends.
func (k ipv4Key) addresses() (source, destination netip.Addr) {
	var b [8]byte
	binary.BigEndian.PutUint32(b[:], k[0])
	binary.BigEndian.PutUint32(b[4:], k[1])
	return netip.AddrFrom4([4]byte(b[:])), netip.AddrFrom4([4]byte(b[4:]))
}

// poolKey returns the key as others have it.
func (k ipv4Key) poolKey() poolKey {
	source, destination := k.addresses()
	return poolKey{source: source.As16(), destination: destination.As16(), port: k[2]}
}

// pools are the pools of a namespace by number: those of IPv4 have the numbers 0, 1, 2, …, all others -1, -2, -3, …
type pools struct {
	ipv4 portset.Index[ipv4Key, pool]
	ipv6 portset.Index[poolKey, pool]
}

// A pool is where the counts of one pool are. It has no pointers and needs 12 bytes: there can be very many.
type pool struct {
	source  int32     // number in Table.sources
	sockets [2]uint32 // see contents
}

// len returns the number of pools.
func (p *pools) len() int { return p.ipv4.Len() + p.ipv6.Len() }

// all returns the numbers of all pools.
func (p *pools) all() iter.Seq[int32] {
	return func(yield func(int32) bool) {
		for i := range p.ipv4.Len() {
			if !yield(int32(i)) {
				return
			}
		}
		for i := range p.ipv6.Len() {
			if !yield(^int32(i)) {
				return
			}
		}
	}
}

// at returns a pool.
func (p *pools) at(n int32) *pool {
	if n >= 0 {
		return &p.ipv4.At(int(n)).Value
	}
	return &p.ipv6.At(int(^n)).Value
}

// key returns the key of a pool.
func (p *pools) key(n int32) poolKey {
	if n >= 0 {
		return p.ipv4.At(int(n)).Key.poolKey()
	}
	return p.ipv6.At(int(^n)).Key
}

// find returns the number of a pool.
func (p *pools) find(key poolKey) (n int32, ok bool) {
	if short, is4 := key.ipv4(); is4 {
		i, ok := p.ipv4.Find(short)
		return int32(i), ok
	}
	i, ok := p.ipv6.Find(key)
	return ^int32(i), ok
}

// add returns the number of a socket's pool. It is a new one if it has no sockets.
func (p *pools) add(s *Socket) (n int32) {
	local, remote := s.Local.Addr().Unmap(), s.Remote.Addr().Unmap()
	if local.Is4() && remote.Is4() {
		source, destination := local.As4(), remote.As4()
		i, _ := p.ipv4.Add(ipv4Key{binary.BigEndian.Uint32(source[:]), binary.BigEndian.Uint32(destination[:]), uint32(s.Remote.Port())})
		return int32(i)
	}
	key := poolKey{source: local.As16(), destination: remote.As16(), port: uint32(s.Remote.Port())}
	if isLinkLocal(local) || isLinkLocal(remote) {
		key.zone = s.Interface
	}
	i, _ := p.ipv6.Add(key)
	return ^int32(i)
}

// compare orders pools by their source and destination, as the addresses are ordered.
func (p *pools) compare(a, b int32) int {
	if a >= 0 && b >= 0 {
		x, y := p.ipv4.At(int(a)).Key, p.ipv4.At(int(b)).Key
		return slices.Compare(x[:], y[:])
	}
	x, y := p.key(a), p.key(b)
	return cmp.Or(x.sourceAddr().Compare(y.sourceAddr()), x.destinationAddr().Compare(y.destinationAddr()))
}

// isLoopback reports whether one end of a pool is a loopback address.
func (p *pools) isLoopback(n int32) bool {
	if n >= 0 {
		key := p.ipv4.At(int(n)).Key
		return key[0]>>24 == 127 || key[1]>>24 == 127
	}
	key := p.key(n)
	return key.sourceAddr().IsLoopback() || key.destinationAddr().Addr().IsLoopback()
}

package pool

import "net/netip"

// blockedPorts are the ports of the range that listeners block, and the sources for which
// bind(source, 0) cannot choose them either. A lookup costs the same whatever the number of
// listeners: any user of the host can open thousands on one port.
type blockedPorts struct {
	ports     map[uint16]wildcards
	addresses map[addressPort]struct{} // of listeners on one address
}

// wildcards tells which wildcard listeners a port has.
type wildcards struct {
	ipv4, ipv6 bool
}

// An addressPort is the address of a listener.
type addressPort struct {
	address [16]byte // IPv6 or IPv4-mapped
	port    uint16
}

func newBlockedPorts() blockedPorts {
	return blockedPorts{ports: map[uint16]wildcards{}, addresses: map[addressPort]struct{}{}}
}

// add adds the port of a listener.
func (b *blockedPorts) add(l Listener) {
	port := l.Local.Port()
	w := b.ports[port]
	switch at := l.Local.Addr(); at {
	case netip.IPv4Unspecified():
		w.ipv4 = true
	case netip.IPv6Unspecified():
		w.ipv6 = true
		w.ipv4 = w.ipv4 || !l.V6Only
	default:
		b.addresses[addressPort{at.As16(), port}] = struct{}{}
	}
	b.ports[port] = w
}

// has reports whether a listener blocks the port for connect().
func (b *blockedPorts) has(port uint16) bool {
	_, ok := b.ports[port]
	return ok
}

// deny reports whether a listener denies the port to bind(source, 0).
func (b *blockedPorts) deny(source netip.Addr, port uint16) bool {
	if b.ports[port].deny(source) {
		return true
	}
	_, ok := b.addresses[addressPort{source.As16(), port}]
	return ok
}

// deny reports whether a wildcard listener denies its port to bind(source, 0).
func (w wildcards) deny(source netip.Addr) bool {
	if source.Is4() {
		return w.ipv4
	}
	return w.ipv6
}

// denied returns, for each source address, how many ports deny would deny. It visits each
// listener's address once, not once for each source.
func (b *blockedPorts) denied() func(source netip.Addr) int {
	var ipv4, ipv6 int
	for _, w := range b.ports {
		if w.ipv4 {
			ipv4++
		}
		if w.ipv6 {
			ipv6++
		}
	}
	byAddress := map[[16]byte]int{}
	for a := range b.addresses {
		if !b.ports[a.port].deny(netip.AddrFrom16(a.address).Unmap()) {
			byAddress[a.address]++
		}
	}
	return func(source netip.Addr) int {
		if source.Is4() {
			return ipv4 + byAddress[source.As16()]
		}
		return ipv6 + byAddress[source.As16()]
	}
}

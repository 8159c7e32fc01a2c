package snat

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"ephemeral_port_exporter/collector/internal/portset"
)

// A Table counts the flows of one network namespace by the pool of source NAT that they hold a
// port of. Its memory grows with the number of pools, by 2 bytes for each flow of source NAT, and by 20 or 44 for
// each flow of an own socket, of IPv4 or IPv6.
type Table struct {
	settings Settings
	ports    portset.Map // of the settings
	ipv4     pools[ipv4Key]
	ipv6     pools[poolKey]
	clients  portset.Index[[16]byte, struct{}] // IPv6 or IPv4-mapped
	lists    portset.Lists
	flows    int
	outside  int         // of flows, those outside the ports
	cilium   ciliumPorts // of the flows of Cilium

	// twins is set if several pools can have the same labels: there are flows of several zones, or of Cilium and of the kernel.
	twins bool
	kind  twinKind // of the first flow
}

// A twinKind is what pools with the same labels differ in.
type twinKind struct {
	zone   uint16
	cilium bool
}

// pools are those of some keys, and the flows of own sockets that may be in them.
type pools[K comparable] struct {
	counts portset.Index[K, poolCounts]
	own    portset.Blocks[ownFlow[K]] // not counted yet
}

// A poolKey identifies a pool: the ports of a translated address for one destination. It has no
// pointers and no padding, because the table is searched for it for each flow.
type poolKey struct {
	translated, destination [16]byte // IPv6 or IPv4-mapped
	port, zone              uint16
	kind                    uint32 // udpKind and ciliumKind, or not
}

// The kinds of pools.
const (
	udpKind    = 1
	ciliumKind = 2
)

// An ipv4Key is the poolKey of a pool of IPv4: the translated address, the destination, its port and the zone, and the kind.
type ipv4Key [4]uint32

// poolCounts are the flows of one pool.
type poolCounts struct {
	states          [numStates]uint32
	outside         uint32
	kept            uint32                 // of those inside, on the port that the client or the own socket had
	fixed, reusable portset.List           // their ports
	clients         portset.Counts[uint32] // by number
}

// An ownFlow is a flow of an own socket. It counts if source NAT has the pool too: own sockets alone get their
// ports by connect(), and they can have any number of destinations.
type ownFlow[K comparable] struct {
	key   K
	port  uint16
	state State
}

// NewTable returns an empty Table.
func NewTable(s Settings) *Table {
	t := new(Table)
	t.Reset(s)
	return t
}

// Reset makes the Table one that NewTable returns. It keeps memory for as many pools and flows as it had.
func (t *Table) Reset(s Settings) {
	*t = Table{settings: s, ipv4: t.ipv4, ipv6: t.ipv6, clients: t.clients, lists: t.lists}
	for _, kept := range t.kept() {
		kept.Clear()
	}
	t.ports.AddRanges(s.PortRanges)
}

// Release empties the Table, and gives back memory that was not needed since the last calls.
func (t *Table) Release() {
	t.Reset(Settings{})
	for _, kept := range t.kept() {
		kept.Trim()
	}
}

// kept returns the parts of a Table that keep their memory.
func (t *Table) kept() [6]portset.Kept {
	return [...]portset.Kept{&t.ipv4.counts, &t.ipv4.own, &t.ipv6.counts, &t.ipv6.own, &t.clients, &t.lists}
}

// Add counts a flow. The caller may reuse f afterwards.
func (t *Table) Add(f *Flow) {
	kind := twinKind{f.Zone, f.Cilium}
	if t.flows == 0 {
		t.kind = kind
	}
	t.twins = t.twins || kind != t.kind
	t.flows++
	port := f.Translated.Port()
	inside := t.ports.Has(port)
	if f.Cilium {
		inside = t.settings.Cilium.Ports.Contains(port)
		t.cilium.add(port, f.ClientPort)
	}
	if !inside && (!f.SNAT || f.Expected || port < lowPorts && f.ClientPort < lowPorts) {
		return
	}
	if key, ok := newIPv4Key(f); ok {
		add(t, &t.ipv4, key, f, inside)
	} else {
		add(t, &t.ipv6, newPoolKey(f), f, inside)
	}
}

// add counts a flow in its pool. inside says that its port is one of those of the settings.
func add[K comparable](t *Table, p *pools[K], key K, f *Flow, inside bool) {
	port := f.Translated.Port()
	if !f.SNAT {
		p.own.Add(ownFlow[K]{key, port, f.State})
		return
	}
	i, _ := p.counts.Add(key)
	c := &p.counts.At(i).Value
	c.clients.Add(t.clientNumber(f.Client))
	if !inside {
		t.outside++
		c.outside++
		return
	}
	c.states[f.State]++
	if port == f.ClientPort {
		c.kept++
	}
	list := &c.fixed
	if t.settings.TakesOver && f.State.TakenOver() && !f.Cilium {
		list = &c.reusable
	}
	t.lists.Add(list, port)
}

// lowPorts is the port from which on clients without a range in their rule get one of the default range. Those
// with a lower port get a lower one.
const lowPorts = 1024

// addOwn counts the flows of own sockets in the pools of source NAT.
func (t *Table) addOwn() {
	addOwn(t, &t.ipv4, func(k ipv4Key) poolKey { return k.poolKey() })
	addOwn(t, &t.ipv6, func(k poolKey) poolKey { return k })
}

func addOwn[K comparable](t *Table, p *pools[K], long func(K) poolKey) {
	for i := range p.own.Len() {
		f := p.own.At(i)
		if pool, ok := p.counts.Find(f.key); ok {
			c := &p.counts.At(pool).Value
			c.states[f.state]++
			c.kept++
			c.clients.Add(t.clientNumber(long(f.key).source()))
			t.lists.Add(&c.fixed, f.port)
		}
	}
	p.own.Clear()
}

// clientNumber returns the number of a client, from 1 on. It is 0 for none.
func (t *Table) clientNumber(client netip.Addr) uint32 {
	if !client.IsValid() {
		return 0
	}
	i, _ := t.clients.Add(client.As16())
	return uint32(i + 1)
}

// client returns the client with a number.
func (t *Table) client(number uint32) netip.Addr {
	return netip.AddrFrom16(t.clients.At(int(number) - 1).Key).Unmap()
}

// all returns the pools, by number: those of IPv4 come first.
func (t *Table) all() iter.Seq2[int, *poolCounts] {
	return func(yield func(int, *poolCounts) bool) {
		for n := range t.len() {
			if !yield(n, t.at(n)) {
				return
			}
		}
	}
}

// len returns the number of pools.
func (t *Table) len() int { return t.ipv4.counts.Len() + t.ipv6.counts.Len() }

// at returns the counts of a pool.
func (t *Table) at(n int) *poolCounts {
	if first := t.ipv4.counts.Len(); n >= first {
		return &t.ipv6.counts.At(n - first).Value
	}
	return &t.ipv4.counts.At(n).Value
}

// key returns the key of a pool.
func (t *Table) key(n int) poolKey {
	if first := t.ipv4.counts.Len(); n >= first {
		return t.ipv6.counts.At(n - first).Key
	}
	return t.ipv4.counts.At(n).Key.poolKey()
}

// newPoolKey returns the key of a flow's pool.
func newPoolKey(f *Flow) poolKey {
	return poolKey{
		translated: f.Translated.Addr().As16(), destination: f.Destination.Addr().As16(),
		port: f.Destination.Port(), zone: f.Zone, kind: kindOf(f),
	}
}

// newIPv4Key returns the key of a flow's pool, if it is one of IPv4.
func newIPv4Key(f *Flow) (key ipv4Key, ok bool) {
	translated, destination := f.Translated.Addr(), f.Destination.Addr()
	if !translated.Is4() || !destination.Is4() {
		return ipv4Key{}, false
	}
	from, to := translated.As4(), destination.As4()
	return ipv4Key{
		binary.BigEndian.Uint32(from[:]), binary.BigEndian.Uint32(to[:]), uint32(f.Destination.Port())<<16 | uint32(f.Zone), kindOf(f),
	}, true
}

// kindOf returns the kind of a flow's pool.
func kindOf(f *Flow) (kind uint32) {
	if f.Protocol == UDP {
		kind |= udpKind
	}
	if f.Cilium {
		kind |= ciliumKind
	}
	return kind
}

// poolKey returns the key as others have it.
func (k ipv4Key) poolKey() poolKey {
	var from, to [4]byte
	binary.BigEndian.PutUint32(from[:], k[0])
	binary.BigEndian.PutUint32(to[:], k[1])
	return poolKey{
		translated: netip.AddrFrom4(from).As16(), destination: netip.AddrFrom4(to).As16(), port: uint16(k[2] >> 16), zone: uint16(k[2]), kind: k[3],
	}
}

// source returns the translated address.
func (k poolKey) source() netip.Addr { return netip.AddrFrom16(k.translated).Unmap() }

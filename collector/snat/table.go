package snat

import (
	"net/netip"

	"ephemeral_port_exporter/collector/internal/portset"
)

// A Table counts the flows of one network namespace by the pool of source NAT that they hold a
// port of. Its memory grows with the number of pools, by 2 bytes for each flow of source NAT, and by 48 for
// each flow of an own socket.
type Table struct {
	settings Settings
	ports    portset.Map       // of the settings
	pools    map[poolKey]int32 // index into counts
	counts   portset.Blocks[poolCounts]
	own      portset.Blocks[ownFlow] // not counted yet
	lists    portset.Lists
	flows    int
	outside  int // of flows, those outside the ports
}

// A poolKey identifies a pool: the ports of a translated address for one destination. It has no
// pointers and no padding, because a map is searched for it for each flow.
type poolKey struct {
	translated, destination [16]byte // IPv6 or IPv4-mapped
	port, zone              uint16
	udp                     uint32 // 0 or 1
}

// poolCounts are the flows of one pool.
type poolCounts struct {
	states          [numStates]uint32
	outside         uint32
	kept            uint32       // of those inside, on the port that the client or the own socket had
	fixed, reusable portset.List // their ports
	clients         portset.Counts[netip.Addr]
}

// An ownFlow is a flow of an own socket. It counts if source NAT has the pool too: own sockets alone get their
// ports by connect(), and they can have any number of destinations.
type ownFlow struct {
	key   poolKey
	port  uint16
	state State
}

// NewTable returns an empty Table.
func NewTable(s Settings) *Table {
	t := &Table{settings: s, pools: make(map[poolKey]int32)}
	t.ports.AddRanges(s.PortRanges)
	return t
}

// Add counts a flow. The caller may reuse f afterwards.
func (t *Table) Add(f *Flow) {
	t.flows++
	port := f.Translated.Port()
	inside := t.ports.Has(port)
	if !inside && (!f.SNAT || f.Expected || port < lowPorts && f.ClientPort < lowPorts) {
		return
	}
	key := newPoolKey(f)
	if !f.SNAT {
		t.own.Add(ownFlow{key, port, f.State})
		return
	}
	i, ok := t.pools[key]
	if !ok {
		i = int32(t.counts.Len())
		t.pools[key] = i
		t.counts.Add(poolCounts{})
	}
	c := t.counts.At(int(i))
	c.clients.Add(f.Client)
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
	if t.settings.TakesOver && f.State.TakenOver() {
		list = &c.reusable
	}
	t.lists.Add(list, port)
}

// lowPorts is the port from which on clients without a range in their rule get one of the default range. Those
// with a lower port get a lower one.
const lowPorts = 1024

// addOwn counts the flows of own sockets in the pools of source NAT.
func (t *Table) addOwn() {
	for i := range t.own.Len() {
		f := t.own.At(i)
		if pool, ok := t.pools[f.key]; ok {
			c := t.counts.At(int(pool))
			c.states[f.state]++
			c.kept++
			c.clients.Add(f.key.source())
			t.lists.Add(&c.fixed, f.port)
		}
	}
	t.own = portset.Blocks[ownFlow]{}
}

// newPoolKey returns the key of a flow's pool.
func newPoolKey(f *Flow) poolKey {
	key := poolKey{
		translated: f.Translated.Addr().As16(), destination: f.Destination.Addr().As16(),
		port: f.Destination.Port(), zone: f.Zone,
	}
	if f.Protocol == UDP {
		key.udp = 1
	}
	return key
}

// source returns the translated address.
func (k poolKey) source() netip.Addr { return netip.AddrFrom16(k.translated).Unmap() }

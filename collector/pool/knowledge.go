package pool

import (
	"encoding/binary"
	"net/netip"

	"ephemeral_port_exporter/collector/internal/portset"
)

// Knowledge is what a Table has learned about its namespace for the next one: whether clients bind
// before they connect, and whether peers use timestamps. Nothing of it is a number to report. The
// zero value is to know nothing.
type Knowledge struct {
	portRange     PortRange // what follows is about the order of its ports
	sources       map[sourceKey]*knownSource
	forgot        bool                    // not all sources are in there
	few           clients                 // of all sources together that do not tell by themselves
	held          *portset.Set            // ports that were held, on any source; nil if there is nothing to compare with
	marked        portset.Set             // of held, all that were not known to be those of plain connect()
	connectChoice bool                    // connect() had a choice to a destination for which few ports were held
	peers         map[netip.AddrPort]peer // by destination, see Question
	scans         uint32                  // how many there were
	use           timestampsUse
	earlier       map[poolKey]earlierPorts // of all pools, reported or not: their number only falls
}

// A knownSource is what is known of the clients with one source address.
type knownSource struct {
	ports      *portset.Set         // that were held
	bindChoice [2]bool              // bind() had a choice, in each half of the range
	bindFull   [2]bool              // nearly all ports of bind parity were held, in each half of the range
	bindFree   bool                 // bind() had a choice
	pools      map[poolKey]*clients // pools that were judged together share one
	complete   bool                 // no pool was forgotten
	plain      bool                 // nobody binds: there was no port of bind parity, and nobody did before
	binds      bool                 // some of the clients may bind first
	few        bool                 // it did not tell by itself, see Knowledge.tells
	others     clients              // of all pools together that are not in pools: most hold few ports
}

// clientsOf returns what is known of the clients of a pool.
func (k *Knowledge) clientsOf(pool poolKey) *clients {
	source := k.sources[pool.sourceKey()]
	if source == nil || source.few {
		return &k.few
	}
	if known, ok := source.pools[pool]; ok {
		return known
	}
	return &source.others
}

// recallOf sets what earlier Tables learned of the clients of a pool.
func (t *Table) recallOf(n int32, c *poolCounts) {
	key := t.pools.key(n)
	c.known, c.before = t.before.clientsOf(key), t.before.earlier[key]
}

// peerAnswers are the answers of Knowledge.peers.
type peerAnswers struct {
	ipv4 map[uint64]answers // by address and port
	ipv6 map[netip.AddrPort]answers
}

// newPeerAnswers returns the answers of peers.
func newPeerAnswers(peers map[netip.AddrPort]peer) peerAnswers {
	p := peerAnswers{map[uint64]answers{}, map[netip.AddrPort]answers{}}
	for destination, peer := range peers {
		if address := destination.Addr(); address.Is4() {
			b := address.As4()
			p.ipv4[uint64(binary.BigEndian.Uint32(b[:]))<<16|uint64(destination.Port())] = peer.answers
		} else {
			p.ipv6[destination] = peer.answers
		}
	}
	return p
}

// of returns the answers of the peer of a pool.
func (p *peerAnswers) of(all *pools, n int32) answers {
	switch {
	case n < 0 && len(p.ipv6) > 0:
		return p.ipv6[all.key(n).destinationAddr()]
	case n >= 0 && len(p.ipv4) > 0:
		key := all.ipv4.At(int(n)).Key
		return p.ipv4[uint64(key[1])<<16|uint64(key[2])]
	}
	return answers{}
}

// tells reports whether a source with so many ports tells by itself how its clients choose them. Else it is
// judged together with all others that do not.
func (k Knowledge) tells(key sourceKey, ports int) bool {
	known := k.sources[key]
	return known != nil && !known.few && known.binds || ports >= minOwn && (known != nil || !k.forgot)
}

// forgetChoices has nothing count as chosen before now, in a range with this low end.
func (k *Knowledge) forgetChoices(low uint16) {
	swapped := low%2 != k.portRange.Low%2
	k.connectChoice = false
	k.few.forgetChoices(swapped)
	for _, source := range k.sources {
		source.bindChoice, source.bindFull = [2]bool{}, [2]bool{}
		source.others.forgetChoices(swapped)
		for _, known := range source.pools {
			known.forgetChoices(swapped)
		}
	}
}

// Keep forgets the sources and pools that a report does not contain, so that what is remembered is
// bounded like what is reported.
func (k *Knowledge) Keep(r *Report) {
	type pool struct {
		source      netip.Addr
		destination netip.AddrPort
	}
	sources := map[netip.Addr]bool{}
	for _, s := range r.Sources {
		sources[s.Address] = true
	}
	pools := map[pool]bool{}
	destinations := map[netip.AddrPort]bool{}
	for _, d := range r.Destinations {
		pools[pool{d.Source, d.Address}] = true
		destinations[d.Address] = true
	}
	for destination := range k.peers {
		if !destinations[destination] {
			delete(k.peers, destination)
		}
	}
	k.few.take(func(yield func(*clients) bool) {
		for key, known := range k.sources {
			if sources[keyAddr(key.address, key.zone)] {
				continue
			}
			for _, c := range known.pools {
				yield(c)
			}
			known.others.connects = false // that can be to know of none
			yield(&known.others)
			delete(k.sources, key)
			k.forgot = true
		}
	})
	for _, known := range k.sources {
		known.others.take(func(yield func(*clients) bool) {
			for key, c := range known.pools {
				if !pools[pool{key.sourceAddr(), key.destinationAddr()}] {
					delete(known.pools, key)
					known.complete = false
					yield(c) // it is one of them from now on
				}
			}
		})
	}
}

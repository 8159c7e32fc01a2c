package advice

import (
	"fmt"
	"slices"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/pool"
)

// UDP returns advice about a pool of the report. It returns nil if the pool is calm, see ReachedUDP.
func UDP(r *pool.UDPReport, p *pool.UDPPool) *Advice {
	if ReachedUDP(p).Level() == Calm {
		return nil
	}
	u := newUDPPool(r, p)
	a := &Advice{Diagnosis: fmt.Sprintf("UDP sockets hold %d of %d ports, for all destinations together.", p.Ports, r.CapacityPorts)}
	a.Cures = helpful(u.giveBackReserved(), u.closeSockets(), u.widen())
	return a
}

// A udpPool is a pool of UDP ports that needs advice.
type udpPool struct {
	report  *pool.UDPReport
	pool    *pool.UDPPool
	now     Outlook
	held    portset.Map
	servers portset.Map // ports of sockets without a peer
}

func newUDPPool(r *pool.UDPReport, p *pool.UDPPool) *udpPool {
	u := &udpPool{report: r, pool: p, now: Outlook{Ports: r.CapacityPorts - p.Ports}}
	for _, port := range p.HeldPorts {
		u.held.Add(port)
	}
	for _, port := range r.ServerPorts {
		u.servers.Add(port)
	}
	return u
}

// closeSockets has the owner of many ports close its sockets.
func (u *udpPool) closeSockets() Cure {
	owners := u.pool.Owners
	if len(owners) == 0 || mainShare*owners[0].Ports < u.pool.Ports {
		return Cure{}
	}
	n := owners[0].Ports
	return Cure{
		Title:    "Close UDP sockets",
		Sentence: fmt.Sprintf("One control group holds %d of the ports. Restart it to free them, and let it use one socket for many destinations.", n), N: n,
		Now: u.now, Then: Outlook{Ports: u.now.Ports + n},
		Condition: "Its sockets are leaked, or can be fewer.",
	}
}

func (u *udpPool) widen() Cure {
	r := u.report
	// A port is also reserved for the family that does not conflict with the server.
	w, ok := newWidening(r.Settings, servers{r.ListenerPorts, r.ServerPorts, r.ListenersKnown})
	if !ok {
		return Cure{}
	}
	return Cure{
		Title:    "Widen the range",
		Sentence: w.sentence("Sockets without a port can then get those of"),
		Now:      u.now, Then: Outlook{Ports: w.usable.Size() - w.usable.Common(&u.held)},
		Command: w.command, Undo: w.undo, Condition: w.condition(),
	}
}

// giveBackReserved is about the reserved ports that no socket holds.
func (u *udpPool) giveBackReserved() Cure {
	c := giveBack(u.report.Settings, func(port uint16) bool {
		_, listens := slices.BinarySearch(u.report.ListenerPorts, port)
		return listens || u.held.Has(port) || u.servers.Has(port)
	})
	c.Now, c.Then = u.now, Outlook{Ports: u.now.Ports + c.N}
	return c
}

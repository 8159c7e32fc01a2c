package advice

import (
	"fmt"

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
	a.Cures = helpful(u.closeSockets(), u.widen(), u.giveBackReserved())
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
	// A port is also reserved for the family that does not conflict with the server.
	w, ok := newWidening(u.report.Settings, u.report.ServerPorts)
	if !ok {
		return Cure{}
	}
	c := Cure{
		Title:    "Widen the range",
		Sentence: fmt.Sprintf("Sockets without a port can then get those of %d-%d.", w.ports.Low, w.ports.High),
		Now:      u.now, Then: Outlook{Ports: w.usable.Size() - w.usable.Common(&u.held)},
		Command:   w.command,
		Condition: "Reserve all ports in there on which a program listens or may listen later, over TCP or UDP.",
	}
	if len(w.first) > 0 {
		c.Sentence += " On these, UDP sockets wait for packets, so reserve them first: " + someOf(w.first) + "."
	}
	return c
}

// giveBackReserved gives back the reserved ports that no socket holds.
func (u *udpPool) giveBackReserved() Cure {
	n, command := giveBack(u.report.Settings, func(port uint16) bool { return u.held.Has(port) || u.servers.Has(port) })
	return Cure{
		Title:    "Give back reserved ports",
		Sentence: fmt.Sprintf("%d ports of the range are reserved, and no UDP socket holds them.", n), N: n,
		Now: u.now, Then: Outlook{Ports: u.now.Ports + n},
		Command:   command,
		Condition: "No program needs them, also not over TCP.",
	}
}

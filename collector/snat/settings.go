package snat

import (
	"math"
	"time"

	"ephemeral_port_exporter/collector/internal/portset"
)

// Settings are what the ports of source NAT depend on.
type Settings struct {
	// PortRanges are the ports that NAT chooses from: those of its rules. No two of them overlap. A rule
	// has one range, so each search is in one of them. Without one in the rule, it is
	// 1024-65535 for clients whose own port is 1024 or above. Clients with a lower port get a lower
	// one, from a pool that is not counted (nf_nat_l4proto_unique_tuple of net/netfilter/nf_nat_core.c).
	PortRanges []portset.Range

	// Cilium is how Cilium's datapath chooses ports. It is zero where its flows are not read.
	Cilium Cilium

	// Drops says that source NAT dropped packets lately, for want of a port or by a race.
	Drops bool

	// TakesOver says that a new TCP connection may get the port of a flow in TIME_WAIT, CLOSE or
	// SYN_SENT2: since Linux 6.5, nf_nat_used_tuple_harder. Where that is not known, it is false: ports
	// then seem to be held that are not.
	TakesOver bool

	// After these times without a packet, a port is free again: that of a closed TCP connection, and
	// that of an exchange over UDP. They are 0 if not known.
	TCPTimeWait time.Duration // nf_conntrack_tcp_timeout_time_wait
	UDP         time.Duration // nf_conntrack_udp_timeout
}

// Ports returns the number of ports that the kernel's NAT chooses from.
func (s Settings) Ports() int {
	n := 0
	for _, r := range s.PortRanges {
		n += r.Size()
	}
	return n
}

// Ceiling returns how many flows per second get one of some ports that are not in use for longer.
func (s Settings) Ceiling(p Protocol, ports int) float64 {
	hold := s.TCPTimeWait
	if p == UDP {
		hold = s.UDP
	}
	switch {
	case ports <= 0:
		return 0
	case p == TCP && s.TakesOver:
		return math.Inf(1)
	case hold == 0:
		return math.NaN()
	default:
		return float64(ports) / hold.Seconds()
	}
}

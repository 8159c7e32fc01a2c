package collector

import (
	"time"

	"ephemeral_port_exporter/procfs"
)

// Settings are the sysctls of one network namespace that decide about its ports,
// see ip-sysctl.rst. Those of TCP hold for IPv6 too.
type Settings struct {
	PortRange     procfs.PortRange   // ip_local_port_range
	ReservedPorts []procfs.PortRange // ip_local_reserved_ports, also outside of PortRange

	TWReuse        int           // tcp_tw_reuse: 0 never, 1 always, 2 on loopback
	TWReuseDelay   time.Duration // tcp_tw_reuse_delay; 0 where the kernel, before 6.14, has none
	Timestamps     int           // tcp_timestamps: 0 off
	FinTimeout     time.Duration // tcp_fin_timeout
	TimeWaitLimit  int           // tcp_max_tw_buckets, in sockets
	TimeWaitLength time.Duration // TCP_TIMEWAIT_LEN, compiled in, told by a flag
}

// readSettings reads all but TimeWaitLength.
func readSettings(ns *procfs.Namespace) (Settings, error) {
	var (
		s   Settings
		err error
	)
	if s.PortRange, err = ns.IPLocalPortRange(); err != nil {
		return Settings{}, err
	}
	if s.ReservedPorts, err = ns.IPLocalReservedPorts(); err != nil {
		return Settings{}, err
	}
	if s.TWReuse, err = ns.TCPTWReuse(); err != nil {
		return Settings{}, err
	}
	if s.TWReuseDelay, _, err = ns.TCPTWReuseDelay(); err != nil {
		return Settings{}, err
	}
	if s.Timestamps, err = ns.TCPTimestamps(); err != nil {
		return Settings{}, err
	}
	if s.FinTimeout, err = ns.TCPFinTimeout(); err != nil {
		return Settings{}, err
	}
	if s.TimeWaitLimit, err = ns.TCPMaxTWBuckets(); err != nil {
		return Settings{}, err
	}
	return s, nil
}

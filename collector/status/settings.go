package status

import (
	"fmt"
	"strconv"

	"ephemeral_port_exporter/collector/scan"
)

// A setting is a sysctl or what follows from it.
type setting struct{ Name, Value, Meaning string }

// AboutSettings says where they are compared.
func (p *page) AboutSettings() finding {
	return aside("They can differ between hosts.", "EphemeralPortsSettingsDiffer")
}

// settingsOf returns the settings of our own namespace.
func settingsOf(n *scan.Namespace) []setting {
	if n.TCP.Err != nil {
		return nil
	}
	r, s := &n.TCP.Report, &n.TCP.Report.Settings
	var settings []setting
	add := func(name, value, meaning string) { settings = append(settings, setting{name, value, meaning}) }
	add("ip_local_port_range", fmt.Sprintf("%d %d", s.PortRange.Low, s.PortRange.High), plural(s.PortRange.Size(), "port", "ports"))
	add("ip_local_reserved_ports", strconv.Itoa(r.ReservedPorts), "of them withheld")
	add("listeners", strconv.Itoa(r.BlockedPorts), "further ports withheld, whatever the address")
	add("capacity", strconv.Itoa(r.CapacityPorts), "ports for each pool")
	if r.BoundKnown {
		bound := "of them lost to connect(), because bind() took them"
		if r.BoundUnknown > 0 {
			bound += fmt.Sprintf("; up to %d more may be", r.BoundUnknown)
		}
		add("bound ports", strconv.Itoa(r.BoundPorts), bound)
	}
	reuse := map[int]string{0: "ports in TIME_WAIT are never reused", 1: "ports in TIME_WAIT are reused", 2: "ports in TIME_WAIT are reused on loopback only"}[s.TWReuse]
	add("tcp_tw_reuse", strconv.Itoa(s.TWReuse), reuse)
	if s.TWReuseDelay > 0 {
		add("tcp_tw_reuse_delay", strconv.FormatInt(s.TWReuseDelay.Milliseconds(), 10), "ms before that")
	} else if s.TWReuse != 0 {
		add("tcp_tw_reuse_delay", "-", "this kernel has none: ports are reused from the next second on")
	}
	timestamps := "on"
	if s.Timestamps == 0 {
		timestamps = "off: ports in TIME_WAIT are never reused"
	}
	add("tcp_timestamps", strconv.Itoa(s.Timestamps), timestamps)
	add("tcp_fin_timeout", strconv.FormatFloat(s.FinTimeout.Seconds(), 'g', -1, 64), "s in FIN_WAIT2; it does not shorten TIME_WAIT")
	if n.TimeWait.Outcome == scan.Collected {
		add("TIME_WAIT", strconv.Itoa(n.TimeWait.Sockets), fmt.Sprintf("sockets, at most %d (tcp_max_tw_buckets)", n.TimeWait.Limit))
	}
	return settings
}

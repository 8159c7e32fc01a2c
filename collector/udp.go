package collector

import (
	"github.com/prometheus/client_golang/prometheus"

	"ephemeral_port_exporter/collector/scan"
)

// udpDescs are the descriptions of the metrics of UDP.
type udpDescs struct {
	sockets, capacityPorts, ports, utilization, ownerPorts, collectSuccess *prometheus.Desc
}

func newUDPDescs() udpDescs {
	family := []string{"netns", "family"}
	return udpDescs{
		sockets: prometheus.NewDesc("ephemeral_port_udp_sockets",
			"UDP sockets that have a port, in the range or not.",
			[]string{"netns"}, nil),
		capacityPorts: prometheus.NewDesc("ephemeral_port_udp_capacity_ports",
			"Ports that the kernel can choose for UDP sockets, for all destinations together: the range without reserved ports. Absent like ephemeral_port_udp_ports.",
			[]string{"netns"}, nil),
		ports: prometheus.NewDesc("ephemeral_port_udp_ports",
			"Ports of the capacity that a new UDP socket cannot get, by its family: ipv4, ipv6 (IPV6_V6ONLY), or dual_stack, the default of IPv6 sockets. A socket that uses both families counts in all of them. Absent while there are fewer UDP sockets than 1% of the capacity.",
			family, nil),
		utilization: prometheus.NewDesc("ephemeral_port_udp_utilization_ratio",
			"Those ports, divided by the capacity. 1 means that connect() and sendto() of a new UDP socket fail with EAGAIN, and bind() without an address and port 0 with EADDRINUSE. Absent like ephemeral_port_udp_ports.",
			family, nil),
		ownerPorts: prometheus.NewDesc("ephemeral_port_udp_owner_ports",
			"Those ports by the control group of the process that opened the socket: the three that hold most. Absent without cgroup2, see --path.cgroup.",
			[]string{"netns", "family", "cgroup", "pod_uid", "container_id"}, nil),
		collectSuccess: prometheus.NewDesc("ephemeral_port_udp_collect_success",
			"1 if this scrape could read the UDP sockets of the network namespace, or found too few to read. If it is 0, the metrics of UDP are absent. It is absent itself if the kernel cannot list UDP sockets.",
			[]string{"netns"}, nil),
	}
}

// describe sends all descriptions.
func (d *udpDescs) describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{d.sockets, d.capacityPorts, d.ports, d.utilization, d.ownerPorts, d.collectSuccess} {
		ch <- desc
	}
}

// send sends the metrics of UDP of a namespace, as far as it was read.
func (d *udpDescs) send(ch chan<- prometheus.Metric, n scan.Namespace, s scan.Snapshot) {
	u := n.UDP
	if n.Name == "" || u.Outcome == "" {
		return
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append([]string{n.Name}, labels...)...)
	}
	switch {
	case u.Outcome == scan.Unsupported:
		gauge(d.sockets, float64(u.Sockets))
		return
	case u.Err != nil:
		gauge(d.collectSuccess, 0)
		return
	}
	gauge(d.collectSuccess, 1)
	gauge(d.sockets, float64(u.Sockets))
	if u.Outcome == scan.Idle {
		return
	}
	gauge(d.capacityPorts, float64(u.Report.CapacityPorts))
	for _, p := range u.Report.Pools {
		family := string(p.Family)
		gauge(d.ports, float64(p.Ports), family)
		gauge(d.utilization, p.Utilization, family)
		for _, o := range s.Resolve(p.Owners) {
			gauge(d.ownerPorts, float64(o.Ports), family, o.Path, o.PodUID, o.ContainerID)
		}
	}
}

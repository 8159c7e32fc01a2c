//go:build linux

package procfs

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// Sizes of buffers, in bytes.
const (
	maxNumbers    = 64        // no file with one or two numbers is that long
	usualPortList = 2 << 10   // most lists of ports are shorter; a longer one is read again
	maxPortList   = 256 << 10 // no list of ports is that long: every second port makes 187 KiB
)

// A PortRange is the ports from Low to High, both included.
type PortRange struct {
	Low, High uint16
}

// IPLocalPortRange returns the range from which the kernel chooses ports, for IPv4 and IPv6: sysctl
// net.ipv4.ip_local_port_range.
func (ns *Namespace) IPLocalPortRange() (PortRange, error) {
	const file = "ip_local_port_range"
	content, err := ns.ipv4.read(file, maxNumbers)
	if err != nil {
		return PortRange{}, err
	}
	r, ok := parseLocalPortRange(content)
	if !ok {
		return PortRange{}, malformed(ns.ipv4.pathOf(file), content)
	}
	return r, nil
}

// IPLocalReservedPorts returns the ports that the kernel never chooses: sysctl
// net.ipv4.ip_local_reserved_ports. They are in ascending order, inside and outside of the local
// port range. There are none on most hosts.
func (ns *Namespace) IPLocalReservedPorts() ([]PortRange, error) {
	const file = "ip_local_reserved_ports"
	content, err := ns.ipv4.read(file, usualPortList)
	if errors.Is(err, errTooLong) {
		content, err = ns.ipv4.read(file, maxPortList)
	}
	if err != nil {
		return nil, err
	}
	ranges, ok := parseReservedPorts(content)
	if !ok {
		return nil, malformed(ns.ipv4.pathOf(file), content)
	}
	return ranges, nil
}

// IPAutobindReuse returns whether bind() to port 0 takes ports whose sockets all have SO_REUSEADDR, like itself, where no
// other is free: sysctl net.ipv4.ip_autobind_reuse. Kernels before 5.7 do not have it, and never do.
func (ns *Namespace) IPAutobindReuse() (bool, error) {
	n, err := ns.readInt("ip_autobind_reuse")
	if isNotExist(err) {
		return false, nil
	}
	return n != 0, err
}

// IPUnprivilegedPortStart returns the first port that needs no privilege: sysctl net.ipv4.ip_unprivileged_port_start. The
// kernel refuses a local port range that begins below it. It is 0 if the kernel does not have this sysctl (before 4.11).
func (ns *Namespace) IPUnprivilegedPortStart() (uint16, error) {
	const file = "ip_unprivileged_port_start"
	n, err := ns.readInt(file)
	if isNotExist(err) {
		return 0, nil
	}
	if err == nil && n != int(uint16(n)) {
		err = malformed(ns.ipv4.pathOf(file), strconv.Itoa(n))
	}
	return uint16(n), err
}

// HasIPVS reports whether IPVS is loaded, or its network interface of kube-proxy is there. It leads the packets for a port elsewhere without
// connection tracking, and without a socket on the port.
func (ns *Namespace) HasIPVS() bool {
	return slices.ContainsFunc([]string{"vs", "conf/kube-ipvs0"}, ns.ipv4.has)
}

// HasCilium reports whether a network interface of Cilium is there. It leads packets elsewhere as IPVS does.
func (ns *Namespace) HasCilium() bool { return ns.ipv4.has("conf/cilium_host") }

// parseLocalPortRange parses "32768	60999".
func parseLocalPortRange(content string) (PortRange, bool) {
	fields := strings.Fields(content)
	if len(fields) != 2 {
		return PortRange{}, false
	}
	return parsePortRange(fields[0], fields[1])
}

// parseReservedPorts parses "8080,9000-9010".
func parseReservedPorts(content string) ([]PortRange, bool) {
	content = strings.TrimSpace(content)
	if content == "" {
		return nil, true
	}
	var ranges []PortRange
	for item := range strings.SplitSeq(content, ",") {
		low, high, ok := strings.Cut(item, "-")
		if !ok {
			high = low
		}
		r, ok := parsePortRange(low, high)
		if !ok {
			return nil, false
		}
		ranges = append(ranges, r)
	}
	return ranges, true
}

func parsePortRange(low, high string) (PortRange, bool) {
	l, err := strconv.ParseUint(low, 10, 16)
	if err != nil {
		return PortRange{}, false
	}
	h, err := strconv.ParseUint(high, 10, 16)
	if err != nil || h < l {
		return PortRange{}, false
	}
	return PortRange{Low: uint16(l), High: uint16(h)}, true
}

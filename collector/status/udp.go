package status

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/history"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// A udpPool is the UDP ports that one kind of socket can get, as the page shows them.
type udpPool struct {
	pool      *pool.UDPPool
	namespace *scan.Namespace
	owners    []scan.Owner
	advice    *advice.Advice // nil unless it is in danger
	past      *past          // nil if nothing is remembered

	Level         level
	Family, Netns string
	Used          string
	Owners        []string
	Cures         []cure
}

// addUDP adds the UDP ports of our own namespace, and of another one if they are in danger.
func (p *page) addUDP(s *scan.Snapshot, n *scan.Namespace, c cleaner) {
	if p.View.Destination.IsValid() {
		return
	}
	if n.UDP.Outcome == scan.Unsupported && n.Name == scan.Self {
		p.Notes = append(p.Notes, "UDP ports: "+c.sentence(n.UDP.Err.Error()))
	}
	if n.UDP.Outcome != scan.Collected {
		return
	}
	r := &n.UDP.Report
	for i := range r.Pools {
		if u := &r.Pools[i]; n.Name == scan.Self || advice.ReachedUDP(u).Level() > calm {
			row := newUDPPool(s, n, u, c)
			row.past = p.pastOf(history.OfUDP(n, u), s, row.Level)
			p.UDP = append(p.UDP, row)
		}
	}
}

func newUDPPool(s *scan.Snapshot, n *scan.Namespace, u *pool.UDPPool, c cleaner) *udpPool {
	owners := s.Resolve(u.Owners)
	row := &udpPool{
		pool: u, namespace: n, owners: owners, advice: advice.UDP(&n.UDP.Report, u), Level: advice.ReachedUDP(u).Level(),
		Family: string(u.Family), Netns: c.name(n.Name), Used: percent(u.Utilization), Owners: ownerNames(owners, c),
	}
	row.Cures = newCures(n, row.advice, "Free ports")
	return row
}

// judgeUDP finds the namespaces with pools in danger, with the families that are as full as the worst.
func (p *page) judgeUDP() {
	for i, worst := range p.UDP {
		if worst.Level == calm || slices.ContainsFunc(p.UDP[:i], func(u *udpPool) bool { return u.namespace == worst.namespace && u.Level > calm }) {
			continue
		}
		var families []string
		for _, u := range p.UDP {
			if u.namespace == worst.namespace && u.Used == worst.Used {
				families = append(families, u.Family)
			}
		}
		of, where, alerts := strings.Join(families, ", "), p.in(worst.Netns), advice.ReachedUDP(worst.pool).Alerts()
		if worst.pool.Utilization >= 1 {
			p.find(worst.Level, alerts, "No UDP port of %s is free%s: connect() and sendto() of new sockets fail with EAGAIN, and bind() without an address with EADDRINUSE.", of, where)
		} else {
			p.find(worst.Level, alerts, "UDP sockets hold %s of the ports of %s%s: at 100%% connect() and sendto() of new ones fail with EAGAIN, and bind() without an address with EADDRINUSE.", worst.Used, of, where)
		}
	}
}

// judgeUDPFailures says which namespaces could not be read, of those whose TCP sockets could.
func (p *page) judgeUDPFailures(s *scan.Snapshot, c cleaner) {
	others, alerts := 0, []string{"EphemeralPortsUDPCollectFailing"}
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		switch {
		case n.TCP.Err != nil || n.UDP.Err == nil || n.UDP.Outcome == scan.Unsupported:
		case n.Name == scan.Self:
			p.find(unknown, alerts, "The UDP ports of this host could not be read: %s", c.sentence(n.UDP.Err.Error()))
		default:
			others++
		}
	}
	if others > 0 {
		p.find(unknown, alerts, "The UDP ports of %s could not be read.", plural(others, "network namespace", "network namespaces"))
	}
}

// worstUDPFirst orders pools: the greatest utilization first. That of dual_stack is never less than
// those of the other families.
func worstUDPFirst(a, b *udpPool) int {
	return cmp.Or(cmp.Compare(b.pool.Utilization, a.pool.Utilization), cmp.Compare(a.Netns, b.Netns))
}

// udpTable shows UDP ports. Of each namespace, only the worst family has details: the cures for the others
// are nearly the same.
func (p *page) udpTable() table {
	t := table{
		ID: "udp", Title: "UDP ports, for all destinations together",
		Columns: []column{{"Family", "FAMILY", 14, words}, {"Namespace", "NETNS", 26, words}, {"Used", "USED", 7, numbers}, {"Ports", "PORTS", 8, numbers}, {"Capacity", "CAPACITY", 10, numbers}},
	}
	detailed := map[*scan.Namespace]bool{}
	for _, u := range p.UDP {
		r := row{Level: u.Level, Owners: u.Owners, Past: u.past, Cells: cells(
			u.Family, u.Netns, u.Used, strconv.Itoa(u.pool.Ports), strconv.Itoa(u.namespace.UDP.Report.CapacityPorts))}
		if u.Level > calm && !detailed[u.namespace] {
			r.Details = u.details()
			detailed[u.namespace] = true
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

// details tell what helps a pool in danger.
func (u *udpPool) details() *details {
	more := &details{
		Key: "udp " + u.Netns + " " + u.Family, Title: "UDP of " + u.Family + " in " + u.Netns, Summary: plural(u.pool.Ports, "port in use", "ports in use"),
		Sentences: []string{u.advice.Diagnosis}, Owners: "Held by", Cures: u.Cures, Alerts: advice.ReachedUDP(u.pool).Alerts(),
	}
	enter, ok := enterCommand(u.namespace)
	if !ok {
		more.Sentences = append(more.Sentences, enterFirst(u.namespace))
		return more
	}
	ports := u.namespace.UDP.Report.Settings.PortRange
	more.Commands = []command{{"Its sockets by process, as root", fmt.Sprintf(
		`%sss -Huanp sport ge :%d sport le :%d | grep -o 'users:(("[^"]*",pid=[0-9]*' | sort | uniq -c`, enter, ports.Low, ports.High)}}
	return more
}

type documentUDP struct {
	Netns       string          `json:"netns"`
	Family      string          `json:"family"`
	Level       string          `json:"level"`
	Utilization float64         `json:"utilization_ratio"`
	Ports       int             `json:"ports"`
	Capacity    int             `json:"capacity_ports"`
	Owners      []documentOwner `json:"owners,omitempty"`
	Diagnosis   string          `json:"diagnosis,omitempty"`
	Cures       []documentCure  `json:"cures,omitempty"`
	*documentPast
}

func newDocumentUDP(u *udpPool) documentUDP {
	doc := documentUDP{
		Netns: u.namespace.Name, Family: u.Family, Level: u.Level.String(), Utilization: u.pool.Utilization,
		Ports: u.pool.Ports, Capacity: u.namespace.UDP.Report.CapacityPorts, Owners: newDocumentOwners(u.owners), documentPast: newDocumentPast(u.past, u.Level),
	}
	if u.advice != nil {
		doc.Diagnosis, doc.Cures = u.advice.Diagnosis, newDocumentCures(u.Cures, u.advice)
	}
	return doc
}

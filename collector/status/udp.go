package status

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// A udpPool is a row of the table of UDP ports.
type udpPool struct {
	pool      *pool.UDPPool
	namespace *scan.Namespace
	advice    *advice.Advice // nil unless it is in danger

	Level                        level
	Family, Netns                string
	Used, Ports, Capacity, Alert string // Alert is empty unless it is in danger
	Owners                       []string
	Diagnosis                    string // empty unless it is in danger
	Cures                        []cure
	Command                      Command // shows its sockets
	Enter                        string  // why there is no command
}

// Key identifies the row to the script of the page.
func (u *udpPool) Key() string { return "udp " + u.Netns + " " + u.Family }

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
		u := &r.Pools[i]
		if n.Name != scan.Self && advice.ReachedUDP(u).Level() == calm {
			continue
		}
		row := newUDPPool(n, u, c)
		for _, o := range s.Resolve(u.Owners) {
			row.Owners = append(row.Owners, fmt.Sprintf("%s (%d)", c.name(o.Path), o.Ports))
		}
		p.UDP = append(p.UDP, row)
	}
}

func newUDPPool(n *scan.Namespace, u *pool.UDPPool, c cleaner) *udpPool {
	row := &udpPool{
		pool: u, namespace: n, advice: advice.UDP(&n.UDP.Report, u), Level: advice.ReachedUDP(u).Level(),
		Family: string(u.Family), Netns: c.name(n.Name), Used: percent(u.Utilization),
		Ports: strconv.Itoa(u.Ports), Capacity: strconv.Itoa(n.UDP.Report.CapacityPorts),
	}
	if row.advice == nil {
		return row
	}
	row.Diagnosis = row.advice.Diagnosis
	row.Alert = advice.ReachedUDP(u).Alerts()[0]
	enter, ok := enterCommand(n)
	for _, of := range row.advice.Cures {
		cure := cure{Title: of.Title, Anchor: of.Anchor(), Sentence: of.Sentence, Condition: of.Condition}
		cure.Gain = fmt.Sprintf("Now %s free. Then %d.", plural(of.Now.Ports, "port is", "ports are"), of.Then.Ports)
		if ok && of.Command != "" {
			cure.Command = enter + of.Command
		}
		row.Cures = append(row.Cures, cure)
	}
	if !ok {
		row.Enter = fmt.Sprintf("Enter the network namespace with inode %d first: its path is not known, or no shell should see it.", n.Inode)
		return row
	}
	ports := n.UDP.Report.Settings.PortRange
	row.Command = Command{"Its sockets by process, as root", fmt.Sprintf(
		`%sss -Huanp sport ge :%d sport le :%d | grep -o 'users:(("[^"]*",pid=[0-9]*' | sort | uniq -c`, enter, ports.Low, ports.High)}
	return row
}

// judgeUDP raises the level to that of the worst UDP pool. It returns a sentence for each namespace
// with pools in danger, with the families that are as full as its worst.
func (p *page) judgeUDP() (sentences []string) {
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
		p.Level = max(p.Level, worst.Level)
		where := ""
		if p.Others {
			where = " in " + worst.Netns
		}
		of := "of " + strings.Join(families, ", ")
		if worst.pool.Utilization >= 1 {
			sentences = append(sentences, fmt.Sprintf("No UDP port %s is free%s: connect() and sendto() of new sockets fail.", of, where))
		} else {
			sentences = append(sentences, fmt.Sprintf("UDP sockets hold %s of the ports %s%s: at 100%% connect() and sendto() of new ones fail.", worst.Used, of, where))
		}
	}
	return sentences
}

// judgeUDPFailures says which namespaces could not be read, of those whose TCP sockets could.
func (p *page) judgeUDPFailures(s *scan.Snapshot, c cleaner) {
	others := 0
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		switch {
		case n.TCP.Err != nil || n.UDP.Err == nil || n.UDP.Outcome == scan.Unsupported:
		case n.Name == scan.Self:
			p.raise(warning, "The UDP ports of this host could not be read: "+c.sentence(n.UDP.Err.Error()))
		default:
			others++
		}
	}
	if others > 0 {
		p.raise(warning, fmt.Sprintf("The UDP ports of %s could not be read.", plural(others, "network namespace", "network namespaces")))
	}
}

// worstUDPFirst orders pools: the greatest utilization first. That of dual_stack is never less than
// those of the other families.
func worstUDPFirst(a, b *udpPool) int {
	return cmp.Or(cmp.Compare(b.pool.Utilization, a.pool.Utilization), cmp.Compare(a.Netns, b.Netns))
}

var udpColumns = []column{{0, false}, {14, false}, {40, true}, {47, true}, {55, true}, {65, false}}

// udp writes the table of UDP ports, and what helps those in danger.
func (t *text) udp(p *page) {
	if len(p.UDP) == 0 {
		return
	}
	t.heading("UDP ports, for all destinations together")
	t.row(udpColumns, "FAMILY", "NETNS", "USED", "PORTS", "CAPACITY")
	for _, u := range p.UDP {
		t.row(udpColumns, u.Family, u.Netns, u.Used, u.Ports, u.Capacity)
	}
	detailed := map[*scan.Namespace]bool{} // the cures for its families are nearly the same
	for _, u := range p.UDP {
		if u.Diagnosis == "" || detailed[u.namespace] || len(detailed) == maxDetails {
			continue
		}
		detailed[u.namespace] = true
		t.heading("UDP of " + u.Family + " in " + u.Netns)
		if len(u.Owners) > 0 {
			t.paragraph("  ", "Held by "+strings.Join(u.Owners, ", ")+".")
		}
		if u.Enter != "" {
			t.paragraph("  ", u.Enter)
		}
		t.paragraph("  ", u.Diagnosis)
		t.cures(u.Cures)
		if u.Enter == "" {
			t.command("  ", u.Command.Line)
		}
	}
}

type documentUDP struct {
	Netns       string            `json:"netns"`
	Family      string            `json:"family"`
	Level       string            `json:"level"`
	Utilization float64           `json:"utilization_ratio"`
	Ports       int               `json:"ports"`
	Capacity    int               `json:"capacity_ports"`
	Owners      []string          `json:"owners,omitempty"`
	Diagnosis   string            `json:"diagnosis,omitempty"`
	Cures       []documentUDPCure `json:"cures,omitempty"`
}

type documentUDPCure struct {
	Title     string `json:"title"`
	Sentence  string `json:"sentence"`
	Condition string `json:"condition,omitempty"`
	Command   string `json:"command,omitempty"`
	Free      int    `json:"free_ports"`
	FreeThen  int    `json:"free_ports_then"`
}

func newDocumentUDP(u *udpPool) documentUDP {
	doc := documentUDP{
		Netns: u.namespace.Name, Family: u.Family, Level: u.Level.String(), Utilization: u.pool.Utilization,
		Ports: u.pool.Ports, Capacity: u.namespace.UDP.Report.CapacityPorts, Owners: u.Owners, Diagnosis: u.Diagnosis,
	}
	for i, c := range u.Cures {
		of := u.advice.Cures[i]
		doc.Cures = append(doc.Cures, documentUDPCure{c.Title, c.Sentence, c.Condition, c.Command, of.Now.Ports, of.Then.Ports})
	}
	return doc
}

package status

import (
	"cmp"
	"fmt"

	"ephemeral_port_exporter/collector/scan"
)

// newPortPage returns the page about a port.
func newPortPage(port *scan.Port, info Info, v View, c cleaner) *page {
	p := &page{Info: info, View: v, Time: port.Time}
	p.Host = c.name(info.Host)
	holders := len(port.Holders) + port.More
	var who string
	switch {
	case port.Listener():
		who = fmt.Sprintf("Port %d has a listener, and %s", port.Number, plural(port.Connections, "connection", "connections"))
	case holders > 0:
		who = fmt.Sprintf("Port %d is held by %s, and nothing listens on it", port.Number, plural(holders, "connection", "connections"))
	default:
		who = fmt.Sprintf("No TCP socket that can be seen has port %d", port.Number)
	}
	p.find(calm, nil, "%s. %s As root, this names the processes: ss -Hantup sport = :%d", who, portFate(port), port.Number)
	t := table{
		ID: "port", Title: fmt.Sprintf("TCP sockets with port %d", port.Number),
		Columns: []column{{"Local address", "LOCAL", 30, addresses}, {"Remote address", "REMOTE", 30, addresses}, {"State", "STATE", 14, words}, {"Control group", "CONTROL GROUP", 0, words}},
	}
	for _, h := range port.Holders {
		remote := "-"
		if !h.Listens {
			remote = h.Remote.String()
		}
		t.Rows = append(t.Rows, row{Cells: cells(h.Local.String(), remote, stateOf(h), cmp.Or(ownerName(&h.Cgroup, c), "-"))})
	}
	if port.More > 0 {
		t.More = []finding{aside(fmt.Sprintf("%s not listed.", plural(port.More, "more socket is", "more sockets are")))}
	}
	if len(t.Rows) > 0 {
		p.Tables = []table{t}
	}
	return p
}

// portFate says whether connections can take a port.
func portFate(port *scan.Port) string {
	switch {
	case port.Reserved:
		return "It is reserved: no connection gets it, unless its client names it."
	case !port.InRange:
		return "It is outside of the range: no connection gets it, unless its client names it."
	case port.Listener():
		return "It is in the range and not reserved: while the service is down, a connection can take it, and the service cannot start."
	default:
		return "It is in the range and not reserved: connections can have it when a service wants to listen on it."
	}
}

// stateOf returns the name of the state of a socket.
func stateOf(h scan.PortHolder) string {
	if h.Listens {
		return "listen"
	}
	return h.State.String()
}

type documentPort struct {
	Number      uint16               `json:"number"`
	InRange     bool                 `json:"in_range"`
	Reserved    bool                 `json:"reserved"`
	Holders     []documentPortHolder `json:"holders"`
	More        int                  `json:"more_holders"`
	Connections int                  `json:"connections"`
}

type documentPortHolder struct {
	State       string `json:"state"`
	Local       string `json:"local"`
	Remote      string `json:"remote,omitempty"`
	Cgroup      string `json:"cgroup,omitempty"`
	PodUID      string `json:"pod_uid,omitempty"`
	Pod         string `json:"pod,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
}

func newDocumentPort(port *scan.Port) *documentPort {
	doc := &documentPort{Number: port.Number, InRange: port.InRange, Reserved: port.Reserved, Holders: []documentPortHolder{}, More: port.More, Connections: port.Connections}
	for _, h := range port.Holders {
		holder := documentPortHolder{State: stateOf(h), Local: h.Local.String(), Cgroup: h.Cgroup.Path, PodUID: h.Cgroup.PodUID, Pod: h.Cgroup.Pod, ContainerID: h.Cgroup.ContainerID}
		if !h.Listens {
			holder.Remote = h.Remote.String()
		}
		doc.Holders = append(doc.Holders, holder)
	}
	return doc
}

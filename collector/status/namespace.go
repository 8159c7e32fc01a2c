package status

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// A namespace is a network namespace, as the page shows it.
type namespace struct {
	scan        *scan.Namespace
	Name, Owner string
	Err         string
}

// addNamespace adds a namespace, if others than our own are watched.
func (p *page) addNamespace(n *scan.Namespace, c cleaner) {
	known := n.TCP.Outcome != scan.Skipped || n.TCP.Err != nil
	if !p.Others || !p.View.shows(n) || n.Name == "" || !known {
		return
	}
	row := namespace{scan: n, Name: c.name(n.Name), Owner: ownerOf(&n.Workload, c)}
	if n.TCP.Err != nil {
		row.Err = c.sentence(n.TCP.Err.Error())
	}
	p.Namespaces = append(p.Namespaces, row)
}

// worstNamespaceFirst orders namespaces: our own, those that could not be read, the others by utilization, those
// that are idle.
func worstNamespaceFirst(a, b namespace) int {
	return cmp.Or(cmp.Compare(rank(a.scan), rank(b.scan)), cmp.Compare(b.scan.TCP.Report.MaxUtilization, a.scan.TCP.Report.MaxUtilization))
}

func rank(n *scan.Namespace) int {
	switch {
	case n.Name == scan.Self:
		return 0
	case n.TCP.Err != nil:
		return 1
	case n.TCP.Outcome != scan.Idle:
		return 2
	default:
		return 3
	}
}

// outcomes writes how many namespaces there are of each outcome.
func outcomes(namespaces []scan.Namespace) string {
	counts := map[scan.Outcome]int{}
	for i := range namespaces {
		counts[namespaces[i].TCP.Outcome]++
	}
	var parts []string
	for _, o := range scan.Outcomes {
		if counts[o] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[o], o))
		}
	}
	return strings.Join(parts, ", ")
}

// ownerOf writes what a namespace belongs to.
func ownerOf(o *scan.Workload, c cleaner) string { return strings.Join(workloadParts(o, c), ", ") }

// workloadParts writes what is known of a workload. Of the ID of a container, Docker and crictl show the beginning too.
func workloadParts(o *scan.Workload, c cleaner) (parts []string) {
	if o.Command != "" {
		parts = append(parts, c.name(o.Command))
	}
	if pod := cmp.Or(o.Pod, o.PodUID); pod != "" {
		parts = append(parts, "pod "+c.name(pod))
	}
	if o.ContainerID != "" {
		parts = append(parts, "container "+c.name(o.ContainerID[:min(12, len(o.ContainerID))]))
	}
	return parts
}

// namespaceTable shows the network namespaces.
func (p *page) namespaceTable(all []scan.Namespace) table {
	t := table{
		ID: "namespaces", Title: "Network namespaces: " + outcomes(all),
		Columns: []column{
			{"Namespace", "NETNS", 24, words}, {"Outcome", "OUTCOME", 11, words}, {"Worst", "WORST", 7, numbers}, {"Capacity", "CAPACITY", 10, numbers},
			{"Range", "RANGE", 14, numbers}, {"tcp_tw_reuse", "TW_REUSE", 10, numbers}, {"TIME_WAIT", "TIME_WAIT", 11, numbers},
		},
	}
	for _, n := range p.Namespaces {
		if n.scan.TCP.Outcome == scan.Idle {
			name := n.Name
			if n.Owner != "" {
				name += " (" + n.Owner + ")"
			}
			t.Folded.Names = append(t.Folded.Names, name)
			continue
		}
		t.Rows = append(t.Rows, n.row())
	}
	t.Folded.Summary = fmt.Sprintf("%d idle: too few sockets for any pool to matter", len(t.Folded.Names))
	return t
}

func (n *namespace) row() row {
	r := row{Cells: cells(n.Name, string(n.scan.TCP.Outcome)), Err: n.Err}
	if n.Owner != "" {
		r.Owners = []string{n.Owner}
	}
	if n.Err != "" {
		return r
	}
	s, timeWait := n.scan.TCP.Report.Settings, "unknown"
	if n.scan.TimeWait.Err == nil {
		timeWait = strconv.Itoa(n.scan.TimeWait.Sockets)
	}
	r.Cells = append(r.Cells, cells(percent(n.scan.TCP.Report.MaxUtilization), strconv.Itoa(n.scan.TCP.Report.CapacityPorts),
		fmt.Sprintf("%d-%d", s.PortRange.Low, s.PortRange.High), strconv.Itoa(s.TWReuse), timeWait)...)
	return r
}

type documentNamespace struct {
	Netns           string `json:"netns"`
	Inode           uint64 `json:"inode,omitempty"`
	Command         string `json:"command,omitempty"`
	PodUID          string `json:"pod_uid,omitempty"`
	Pod             string `json:"pod,omitempty"`
	ContainerID     string `json:"container_id,omitempty"`
	Outcome         string `json:"outcome"`
	Error           string `json:"error,omitempty"`
	TimeWaitSockets *int   `json:"time_wait_sockets,omitempty"`
	UDPSockets      *int   `json:"udp_sockets,omitempty"`
	UDPError        string `json:"udp_error,omitempty"`

	*documentConntrack
	*documentTimeWait
	*documentReport // only if the outcome is collected
}

type documentReport struct {
	RangeLow              uint16         `json:"range_low"`
	RangeHigh             uint16         `json:"range_high"`
	Reserved              int            `json:"reserved_ports"`
	Blocked               int            `json:"blocked_ports"`
	Capacity              int            `json:"capacity_ports"`
	Bound                 *int           `json:"bound_ports,omitempty"`
	BoundUnknown          *int           `json:"bound_unknown_ports,omitempty"`
	MaxUtilization        float64        `json:"max_utilization_ratio"`
	MaxPossible           *float64       `json:"max_possible_utilization_ratio,omitempty"`
	MaxSourceUtilization  *float64       `json:"max_source_utilization_ratio,omitempty"`
	TWReuse               int            `json:"tcp_tw_reuse"`
	TWReuseDelay          *float64       `json:"tcp_tw_reuse_delay_seconds,omitempty"`
	Timestamps            int            `json:"tcp_timestamps"`
	FinTimeout            float64        `json:"tcp_fin_timeout_seconds"`
	TimeWaitLength        float64        `json:"time_wait_length_seconds"`
	TimeWaitLimit         *int           `json:"time_wait_limit_sockets,omitempty"`
	TimeWaitOverflows     *uint64        `json:"time_wait_overflows_total,omitempty"`
	UnreportedDestination int            `json:"unreported_destinations"`
	UnreportedPorts       map[string]int `json:"unreported_ports"`
	UnreportedSources     int            `json:"unreported_sources"`
	Duration              float64        `json:"collect_duration_seconds"`
	Sockets               int            `json:"collect_sockets"`

	ListenerCures []documentCure `json:"listener_cures,omitempty"`
}

func newDocumentNamespace(n *scan.Namespace) documentNamespace {
	doc := documentNamespace{
		Netns: n.Name, Inode: n.Inode, Command: n.Workload.Command, PodUID: n.Workload.PodUID, Pod: n.Workload.Pod, ContainerID: n.Workload.ContainerID, Outcome: string(n.TCP.Outcome),
		documentConntrack: newDocumentConntrack(n),
	}
	if n.UDP.Err != nil {
		doc.UDPError = n.UDP.Err.Error()
	}
	switch n.UDP.Outcome {
	case scan.Collected, scan.Idle, scan.Unsupported:
		doc.UDPSockets = &n.UDP.Sockets
	}
	if n.TCP.Err != nil {
		doc.Error = n.TCP.Err.Error()
		return doc
	}
	if n.TCP.Outcome == scan.Skipped {
		return doc
	}
	if n.TimeWait.Err == nil {
		doc.TimeWaitSockets = &n.TimeWait.Sockets
	}
	if n.TCP.Outcome != scan.Collected {
		return doc
	}
	r, settings := &n.TCP.Report, &n.TCP.Report.Settings
	doc.documentReport = &documentReport{
		RangeLow: settings.PortRange.Low, RangeHigh: settings.PortRange.High,
		Reserved: r.ReservedPorts, Blocked: r.BlockedPorts, Capacity: r.CapacityPorts,
		MaxUtilization: r.MaxUtilization, MaxPossible: above(r.MaxPossibleUtilization, r.MaxUtilization),
		TWReuse: settings.TWReuse, Timestamps: settings.Timestamps,
		FinTimeout: settings.FinTimeout.Seconds(), TimeWaitLength: settings.TimeWaitLength.Seconds(),
		UnreportedDestination: r.UnreportedDestinations, UnreportedPorts: portsByState(r.UnreportedPorts), UnreportedSources: r.UnreportedSources,
		Duration: n.TCP.Duration.Seconds(), Sockets: r.Sockets,
	}
	if !settings.AutobindReuse {
		doc.MaxSourceUtilization = &r.MaxSourceUtilization
	}
	var listener advice.Advice
	for _, reserve := range []func(*pool.Report) (advice.Cure, bool){advice.ReserveListeners, advice.ReserveNodePorts} {
		if c, ok := reserve(r); ok {
			listener.Cures = append(listener.Cures, c)
		}
	}
	doc.ListenerCures = newDocumentCures(newCures(n, &listener, "Ports"), &listener)
	if r.BoundKnown {
		doc.Bound, doc.BoundUnknown = &r.BoundPorts, &r.BoundUnknown
	}
	doc.documentTimeWait = newDocumentTimeWait(n)
	if n.TimeWait.Outcome == scan.Collected {
		doc.TimeWaitLimit, doc.TimeWaitOverflows = &n.TimeWait.Limit, &n.TimeWait.Overflows
	}
	if settings.TWReuseDelay > 0 {
		delay := settings.TWReuseDelay.Seconds()
		doc.TWReuseDelay = &delay
	}
	return doc
}

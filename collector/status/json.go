package status

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf16"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// A document is the JSON form of a page. reference.md documents its fields, and a test compares. Names
// are those of the metrics; a field that is not known is absent. Names of the kernel are whole here:
// other programs compare them.
type document struct {
	Host         string                `json:"host"`
	Version      string                `json:"version"`
	Time         time.Time             `json:"time"`
	Level        string                `json:"level"`
	Headline     string                `json:"headline"`
	Problems     []string              `json:"problems"`
	Destinations []documentDestination `json:"destinations"`
	Sources      []documentSource      `json:"sources"`
	UDP          []documentUDP         `json:"udp,omitempty"`
	NAT          []documentNAT         `json:"snat,omitempty"`
	Namespaces   []documentNamespace   `json:"namespaces"`
	Failed       []documentFailed      `json:"connect_failures,omitempty"`
	Unattributed *uint64               `json:"connect_failures_unattributed,omitempty"`
}

type documentDestination struct {
	Netns       string         `json:"netns"`
	Source      string         `json:"source_ip"`
	Destination string         `json:"destination_ip"`
	Port        uint16         `json:"destination_port"`
	Level       string         `json:"level"`
	Utilization float64        `json:"utilization_ratio"`
	Ports       map[string]int `json:"ports"`
	Reusable    int            `json:"reusable_ports"`
	Unsure      int            `json:"reusable_unknown_ports,omitempty"`
	Bound       int            `json:"bound_by_others_ports"`
	Closes      float64        `json:"closes_per_second"`
	Ceiling     float64        `json:"ceiling_requests_per_second"`
	Exhaustion  *float64       `json:"exhaustion_seconds,omitempty"`
	Timestamps  *bool          `json:"timestamps,omitempty"`
	Failures    *uint64        `json:"connect_failures,omitempty"`
	Owners      []string       `json:"owners,omitempty"`
	Diagnosis   string         `json:"diagnosis,omitempty"`
	Cures       []documentCure `json:"cures,omitempty"`
}

type documentCure struct {
	Title       string   `json:"title"`
	Sentence    string   `json:"sentence"`
	Condition   string   `json:"condition,omitempty"`
	Command     string   `json:"command,omitempty"`
	Ports       int      `json:"ports"`
	PortsThen   int      `json:"ports_then"`
	Ceiling     float64  `json:"ceiling_requests_per_second"`
	CeilingThen *float64 `json:"ceiling_requests_per_second_then,omitempty"`
}

type documentSource struct {
	Netns       string  `json:"netns"`
	Source      string  `json:"source_ip"`
	Utilization float64 `json:"utilization_ratio"`
	Ports       int     `json:"ports"`
	Capacity    int     `json:"capacity_ports"`
	Bound       *int    `json:"bound_ports,omitempty"`
}

type documentNamespace struct {
	Netns           string `json:"netns"`
	Inode           uint64 `json:"inode,omitempty"`
	Command         string `json:"command,omitempty"`
	PodUID          string `json:"pod_uid,omitempty"`
	ContainerID     string `json:"container_id,omitempty"`
	Outcome         string `json:"outcome"`
	Error           string `json:"error,omitempty"`
	TimeWaitSockets *int   `json:"time_wait_sockets,omitempty"`
	UDPSockets      *int   `json:"udp_sockets,omitempty"`
	UDPError        string `json:"udp_error,omitempty"`

	*documentConntrack
	*documentReport // only if the outcome is collected
}

type documentReport struct {
	RangeLow              uint16   `json:"range_low"`
	RangeHigh             uint16   `json:"range_high"`
	Reserved              int      `json:"reserved_ports"`
	Blocked               int      `json:"blocked_ports"`
	Capacity              int      `json:"capacity_ports"`
	Bound                 *int     `json:"bound_ports,omitempty"`
	BoundUnknown          *int     `json:"bound_unknown_ports,omitempty"`
	MaxUtilization        float64  `json:"max_utilization_ratio"`
	MaxSourceUtilization  float64  `json:"max_source_utilization_ratio"`
	TWReuse               int      `json:"tcp_tw_reuse"`
	TWReuseDelay          *float64 `json:"tcp_tw_reuse_delay_seconds,omitempty"`
	Timestamps            int      `json:"tcp_timestamps"`
	FinTimeout            float64  `json:"tcp_fin_timeout_seconds"`
	TimeWaitLength        float64  `json:"time_wait_length_seconds"`
	TimeWaitLimit         *int     `json:"time_wait_limit_sockets,omitempty"`
	TimeWaitOverflows     *uint64  `json:"time_wait_overflows_total,omitempty"`
	UnreportedDestination int      `json:"unreported_destinations"`
	UnreportedPorts       int      `json:"unreported_ports"`
	UnreportedSources     int      `json:"unreported_sources"`
	Duration              float64  `json:"collect_duration_seconds"`
	Sockets               int      `json:"collect_sockets"`
}

type documentFailed struct {
	Netns       string `json:"netns,omitempty"`
	Cgroup      string `json:"cgroup"`
	PodUID      string `json:"pod_uid,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
	Source      string `json:"source_ip"`
	Destination string `json:"destination_ip"`
	Port        uint16 `json:"destination_port"`
	Failures    uint64 `json:"failures"`
}

// writeJSON writes a document. It is ASCII: terminals show it as it is.
func writeJSON(w io.Writer, d document) error {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fmt.Errorf("status: encode JSON: %w", err)
	}
	_, err = io.WriteString(w, asciiJSON(b)+"\n")
	return err
}

// asciiJSON writes all characters that are not ASCII as in RFC 8259 section 7. In JSON, these are in
// strings only.
func asciiJSON(b []byte) string {
	var out strings.Builder
	for _, r := range string(b) {
		if r < 0x7f {
			out.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	return out.String()
}

func newDocument(s *scan.Snapshot, info Info, v View) document {
	p := newPage(s, info, v, visible)
	d := document{
		Host: info.Host, Version: info.Version, Time: s.Time.UTC(),
		Level: p.Level.String(), Headline: p.Headline, Problems: append([]string{}, p.Problems...),
		Destinations: []documentDestination{}, Sources: []documentSource{}, Namespaces: []documentNamespace{},
	}
	for _, row := range p.Destinations {
		d.Destinations = append(d.Destinations, newDocumentDestination(row, p.Counts))
	}
	for _, row := range p.UDP {
		d.UDP = append(d.UDP, newDocumentUDP(row))
	}
	for _, row := range p.NAT {
		d.NAT = append(d.NAT, newDocumentNAT(row))
	}
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		if !v.shows(n) {
			continue
		}
		d.Namespaces = append(d.Namespaces, newDocumentNamespace(n))
		if v.Destination.IsValid() {
			continue
		}
		for j := range n.TCP.Report.Sources {
			d.Sources = append(d.Sources, newDocumentSource(n, &n.TCP.Report.Sources[j]))
		}
	}
	if f := s.ConnectFailures; f != nil && f.Err == nil {
		d.Unattributed = &f.Unattributed
		for i := range f.Pools {
			pool := &f.Pools[i]
			if v.Destination.IsValid() && pool.Destination != keyOf("", pool.Source, v.Destination).destination {
				continue
			}
			d.Failed = append(d.Failed, documentFailed{pool.Netns, pool.Cgroup.Path, pool.Cgroup.PodUID, pool.Cgroup.ContainerID, pool.Source.String(), pool.Destination.Addr().String(), pool.Destination.Port(), pool.Failures})
		}
	}
	return d
}

func newDocumentDestination(row *destination, counts bool) documentDestination {
	d := row.pool
	doc := documentDestination{
		Netns: row.namespace.Name, Source: d.Source.String(), Destination: d.Address.Addr().String(), Port: d.Address.Port(),
		Level: row.Level.String(), Utilization: d.Utilization, Ports: map[string]int{}, Reusable: d.Reusable, Unsure: d.ReusableUnknown, Bound: d.BoundByOthers,
		Closes: d.CloseRate, Ceiling: d.Ceiling, Owners: row.Owners,
	}
	for i, state := range pool.States {
		doc.Ports[state.String()] = d.Ports[i]
	}
	if !math.IsInf(d.Exhaustion, 0) {
		doc.Exhaustion = &d.Exhaustion
	}
	if d.Timestamps != pool.Unknown {
		yes := d.Timestamps == pool.Yes
		doc.Timestamps = &yes
	}
	if counts {
		doc.Failures = &row.failures
	}
	if row.advice != nil {
		doc.Diagnosis = row.advice.Diagnosis
		for i, cure := range row.advice.Cures {
			doc.Cures = append(doc.Cures, newDocumentCure(cure, row.Cures[i].Command))
		}
	}
	return doc
}

func newDocumentCure(c advice.Cure, command string) documentCure {
	doc := documentCure{
		Title: c.Title, Sentence: c.Sentence, Condition: c.Condition, Command: command,
		Ports: c.Now.Ports, PortsThen: c.Then.Ports, Ceiling: c.Now.Ceiling,
	}
	if !math.IsInf(c.Then.Ceiling, 1) {
		doc.CeilingThen = &c.Then.Ceiling
	}
	return doc
}

func newDocumentSource(n *scan.Namespace, s *pool.Source) documentSource {
	doc := documentSource{Netns: n.Name, Source: s.Address.String(), Utilization: s.Utilization, Ports: s.Ports, Capacity: s.Capacity}
	if n.TCP.Report.BoundKnown {
		doc.Bound = &s.Bound
	}
	return doc
}

func newDocumentNamespace(n *scan.Namespace) documentNamespace {
	doc := documentNamespace{
		Netns: n.Name, Inode: n.Inode, Command: n.Workload.Command, PodUID: n.Workload.PodUID, ContainerID: n.Workload.ContainerID, Outcome: string(n.TCP.Outcome),
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
		MaxUtilization: r.MaxUtilization, MaxSourceUtilization: r.MaxSourceUtilization,
		TWReuse: settings.TWReuse, Timestamps: settings.Timestamps,
		FinTimeout: settings.FinTimeout.Seconds(), TimeWaitLength: settings.TimeWaitLength.Seconds(),
		UnreportedDestination: r.UnreportedDestinations, UnreportedPorts: r.UnreportedPorts, UnreportedSources: r.UnreportedSources,
		Duration: n.TCP.Duration.Seconds(), Sockets: r.Sockets,
	}
	if r.BoundKnown {
		doc.Bound, doc.BoundUnknown = &r.BoundPorts, &r.BoundUnknown
	}
	if n.TimeWait.Outcome == scan.Collected {
		doc.TimeWaitLimit, doc.TimeWaitOverflows = &n.TimeWait.Limit, &n.TimeWait.Overflows
	}
	if settings.TWReuseDelay > 0 {
		delay := settings.TWReuseDelay.Seconds()
		doc.TWReuseDelay = &delay
	}
	return doc
}

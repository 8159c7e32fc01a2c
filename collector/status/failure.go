package status

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// A failed is a pool with failed connects that no destination shows.
type failed struct {
	pool            *scan.FailedPool
	Netns, Owner    string // empty if not known
	Address, Source string
}

// addFailed adds the pools with failed connects that no destination shows.
func (p *page) addFailed(f *scan.Trace, byPool tracedPools, c cleaner) {
	if f == nil {
		return
	}
	for i := range f.Pools {
		of := &f.Pools[i]
		if byPool[keyOf(of.Netns, of.Source, of.Destination)].shown || !p.View.showsTraced(of.Destination) {
			continue
		}
		p.Failed = append(p.Failed, failed{
			pool: of, Netns: c.name(of.Netns), Owner: ownerName(&of.Cgroup, c) + last(of.Last, c), Address: of.Destination.String(), Source: of.Source.String(),
		})
	}
	slices.SortStableFunc(p.Failed, func(a, b failed) int { return cmp.Compare(b.pool.Failures, a.pool.Failures) })
}

// showsTraced reports whether the view has a destination that is traced, whose address has no zone.
func (v View) showsTraced(destination netip.AddrPort) bool {
	v.Destination = netip.AddrPortFrom(v.Destination.Addr().WithZone(""), v.Destination.Port())
	return v.has(destination)
}

// failedTable shows the pools with failed connects that no destination shows.
func (p *page) failedTable(counts *scan.Trace) table {
	t := table{
		ID: "failed", Title: "Failed connects of pools that hold few ports now",
		About:   "Their ports have become free since, or their clients have a slice of the range (IP_LOCAL_PORT_RANGE) or a list of ports of their own, which is used up while the pool has plenty.",
		Columns: []column{{"Destination", "DESTINATION", 23, addresses}, {"Source", "SOURCE", 17, addresses}, {"Namespace", "NETNS", 14, words}, {"Failed connects", "FAILED", 10, numbers}, {"Control group", "CONTROL GROUP", 0, words}},
	}
	if slices.ContainsFunc(p.Bound, func(b *bound) bool { return b.Level == exhausted }) {
		t.About = "Others have bound the ports: what helps then stands above, with the ports that bind() has taken."
	}
	if counts != nil && counts.Unattributed > 0 {
		t.More = []finding{aside(fmt.Sprintf("The pools of %s that failed are not listed: see --destination.limit.", connects(counts.Unattributed)), "EphemeralPortsConnectFailingUnattributed")}
	}
	for _, f := range p.Failed {
		t.Rows = append(t.Rows, row{Cells: cells(f.Address, f.Source, f.Netns, strconv.FormatUint(f.pool.Failures, 10), f.Owner)})
	}
	return t
}

// failing returns what a pool has reached of which only failed connects are known.
func failing() advice.Reached {
	return advice.ReachedTCP(&pool.Report{}, &pool.Destination{Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1)}, true)
}

// judgeFailed finds the pools with failed connects that no destination shows.
func (p *page) judgeFailed(f *scan.Trace) {
	if n := len(p.Failed); n > 0 {
		p.find(failing().Level(), failing().Alerts(), "%s few ports now had failed connects within 15 minutes.", plural(n, "pool that holds", "pools that hold"))
	}
	// They have no time. While connects fail in too many pools, some of these are listed.
	if f != nil && f.Unattributed > 0 && len(f.Pools) > 0 {
		p.find(failing().Level(), []string{"EphemeralPortsConnectFailingUnattributed"}, "%s failed in pools that are not listed, since the exporter started.", connects(f.Unattributed))
	}
}

// A documentParty is a control group, and what it had to do with a pool.
type documentParty struct {
	Netns       string `json:"netns,omitempty"`
	Cgroup      string `json:"cgroup"`
	PodUID      string `json:"pod_uid,omitempty"`
	Pod         string `json:"pod,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
	Command     string `json:"command,omitempty"`
	PID         int    `json:"pid,omitempty"`
}

func newDocumentParty(netns string, g *scan.Group, last scan.Process) documentParty {
	return documentParty{netns, g.Path, g.PodUID, g.Pod, g.ContainerID, last.Command, last.PID}
}

// A documentPool is a pool that is traced.
type documentPool struct {
	Source      string `json:"source_ip"`
	Destination string `json:"destination_ip"`
	Port        uint16 `json:"destination_port"`
}

func newDocumentPool(source netip.Addr, destination netip.AddrPort) documentPool {
	return documentPool{source.String(), destination.Addr().String(), destination.Port()}
}

type documentFailed struct {
	documentParty
	documentPool
	Failures uint64 `json:"failures"`
	Recent   uint64 `json:"recent_failures"`
}

func newDocumentFailed(f *scan.FailedPool) documentFailed {
	return documentFailed{newDocumentParty(f.Netns, &f.Cgroup, f.Last), newDocumentPool(f.Source, f.Destination), f.Failures, f.Recent}
}

//go:build linux

package scan

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"ephemeral_port_exporter/collector/cilium"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
)

// openCilium opens the maps of Cilium's source NAT, and sets what is known of it if there are none to read: Cilium does not run, has no source NAT
// of its own, or cannot be read. They are opened for each scan, because its agent can replace them.
func (s *Scanner) openCilium(n *Namespace) *cilium.Maps {
	maps, err := cilium.Open(s.cfg.BPFFS)
	s.ciliumRead = err == nil
	switch {
	case err == nil:
		n.Cilium = Cilium{Result: Result{Outcome: Collected}, Found: true}
		return maps
	case !n.Cilium.Found && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, cilium.ErrNoFileSystem)):
		return nil // and no sign of it
	}
	n.Cilium.Result = failure(s.explainCilium(err))
	return nil
}

// explainCilium says what to do about an error of cilium.Open.
func (s *Scanner) explainCilium(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the maps of Cilium below --path.bpffs=%s need the user root, or CAP_DAC_READ_SEARCH, and before Linux 5.19 CAP_BPF: %w", s.cfg.BPFFS, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, cilium.ErrNoFileSystem):
		return fmt.Errorf("--path.bpffs=%s must be the BPF file system of the host, in which Cilium has its maps: %w", s.cfg.BPFFS, err)
	default:
		return err
	}
}

// ciliumSettings returns how the datapath of Cilium chooses ports.
func (s *Scanner) ciliumSettings(maps *cilium.Maps) snat.Cilium {
	const (
		oldTries = 128 // SNAT_COLLISION_RETRIES of bpf/lib/nat.h up to Cilium 1.17
		last     = math.MaxUint16
	)
	highest := slices.MaxFunc(s.cfg.NodePorts, func(a, b pool.PortRange) int { return int(a.High) - int(b.High) }).High
	c := snat.Cilium{Ports: pool.PortRange{Low: min(highest, last-1) + 1, High: last}}
	var known bool
	if c.Tries, known = maps.Tries(); !known {
		c.Tries, c.Old = oldTries, true
	}
	return c
}

// addCilium adds the flows of Cilium to a table. It sets the failure if that was not possible: some of them may have been added then.
func (s *Scanner) addCilium(n *Namespace, maps *cilium.Maps, table *snat.Table, deadline time.Time) {
	var row snat.Flow
	err := maps.Flows(deadline, func(f *cilium.Flow) {
		setCiliumRow(&row, f)
		table.Add(&row)
	})
	_, counted := maps.Tries()
	if err == nil && counted {
		n.Cilium.Counted = true
		n.Cilium.Unassigned, err = maps.Failures()
	}
	if err != nil {
		n.Cilium.Result = failure(err)
		return
	}
	n.Cilium.Lately = s.ciliumDrops.observe(n.Cilium.Unassigned, time.Now())
}

// setCiliumRow sets row to a flow.
func setCiliumRow(row *snat.Flow, f *cilium.Flow) {
	*row = snat.Flow{
		Protocol: snat.TCP, State: ciliumStateOf(f), Cilium: true,
		Client: f.Client.Addr(), ClientPort: f.Client.Port(), Translated: f.Translated, Destination: f.Destination, SNAT: f.Client != f.Translated,
	}
	if f.Protocol == cilium.UDP {
		row.Protocol = snat.UDP
	}
}

// ciliumStateOf returns the state of a flow.
func ciliumStateOf(f *cilium.Flow) snat.State {
	switch {
	case f.State == cilium.NoConnection:
		return snat.NoConnection
	case f.Protocol == cilium.UDP:
		return snat.Assured
	}
	return map[cilium.State]snat.State{
		cilium.SynSent: snat.SynSent, cilium.Connected: snat.Established, cilium.Closing: snat.FinWait, cilium.Closed: snat.TimeWait,
	}[f.State]
}

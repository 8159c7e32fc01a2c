//go:build linux

package scan

import (
	"cmp"
	"net/netip"
	"slices"

	"ephemeral_port_exporter/collector/connectfail"
)

// connectFailures bounds what a connectfail.Probe counts to as many pools as may have
// series. Each failure is in exactly one number, and none of these ever falls or ends: a
// pool that is listed stays so, and one that came when there was no place stays out.
type connectFailures struct {
	counts func() (counts []connectfail.Count, rest uint64, err error)
	most   int
	listed map[failedKey]bool
}

// A failedKey is what a connectfail.Count is of.
type failedKey struct {
	source      netip.Addr
	destination netip.AddrPort
}

func keyOf(c connectfail.Count) failedKey { return failedKey{c.Source, c.Destination} }

func newConnectFailures(counts func() ([]connectfail.Count, uint64, error), most int) *connectFailures {
	return &connectFailures{counts: counts, most: most, listed: map[failedKey]bool{}}
}

// collect reads the counts.
func (f *connectFailures) collect() ConnectFailures {
	counts, rest, err := f.counts()
	if err != nil {
		return ConnectFailures{Err: err}
	}
	f.admit(counts)
	failures := ConnectFailures{Unattributed: rest}
	for _, c := range counts {
		if !f.listed[keyOf(c)] {
			failures.Unattributed += c.Failures
			continue
		}
		failures.Pools = append(failures.Pools, FailedPool{Source: c.Source, Destination: c.Destination, Failures: c.Failures})
	}
	return failures
}

// admit lists pools that are not yet, those with most failures first, as long as there
// is place.
func (f *connectFailures) admit(counts []connectfail.Count) {
	if len(f.listed) == f.most {
		return
	}
	var waiting []connectfail.Count
	for _, c := range counts {
		if !f.listed[keyOf(c)] {
			waiting = append(waiting, c)
		}
	}
	slices.SortFunc(waiting, func(a, b connectfail.Count) int {
		return cmp.Or(cmp.Compare(b.Failures, a.Failures), a.Source.Compare(b.Source), a.Destination.Compare(b.Destination))
	})
	for _, c := range waiting[:min(len(waiting), f.most-len(f.listed))] {
		f.listed[keyOf(c)] = true
	}
}

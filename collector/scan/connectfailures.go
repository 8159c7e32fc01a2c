//go:build linux

package scan

import (
	"cmp"
	"net/netip"
	"slices"

	"ephemeral_port_exporter/collector/connectfail"
)

// connectFailures limits the pools of a connectfail.Probe to as many as may have series. Each
// failure counts either in a listed pool or as unattributed. These numbers are counters, so none
// may fall or end: a listed pool stays listed, and a pool that found the list full stays
// unattributed.
type connectFailures struct {
	counts func() (counts []connectfail.Count, rest uint64, err error)
	most   int
	listed map[failedKey]bool
}

// A failedKey identifies the pool of a connectfail.Count.
type failedKey struct {
	source      netip.Addr
	destination netip.AddrPort
}

func keyOf(c connectfail.Count) failedKey { return failedKey{c.Source, c.Destination} }

func newConnectFailures(counts func() ([]connectfail.Count, uint64, error), most int) *connectFailures {
	return &connectFailures{counts: counts, most: most, listed: map[failedKey]bool{}}
}

// collect returns the failures since the Probe was attached.
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

// admit adds pools to the list until it is full, those with most failures first.
func (f *connectFailures) admit(counts []connectfail.Count) {
	if len(f.listed) == f.most {
		return
	}
	var unlisted []connectfail.Count
	for _, c := range counts {
		if !f.listed[keyOf(c)] {
			unlisted = append(unlisted, c)
		}
	}
	slices.SortFunc(unlisted, func(a, b connectfail.Count) int {
		return cmp.Or(cmp.Compare(b.Failures, a.Failures), a.Source.Compare(b.Source), a.Destination.Compare(b.Destination))
	})
	for _, c := range unlisted[:min(len(unlisted), f.most-len(f.listed))] {
		f.listed[keyOf(c)] = true
	}
}

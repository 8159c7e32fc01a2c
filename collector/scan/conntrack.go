//go:build linux

package scan

import (
	"errors"
	"io/fs"

	"ephemeral_port_exporter/procfs"
)

// conntrackCounters are those of one namespace.
type conntrackCounters struct{ insertFailed, dropped, earlyDropped wrappingCounter }

// A wrappingCounter makes one counter of 64 bits of the kernel's counters of 32 bits, one for each CPU.
// What it remembers may be lost, and is of other namespaces before Linux 5.14, which have no cookie: it then begins
// at the kernel's sum, as at the start.
type wrappingCounter struct {
	last  []uint32 // by CPU
	wraps uint64   // since the first scan
}

// sum returns the sum over the CPUs without the loss of those that begin anew. A scan that is so late that one
// has counted 2^31 meanwhile sees none of them begin anew.
func (c *wrappingCounter) sum(now []uint32) uint64 {
	sum, wraps, again := uint64(0), uint64(0), len(now) != len(c.last)
	for i, n := range now {
		sum += uint64(n)
		if again || n >= c.last[i] {
			continue
		}
		wraps++
		// A long way back is a new table: the module was loaded again.
		again = n-c.last[i] >= 1<<31
	}
	if again {
		c.wraps, wraps = 0, 0
	}
	c.last = now
	c.wraps += wraps
	return sum + c.wraps<<32
}

// addConntrack reads what the calling thread's namespace tells of connection tracking without a
// privilege.
func (s *Scanner) addConntrack(n *Namespace, counters *conntrackCounters) {
	var err error
	if n.Conntrack, err = readConntrack(s.proc, counters); err != nil {
		n.Conntrack.Result = failure(err)
	}
}

// readConntrack returns the size and the counters of the calling thread's namespace. They are zero if it
// has no connection tracking.
func readConntrack(proc *procfs.FS, counters *conntrackCounters) (Conntrack, error) {
	size, err := proc.Conntrack()
	if errors.Is(err, fs.ErrNotExist) {
		return Conntrack{}, nil
	} else if err != nil {
		return Conntrack{}, err
	}
	c := Conntrack{Result: Result{Outcome: Collected}, Entries: size.Entries, Limit: size.Limit}
	stats, err := proc.ConntrackStats()
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	} else if err != nil {
		return Conntrack{}, err
	}
	c.Counted = true
	c.InsertFailed = counters.insertFailed.sum(stats.InsertFailed)
	c.Dropped = counters.dropped.sum(stats.Dropped)
	c.EarlyDropped = counters.earlyDropped.sum(stats.EarlyDropped)
	return c, nil
}

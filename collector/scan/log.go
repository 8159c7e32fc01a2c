//go:build linux

package scan

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"time"
)

// logFailures logs the failures of a scan. Failures of our own namespace are logged at each scan.
// Failures of discovery, of control groups and of other namespaces, which can be thousands, are not
// logged again if the last scan had them too.
func (s *Scanner) logFailures(snapshot Snapshot, discovery []discoveryFailure) {
	logged := map[string]bool{}
	for _, f := range discovery {
		key := "place " + f.place
		logged[key] = true
		if !s.logged[key] {
			s.cfg.Logger.Warn("Some network namespaces may be missing", "place", f.place, "err", f.err)
		}
	}
	for _, n := range snapshot.Namespaces {
		s.logUDP(n, logged)
		s.logDetails(n, logged)
		err := n.TCP.Err
		if err == nil || n.TCP.Outcome == Skipped || n.TCP.Outcome == Deadline && n.Name != Self {
			continue
		}
		key := fmt.Sprintf("namespace %d", n.Inode)
		logged[key] = true
		if n.Name == Self || !s.logged[key] {
			s.cfg.Logger.Error("Collection failed", "netns", cmp.Or(n.Name, fmt.Sprintf("inode %d", n.Inode)), "after", n.TCP.Duration.Round(time.Millisecond), "err", err)
		}
	}
	for _, n := range snapshot.Namespaces {
		err := cmp.Or(n.NAT.Err, n.Conntrack.Err)
		key := fmt.Sprintf("source NAT %d", n.Inode)
		if errors.Is(err, errLater) || errors.Is(err, os.ErrDeadlineExceeded) && n.Name != Self {
			logged[key] = s.logged[key] // what failed before may fail again at its next turn
			continue
		}
		if err == nil {
			continue
		}
		logged[key] = true
		if !s.logged[key] {
			s.cfg.Logger.Error("Connection tracking could not be read", "netns", cmp.Or(n.Name, fmt.Sprintf("inode %d", n.Inode)), "err", err)
		}
	}
	if err := snapshot.MissingPaths(); err != nil {
		const key = "control groups"
		logged[key] = true
		if !s.logged[key] {
			s.cfg.Logger.Warn("Some control groups have numbers instead of paths", "err", err)
		}
	}
	s.logged = logged

	if f := snapshot.Trace; f != nil && f.Err != nil {
		s.cfg.Logger.Error("What is traced cannot be read", "err", f.Err)
	}
	if f := snapshot.Trace; f != nil && f.ReclaimErr != nil {
		s.cfg.Logger.Error("The tables of what is traced fill up, because slots cannot be freed", "err", f.ReclaimErr)
	}
	if f := snapshot.Trace; f != nil && f.MissedRunsErr != nil {
		s.cfg.Logger.Warn("It is not known whether the kernel skips counts of what is traced", "err", f.MissedRunsErr)
	}
}

// logDetails logs what is not known of a namespace besides its sockets, if the last scan knew it.
func (s *Scanner) logDetails(n Namespace, logged map[string]bool) {
	for _, detail := range []struct {
		message string
		err     error
	}{
		{"It is not known whether destinations use TCP timestamps, so ports in TIME_WAIT may count as used", n.TCP.TimestampsErr},
		{"The counters of TIME_WAIT cannot be read", n.TimeWait.Err},
		{"The source NAT of Cilium is not known", n.Cilium.Err},
	} {
		if detail.err == nil || errors.Is(detail.err, os.ErrDeadlineExceeded) && n.Name != Self {
			continue
		}
		key := fmt.Sprintf("%s %d", detail.message, n.Inode)
		logged[key] = true
		if !s.logged[key] {
			s.cfg.Logger.Warn(detail.message, "netns", cmp.Or(n.Name, fmt.Sprintf("inode %d", n.Inode)), "err", detail.err)
		}
	}
}

//go:build linux

package scan

import (
	"errors"
	"fmt"
	"os"
)

// logFailures logs what went wrong in a scan. Of other namespaces than our own, which can
// be thousands, a failure that was there in the last scan already is not logged again.
func (s *Scanner) logFailures(snapshot Snapshot) {
	logged := map[string]bool{}
	for _, n := range snapshot.Namespaces {
		if n.Err == nil || errors.Is(n.Err, os.ErrDeadlineExceeded) && n.Name != Self {
			continue
		}
		key := fmt.Sprint(n.Name, n.Inode)
		logged[key] = true
		if n.Name == Self || !s.logged[key] {
			s.cfg.Logger.Error("Collection failed", "netns", n.Name, "err", n.Err)
		}
	}
	s.logged = logged

	if f := snapshot.ConnectFailures; f != nil && f.Err != nil {
		s.cfg.Logger.Error("Connect failures cannot be read", "err", f.Err)
	}
}

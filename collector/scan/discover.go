//go:build linux

package scan

import (
	"errors"
	"io/fs"

	"ephemeral_port_exporter/collector/netns"
)

// usualNamespaceDirs are where ip-netns(8), CNI plugins and Docker mount network
// namespaces. It is no failure if one of them does not exist.
var usualNamespaceDirs = [...]string{"/run/netns", "/run/docker/netns"}

// A discoveryFailure says that namespaces could not be listed completely. The scan may miss some
// of them.
type discoveryFailure struct {
	place string // a directory, "processes", "own namespace" or "visit"
	err   error
}

// discover returns the namespaces in scope, each once.
func (s *Scanner) discover() ([]netns.Namespace, []discoveryFailure) {
	var (
		found    [][]netns.Namespace
		failures []discoveryFailure
	)
	for _, dir := range usualNamespaceDirs {
		mounted, err := netns.Mounted(dir)
		found = append(found, mounted)
		// Only root may read Docker's directory. With ScopeAll that is no failure: the
		// namespaces in it have processes.
		elsewhere := s.cfg.Scope == ScopeAll && errors.Is(err, fs.ErrPermission)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !elsewhere {
			failures = append(failures, discoveryFailure{dir, err})
		}
	}
	for _, dir := range s.cfg.NamespaceDirs {
		mounted, err := netns.Mounted(dir)
		found = append(found, mounted)
		if err != nil {
			failures = append(failures, discoveryFailure{dir, err})
		}
	}
	if s.cfg.Scope == ScopeAll {
		ofProcesses, err := netns.OfProcesses(s.cfg.Proc)
		found = append(found, ofProcesses)
		if err != nil {
			failures = append(failures, discoveryFailure{"processes", err})
		}
	}
	return netns.Merge(found...), failures
}

//go:build linux

package scan

import (
	"errors"
	"io/fs"
	"sync"

	"ephemeral_port_exporter/collector/cgroup"
)

// checkPods logs if the names of pods cannot be read. Most hosts run no pods, or do not show them: that is no reason to log.
func (s *Scanner) checkPods() {
	if s.cfg.PodLogs == "" {
		return
	}
	_, err := cgroup.Pods(s.cfg.PodLogs)
	noPods := s.cfg.PodLogs == DefaultPodLogs && errors.Is(err, fs.ErrNotExist)
	if err != nil && !noPods {
		s.cfg.Logger.Warn("Pods are shown without their names: make --path.pod-logs readable", "err", err)
	}
}

// podNames returns a function that sets the name of a pod, if it is known. It reads them once, for the first pod.
func (s *Scanner) podNames() func(*cgroup.Workload) {
	pods := sync.OnceValue(func() map[string]string {
		pods, _ := cgroup.Pods(s.cfg.PodLogs) // checkPods has logged why not
		return pods
	})
	return func(w *cgroup.Workload) {
		if w.PodUID != "" && s.cfg.PodLogs != "" {
			w.Pod = pods()[w.PodUID]
		}
	}
}

// namePods sets the names of the pods in a snapshot.
func (s *Scanner) namePods(snapshot *Snapshot) {
	name := s.podNames()
	for i := range snapshot.Namespaces {
		name(&snapshot.Namespaces[i].Workload.Workload)
	}
	for id, group := range snapshot.Cgroups {
		name(&group.Workload)
		snapshot.Cgroups[id] = group
	}
	if t := snapshot.Trace; t != nil {
		for i := range t.Pools {
			name(&t.Pools[i].Cgroup.Workload)
		}
		for i := range t.Closes {
			name(&t.Closes[i].Cgroup.Workload)
		}
		for i := range t.Binds {
			name(&t.Binds[i].Cgroup.Workload)
		}
	}
}

//go:build linux

package scan

import (
	"errors"
	"io/fs"
	"sync"

	"ephemeral_port_exporter/collector/cgroup"
)

// checkPods logs if the names of pods cannot be read.
func (s *Scanner) checkPods() {
	if s.cfg.PodLogs != "" {
		_, err := cgroup.Pods(s.cfg.PodLogs)
		s.logPodsError(err)
	}
}

// logPodsError logs an error of [cgroup.Pods]. Most hosts run no pods: that is no reason to log. And kubelet lets only root and
// root's group read the names: that is no reason to warn those who did not ask for them.
func (s *Scanner) logPodsError(err error) {
	byDefault := s.cfg.PodLogs == DefaultPodLogs
	switch {
	case err == nil, byDefault && errors.Is(err, fs.ErrNotExist):
	case byDefault:
		s.cfg.Logger.Info("Pods are shown without their names", "err", err)
	default:
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

// Package cgroup identifies control groups, and the pod and the container of a process by them, see
// cgroups(7).
package cgroup

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// A Workload is the pod and the container of a process. Unknown fields are empty.
type Workload struct {
	PodUID      string // of Kubernetes, in the form of its API
	ContainerID string // 64 hexadecimal digits
}

// WorkloadOf returns the workload of a process. It is zero if the process has ended. proc is the mount
// point of procfs.
func WorkloadOf(proc string, pid int) Workload {
	content, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return Workload{}
	}
	return parseCgroup(string(content))
}

var (
	// podUID matches the directory or slice of a pod. With the systemd cgroup driver,
	// kubelet writes "_" for "-". Static pods have 32 digits without separators.
	podUID = regexp.MustCompile(`pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})\b`)

	// containerID matches the container IDs of Docker, containerd, CRI-O and Podman. The
	// monitor of a container, conmon, has a scope of its own with the same ID.
	containerID = regexp.MustCompile(`(?:^|[^0-9a-f])(conmon-)?([0-9a-f]{64})(?:$|[^0-9a-f])`)
)

// parseCgroup parses /proc/PID/cgroup of cgroup version 1 or 2. Its lines have the form
// "hierarchy:controllers:path", see cgroups(7).
func parseCgroup(content string) Workload {
	var w Workload
	for line := range strings.Lines(content) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		of := parsePath(fields[2])
		w.PodUID = cmp.Or(w.PodUID, of.PodUID)
		w.ContainerID = cmp.Or(w.ContainerID, of.ContainerID)
	}
	return w
}

// parsePath returns the workload of the processes in a control group. Those that contain it come
// first, so a container cannot take the names of others.
func parsePath(path string) Workload {
	var w Workload
	if m := podUID.FindStringSubmatch(path); m != nil {
		w.PodUID = strings.ReplaceAll(m[1], "_", "-")
	}
	if m := containerID.FindStringSubmatch(path); m != nil && m[1] == "" {
		w.ContainerID = m[2]
	}
	return w
}

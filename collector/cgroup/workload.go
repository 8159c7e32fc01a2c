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
	PodUID      string // of Kubernetes, as kubelet has it: that of the API, or of a static pod 32 hexadecimal digits
	Pod         string // NAMESPACE/NAME of the pod; only scan.Snapshot and scan.Port have it, see Pods
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

// Parts of the paths below. Static pods have a UID without separators. With the systemd cgroup driver, kubelet writes
// "_" for "-".
const (
	podUID      = `([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})`
	containerID = `([0-9a-f]{64})`
	end         = `(?:/|$)`

	// Slices contain slices, scopes and services. Users, services and containers make control groups inside of their own
	// service or scope, so only systemd makes what is directly in a slice of the host.
	inSlices = `(?:/[^/]+\.slice)*`

	// The path of OCI "slice:prefix:name" taken as a directory, by runc without the systemd driver: of version 2 beside its own service, so
	// in a slice, and of version 1 inside of that or at the root.
	besideRunc = `(?:` + inSlices + `|/system\.slice/(?:containerd|k3s|k3s-agent|rke2-server|rke2-agent)\.service)`
)

// These match paths where kubelet and the container engines put their pods and containers. Only root makes control
// groups there. A tenant can make one with any name inside of its own: no path matches that has one of these before the pod or
// the container. The first group is the pod and the second one the container.
//
// Each path may begin in the middle, as it does after "/.." if it is seen from a cgroup namespace: what is beside the
// control groups that contain the exporter is root's too.
var workloadPaths = [...]*regexp.Regexp{
	// kubelet with the systemd driver: kubepods.slice, or with --cgroup-root below other slices, whose names it repeats.
	regexp.MustCompile(`^` + inSlices + `/(?:[^/]+-)?kubepods(?:-burstable|-besteffort)?-pod` + podUID + `\.slice(?:/(?:cri-containerd|crio|docker)-` + containerID + `\.scope)?` + end),
	// kubelet with the cgroupfs driver. kind has --cgroup-root=/kubelet.
	regexp.MustCompile(`^(?:/kubelet)?(?:/kubepods)?(?:/burstable|/besteffort)?/pod` + podUID + `(?:/(?:crio-)?` + containerID + `)?` + end),
	// kubelet with the systemd driver, containerd without SystemdCgroup, or with it for pods with user namespaces.
	regexp.MustCompile(`^` + besideRunc + `/(?:[^/]+-)?kubepods(?:-burstable|-besteffort)?-pod` + podUID + `\.slice:cri-containerd:` + containerID + end),
	// Docker with the systemd driver, and a runtime without.
	regexp.MustCompile(`^` + inSlices + `()/[^/:]+\.slice:docker:` + containerID + end),
	// Engines with the systemd driver. The monitor of a container, libpod-conmon, has the ID of the container too.
	regexp.MustCompile(`^` + inSlices + `()/(?:docker|libpod|nerdctl|cri-containerd|crio)-` + containerID + `\.scope` + end),
	// Engines with the cgroupfs driver: Docker, containerd by its namespaces, Podman in a pod or not, Amazon ECS.
	regexp.MustCompile(`^()/(?:docker/|default/|k8s\.io/|libpod_parent/(?:[0-9a-f]{64}/)?libpod-|ecs/(?:[^/]+/){1,2}?)?` + containerID + end),
}

// parseCgroup parses /proc/PID/cgroup of cgroup version 1 or 2. Its lines have the form
// "hierarchy:controllers:path", see cgroups(7).
func parseCgroup(content string) Workload {
	var w Workload
	for line := range strings.Lines(content) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		of := parsePath(fields[2])
		w.PodUID = cmp.Or(w.PodUID, of.PodUID)
		w.ContainerID = cmp.Or(w.ContainerID, of.ContainerID)
	}
	return w
}

// parsePath returns the workload of the processes in a control group. It is zero if somebody else than kubelet and
// container engines may have made the control group and those that contain it.
func parsePath(path string) Workload {
	for strings.HasPrefix(path, "/../") {
		path = strings.TrimPrefix(path, "/..")
	}
	for _, form := range workloadPaths {
		if m := form.FindStringSubmatch(path); m != nil {
			// Copies: a path can have 4 kB.
			return Workload{PodUID: strings.Clone(strings.ReplaceAll(m[1], "_", "-")), ContainerID: strings.Clone(m[2])}
		}
	}
	return Workload{}
}

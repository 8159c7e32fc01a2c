// Package cgroup tells whose a process is, by its control group: the pod and the
// container, see cgroups(7).
package cgroup

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// An Owner tells whose a process is. What is not known is empty.
type Owner struct {
	PodUID      string // of Kubernetes, as the API has it
	ContainerID string // 64 hexadecimal digits
}

// OwnerOf returns the owner of a process. It is zero if the process ended.
func OwnerOf(proc string, pid int) Owner {
	content, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return Owner{}
	}
	return parseCgroup(string(content))
}

var (
	// podUID matches the folder or slice of a pod: kubelet writes "_" for "-" where
	// systemd manages cgroups. Static pods have 32 digits without any.
	podUID = regexp.MustCompile(`pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})\b`)

	// containerID matches what Docker, containerd, CRI-O and Podman have in common. The
	// monitor of a container has a scope of its own, with the same number.
	containerID = regexp.MustCompile(`(?:^|[^0-9a-f])(conmon-)?([0-9a-f]{64})(?:$|[^0-9a-f])`)
)

// parseCgroup reads /proc/PID/cgroup, of version 1 or 2: lines of
// "hierarchy:controllers:path", see cgroups(7).
func parseCgroup(content string) Owner {
	var o Owner
	for line := range strings.Lines(content) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		path := fields[2]
		if m := podUID.FindStringSubmatch(path); m != nil && o.PodUID == "" {
			o.PodUID = strings.ReplaceAll(m[1], "_", "-")
		}
		if m := containerID.FindStringSubmatch(path); m != nil && m[1] == "" && o.ContainerID == "" {
			o.ContainerID = m[2]
		}
	}
	return o
}

//go:build linux

package scan

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ephemeral_port_exporter/collector/cgroup"
)

// assignWorkloads sets the workload of each namespace, as far as it is known without much work. It
// stays the same as long as the processes exist that it comes from. Otherwise a tenant could
// create series by renaming a process.
func (s *Scanner) assignWorkloads(candidates []candidate) {
	for i := range candidates {
		c := &candidates[i]
		k := c.known
		if k.command != 0 && !slices.Contains(c.found.PIDs, k.command) {
			k.command, k.workload, k.workloadPID = 0, Workload{}, 0
		}
		if k.command == 0 && (k.workload.Workload == (cgroup.Workload{}) || !slices.Contains(c.found.PIDs, k.workloadPID)) {
			k.workloadPID, k.workload.Workload = 0, cgroup.Workload{}
			if len(c.found.PIDs) > 0 {
				k.workloadPID = c.found.PIDs[0]
				k.workload.Workload = cgroup.WorkloadOf(s.cfg.Proc, k.workloadPID)
			}
			if k.workload.PodUID != "" {
				k.workload.ContainerID = "" // a pod has several: the first process is that of the pause container
			}
		}
		c.Workload = k.workload
	}
}

// maxCommands bounds how many namespaces get a command in one scan: to examine all descriptors of
// all processes of one can take 0.1 s.
const maxCommands = 4

// assignCommands sets the command of busy namespaces that have none, and the container of its process, within the deadline.
func (s *Scanner) assignCommands(candidates []candidate, deadline time.Time) {
	left := maxCommands
	for i := range candidates {
		c := &candidates[i]
		k := c.known
		if c.TCP.Outcome != Collected || k.command != 0 || slices.Equal(k.examined, c.found.PIDs) {
			continue
		}
		if left--; left < 0 {
			return
		}
		if !time.Now().Before(deadline) {
			c.TCP.CutShort = true
			return
		}
		k.command, k.workload.Command = busiestProcess(s.cfg.Proc, c.found.PIDs)
		k.examined = nil
		if k.command == 0 {
			k.examined = c.found.PIDs
		} else {
			of := cgroup.WorkloadOf(s.cfg.Proc, k.command)
			k.workload.Workload = cgroup.Workload{PodUID: cmp.Or(of.PodUID, k.workload.PodUID), ContainerID: of.ContainerID}
		}
		c.Workload = k.workload
	}
}

// maxDescriptors bounds how many descriptors of a process are examined.
const maxDescriptors = 1024

// busiestProcess returns the process with most open sockets, and its command. It returns 0 and ""
// if no process has sockets or may be examined.
func busiestProcess(proc string, pids []int) (pid int, command string) {
	most := 0
	for _, p := range pids {
		dir := filepath.Join(proc, strconv.Itoa(p))
		n := countSockets(filepath.Join(dir, "fd"))
		if n <= most {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue // it has ended
		}
		most, pid, command = n, p, strings.TrimSuffix(string(comm), "\n")
	}
	return pid, command
}

// countSockets returns how many descriptors in a directory /proc/PID/fd are sockets, of the first
// maxDescriptors. It returns 0 if the directory cannot be read.
func countSockets(dir string) int {
	d, err := os.Open(dir)
	if err != nil {
		return 0
	}
	defer d.Close()
	names, _ := d.Readdirnames(maxDescriptors) // on an error, the names before it
	n := 0
	for _, name := range names {
		link, err := os.Readlink(filepath.Join(dir, name))
		if err == nil && strings.HasPrefix(link, "socket:") {
			n++
		}
	}
	return n
}

//go:build linux

package scan

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ephemeral_port_exporter/collector/cgroup"
)

// A knownOwner is the Owner of a namespace, with the processes that it comes from.
type knownOwner struct {
	owner   Owner
	pid     int // the process of cgroup.Owner
	command int // the process of Owner.Command; 0 if that is not known
}

// assignOwners sets the owner of each namespace. An owner stays the same as long as the processes
// exist that it comes from. Otherwise a tenant could create series by renaming a process.
func (s *Scanner) assignOwners(candidates []candidate) {
	owners := make(map[uint64]knownOwner, len(candidates))
	for i := range candidates {
		c := &candidates[i]
		if len(c.found.PIDs) == 0 {
			continue
		}
		known := s.owners[c.cookie]
		if known.owner.ContainerID == "" || !slices.Contains(c.found.PIDs, known.pid) {
			known.pid = c.found.PIDs[0]
			known.owner.Owner = cgroup.OwnerOf(s.cfg.Proc, known.pid)
		}
		if known.command != 0 && !slices.Contains(c.found.PIDs, known.command) {
			known.command, known.owner.Command = 0, ""
		}
		if known.command == 0 && c.Outcome == "" { // busy
			known.command, known.owner.Command = busiestProcess(s.cfg.Proc, c.found.PIDs)
		}
		c.Owner = known.owner
		if c.cookie != 0 {
			owners[c.cookie] = known
		}
	}
	s.owners = owners
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

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

// A knownOwner is the Owner of a namespace, and the process that it was learned from.
type knownOwner struct {
	owner   Owner
	pid     int // of cgroup.Owner
	command int // the process of Owner.Command; 0 before that is known
}

// assignOwners says whose each namespace is. What was learned stays as long as the process
// is there, so that no tenant makes series by renaming a process.
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
			known.command, known.owner.Command = mostSockets(s.cfg.Proc, c.found.PIDs)
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

// mostSockets returns the process that has most sockets open, and its command; zero if
// none has any, or none may be examined.
func mostSockets(proc string, pids []int) (pid int, command string) {
	most := 0
	for _, p := range pids {
		dir := filepath.Join(proc, strconv.Itoa(p))
		n := countSockets(filepath.Join(dir, "fd"))
		if n <= most {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue // it ended
		}
		most, pid, command = n, p, strings.TrimSuffix(string(comm), "\n")
	}
	return pid, command
}

// countSockets returns how many of the descriptors in a directory of procfs are sockets.
func countSockets(dir string) int {
	d, err := os.Open(dir)
	if err != nil {
		return 0
	}
	defer d.Close()
	names, _ := d.Readdirnames(maxDescriptors) // with an error, those before it
	n := 0
	for _, name := range names {
		link, err := os.Readlink(filepath.Join(dir, name))
		if err == nil && strings.HasPrefix(link, "socket:") {
			n++
		}
	}
	return n
}

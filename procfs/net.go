package procfs

import (
	"strconv"
	"strings"
)

// TimeWaitSockets returns the number of sockets in TIME_WAIT, FIN_WAIT2
// mini-sockets included: "tw" of the TCP line of /proc/thread-self/net/sockstat.
func (fs FS) TimeWaitSockets() (int, error) {
	path := fs.threadNet("sockstat")
	content, err := readFile(path)
	if err != nil {
		return 0, err
	}
	tw, ok := parseSockstat(content, "TCP:", "tw")
	if !ok {
		return 0, malformed(path, content)
	}
	return tw, nil
}

// TimeWaitOverflows returns how many sockets were dropped instead of put into
// TIME_WAIT because there were tcp_max_tw_buckets already: TCPTimeWaitOverflow of
// /proc/thread-self/net/netstat.
func (fs FS) TimeWaitOverflows() (uint64, error) {
	path := fs.threadNet("netstat")
	content, err := readFile(path)
	if err != nil {
		return 0, err
	}
	n, ok := parseNetstat(content, "TcpExt:", "TCPTimeWaitOverflow")
	if !ok {
		return 0, malformed(path, content)
	}
	return n, nil
}

// parseSockstat finds a value in lines of the form "TCP: inuse 4 orphan 0 tw 2".
func parseSockstat(content, protocol, name string) (int, bool) {
	for line := range strings.Lines(content) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol {
			continue
		}
		for i := 1; i+1 < len(fields); i += 2 {
			if fields[i] == name {
				return parseInt(fields[i+1])
			}
		}
	}
	return 0, false
}

// parseNetstat finds a counter in pairs of lines, the first of which names what the
// second counts.
func parseNetstat(content, protocol, name string) (uint64, bool) {
	var names []string
	for line := range strings.Lines(content) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i := 1; i < len(names) && i < len(fields); i++ {
			if names[i] == name {
				n, err := strconv.ParseUint(fields[i], 10, 64)
				return n, err == nil
			}
		}
		return 0, false
	}
	return 0, false
}

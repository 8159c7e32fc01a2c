//go:build linux

package procfs

import (
	"path/filepath"
	"strconv"
	"strings"
)

// maxNet is a size in bytes that no file of counters reaches: the longest has about 5 KiB.
const maxNet = 64 << 10

// A Sockstat is the number of TCP and UDP sockets in a namespace.
type Sockstat struct {
	InUse    int // TCP with a local port, listeners included, in any state but TIME_WAIT
	TimeWait int // TCP in TIME_WAIT, FIN_WAIT2 mini-sockets included
	UDP      int // UDP with a local port

	// Allocated counts the TCP sockets of all network namespaces, also those without a local port, in any state but TIME_WAIT. It is 0
	// if the kernel does not tell.
	Allocated int
}

// Sockstat returns the number of sockets of both address families in the calling thread's network
// namespace: "inuse", "tw" and "alloc" of the TCP lines and "inuse" of the UDP lines of
// /proc/thread-self/net/sockstat and sockstat6. It takes a few microseconds for any number of sockets.
func (fs *FS) Sockstat() (Sockstat, error) {
	net, err := fs.openNet()
	if err != nil {
		return Sockstat{}, err
	}
	defer net.close()
	content, err := net.read("sockstat", maxNet)
	if err != nil {
		return Sockstat{}, err
	}
	inUse, ok := parseSockstat(content, "TCP:", "inuse")
	timeWait, ok2 := parseSockstat(content, "TCP:", "tw")
	udp, ok3 := parseSockstat(content, "UDP:", "inuse")
	if !ok || !ok2 || !ok3 {
		return Sockstat{}, malformed(net.pathOf("sockstat"), content)
	}

	allocated, _ := parseSockstat(content, "TCP:", "alloc")

	content, err = net.read("sockstat6", maxNet)
	if isNotExist(err) { // a kernel without IPv6
		return Sockstat{InUse: inUse, TimeWait: timeWait, UDP: udp, Allocated: allocated}, nil
	}
	if err != nil {
		return Sockstat{}, err
	}
	inUse6, ok := parseSockstat(content, "TCP6:", "inuse")
	udp6, ok2 := parseSockstat(content, "UDP6:", "inuse")
	if !ok || !ok2 {
		return Sockstat{}, malformed(net.pathOf("sockstat6"), content)
	}
	return Sockstat{InUse: inUse + inUse6, TimeWait: timeWait, UDP: udp + udp6, Allocated: allocated}, nil
}

// TimeWaitOverflows returns how many sockets of the calling thread's network namespace skipped
// TIME_WAIT because tcp_max_tw_buckets sockets were in it: TCPTimeWaitOverflow of
// /proc/thread-self/net/netstat.
func (fs *FS) TimeWaitOverflows() (uint64, error) {
	net, err := fs.openNet()
	if err != nil {
		return 0, err
	}
	defer net.close()
	content, err := net.read("netstat", maxNet)
	if err != nil {
		return 0, err
	}
	n, ok := parseNetstat(content, "TcpExt:", "TCPTimeWaitOverflow")
	if !ok {
		return 0, malformed(net.pathOf("netstat"), content)
	}
	return n, nil
}

// openNet opens the directory with the counters of the calling thread's network namespace.
func (fs *FS) openNet() (directory, error) {
	return fs.open(filepath.Join(fs.mount, "thread-self/net"))
}

// parseSockstat returns a value from lines of the form "TCP: inuse 4 orphan 0 tw 2".
func parseSockstat(content, protocol, name string) (int, bool) {
	for line := range strings.Lines(content) {
		if !strings.HasPrefix(line, protocol) {
			continue
		}
		found := false
		for field := range strings.FieldsSeq(line[len(protocol):]) {
			if found {
				return parseInt(field)
			}
			found = field == name
		}
	}
	return 0, false
}

// parseNetstat returns a counter from pairs of lines: the first line has the names, the second the
// values.
func parseNetstat(content, protocol, name string) (uint64, bool) {
	column := -1 // of the name
	for line := range strings.Lines(content) {
		if first, _, _ := strings.Cut(strings.TrimRight(line, "\n"), " "); first != protocol {
			continue
		}
		i := 0
		for field := range strings.FieldsSeq(line) {
			switch {
			case column < 0 && field == name:
				column = i
			case column == i:
				n, err := strconv.ParseUint(field, 10, 64)
				return n, err == nil
			}
			i++
		}
	}
	return 0, false
}

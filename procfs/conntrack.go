//go:build linux

package procfs

import (
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxConntrackStats is a size in bytes that the counters of 8192 CPUs, the most that Linux can have,
// do not reach. A line has about 160.
const maxConntrackStats = 2 << 20

// A Conntrack is the size of a namespace's table of tracked flows.
type Conntrack struct {
	// Entries is the number of flows: sysctl net.netfilter.nf_conntrack_count.
	Entries int

	// Limit is the number of flows at which the kernel drops packets of new ones: sysctl
	// net.netfilter.nf_conntrack_max. It has one value for all namespaces, and each may have so many.
	// It is 0 if there is no limit, and if it is hidden, as in namespaces of a user namespace before
	// Linux 5.7.
	Limit int

	// Buckets is the size of the hash table, which all namespaces share: sysctl
	// net.netfilter.nf_conntrack_buckets. If it changes during a dump of the flows, that dump can
	// lack any of them.
	Buckets int
}

// Conntrack returns the size of the table of the calling thread's network namespace. The error is
// fs.ErrNotExist if the kernel has no connection tracking, or if its module is not loaded.
func (fs *FS) Conntrack() (Conntrack, error) {
	dir, err := fs.openNetfilter()
	if err != nil {
		return Conntrack{}, err
	}
	defer dir.close()
	var c Conntrack
	if c.Entries, err = dir.readInt("nf_conntrack_count"); err != nil {
		return Conntrack{}, err
	}
	if c.Limit, err = dir.readInt("nf_conntrack_max"); err != nil && !isNotExist(err) {
		return Conntrack{}, err
	}
	if c.Buckets, err = dir.readInt("nf_conntrack_buckets"); err != nil {
		return Conntrack{}, err
	}
	return c, nil
}

// A ConntrackTimeouts says how long the kernel keeps a flow without packets, and with it a port of
// NAT.
type ConntrackTimeouts struct {
	TCPTimeWait time.Duration // nf_conntrack_tcp_timeout_time_wait
	UDP         time.Duration // nf_conntrack_udp_timeout: for flows without an answer, or shorter than 2 s
}

// ConntrackTimeouts returns the timeouts of the calling thread's network namespace, sysctls
// net.netfilter.*. Rules can set others for some flows. The error is as for Conntrack, and
// fs.ErrNotExist in namespaces of a user namespace before Linux 5.7.
func (fs *FS) ConntrackTimeouts() (ConntrackTimeouts, error) {
	dir, err := fs.openNetfilter()
	if err != nil {
		return ConntrackTimeouts{}, err
	}
	defer dir.close()
	var t ConntrackTimeouts
	for file, timeout := range map[string]*time.Duration{
		"nf_conntrack_tcp_timeout_time_wait": &t.TCPTimeWait,
		"nf_conntrack_udp_timeout":           &t.UDP,
	} {
		s, err := dir.readInt(file)
		if err != nil {
			return ConntrackTimeouts{}, err
		}
		*timeout = time.Duration(s) * time.Second
	}
	return t, nil
}

// openNetfilter opens the directory with the sysctls of connection tracking.
func (fs *FS) openNetfilter() (directory, error) {
	return fs.open(filepath.Join(fs.mount, "sys/net/netfilter"))
}

// ConntrackStats count what connection tracking did with packets. The kernel has a counter of 32 bits for
// each CPU, which begins anew behind 4294967295. So there is a value for each CPU that the host can have,
// online or not, always in the same order.
type ConntrackStats struct {
	InsertFailed []uint32 // first packets dropped because another flow has the same ends: NAT had no free port, or a race
	Dropped      []uint32 // packets dropped because of that, or because the table was full
	EarlyDropped []uint32 // flows dropped for new ones because the table was full
}

// ConntrackStats returns the counters of the calling thread's network namespace:
// /proc/thread-self/net/stat/nf_conntrack. The error is fs.ErrNotExist as for Conntrack, and with
// CONFIG_NF_CONNTRACK_PROCFS=n.
func (fs *FS) ConntrackStats() (ConntrackStats, error) {
	const file = "stat/nf_conntrack"
	net, err := fs.openNet()
	if err != nil {
		return ConntrackStats{}, err
	}
	defer net.close()
	content, err := net.readAll(file, maxNet)
	if errors.Is(err, errTooLong) {
		content, err = net.readAll(file, maxConntrackStats)
	}
	if err != nil {
		return ConntrackStats{}, err
	}
	s, ok := parseConntrackStats(content)
	if !ok {
		return ConntrackStats{}, malformed(net.pathOf(file), content)
	}
	return s, nil
}

// ConntrackEntries returns Conntrack.Entries for less work: the kernel takes long to find the sysctls of
// one of many namespaces. The error is that of Conntrack.
func (fs *FS) ConntrackEntries() (int, error) {
	const file = "stat/nf_conntrack"
	net, err := fs.openNet()
	if err != nil {
		return 0, err
	}
	defer net.close()
	content, err := net.read(file, maxNet) // the first lines, which are enough
	if isNotExist(err) {
		c, err := fs.Conntrack()
		return c.Entries, err
	} else if err != nil {
		return 0, err
	}
	n, ok := parseConntrackEntries(content)
	if !ok {
		return 0, malformed(net.pathOf(file), content)
	}
	return n, nil
}

// parseConntrackEntries returns the first column of the line of any CPU: it is the same for all.
func parseConntrackEntries(content string) (int, bool) {
	header, lines, _ := strings.Cut(content, "\n")
	value, _, _ := strings.Cut(lines, " ")
	n, err := strconv.ParseUint(value, 16, 31)
	return int(n), err == nil && strings.HasPrefix(header, "entries ")
}

// parseConntrackStats returns hexadecimal columns. The first line has their names. Which columns there
// are depends on the kernel's version.
func parseConntrackStats(content string) (ConntrackStats, bool) {
	header, lines, _ := strings.Cut(content, "\n")
	names := strings.Fields(header)
	var s ConntrackStats
	for name, counter := range map[string]*[]uint32{"insert_failed": &s.InsertFailed, "drop": &s.Dropped, "early_drop": &s.EarlyDropped} {
		column := slices.Index(names, name)
		if column < 0 || lines == "" {
			return ConntrackStats{}, false
		}
		for line := range strings.Lines(lines) {
			values := strings.Fields(line)
			if len(values) != len(names) {
				return ConntrackStats{}, false
			}
			n, err := strconv.ParseUint(values[column], 16, 32)
			if err != nil {
				return ConntrackStats{}, false
			}
			*counter = append(*counter, uint32(n))
		}
	}
	return s, true
}

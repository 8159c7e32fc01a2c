//go:build linux

package procfs

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"time"
)

// TCPTWReuse returns whether connect() may take over a port in TIME_WAIT: 0 never, 1 always, 2 only
// on loopback. Sysctl net.ipv4.tcp_tw_reuse.
func (ns *Namespace) TCPTWReuse() (int, error) { return ns.readInt("tcp_tw_reuse") }

// TCPTWReuseDelay returns how long a port must be in TIME_WAIT before connect() may take it over:
// sysctl net.ipv4.tcp_tw_reuse_delay. ok is false if the kernel does not have this sysctl. Kernels
// before 6.14 do not have it: there a port must have been closed in an earlier second of the kernel's clock.
func (ns *Namespace) TCPTWReuseDelay() (delay time.Duration, ok bool, err error) {
	ms, err := ns.readInt("tcp_tw_reuse_delay")
	if isNotExist(err) {
		return 0, false, nil
	}
	return time.Duration(ms) * time.Millisecond, err == nil, err
}

// TCPTimestamps returns whether TCP uses timestamps: 0 no, 1 and 2 yes. Without them, connect()
// takes over no port in TIME_WAIT. Sysctl net.ipv4.tcp_timestamps.
func (ns *Namespace) TCPTimestamps() (int, error) { return ns.readInt("tcp_timestamps") }

// TCPFinTimeout returns how long a socket that no process holds stays in FIN_WAIT2:
// sysctl net.ipv4.tcp_fin_timeout. It has no influence on TIME_WAIT.
func (ns *Namespace) TCPFinTimeout() (time.Duration, error) {
	s, err := ns.readInt("tcp_fin_timeout")
	return time.Duration(s) * time.Second, err
}

// TCPMaxTWBuckets returns the number of sockets in TIME_WAIT at which the kernel drops new ones at
// once: sysctl net.ipv4.tcp_max_tw_buckets.
func (ns *Namespace) TCPMaxTWBuckets() (int, error) { return ns.readInt("tcp_max_tw_buckets") }

// isNotExist reports whether a file is absent.
func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// readInt returns the value of a sysctl with one number.
func (ns *Namespace) readInt(file string) (int, error) { return ns.ipv4.readInt(file) }

func (d directory) readInt(file string) (int, error) {
	content, err := d.read(file, maxNumbers)
	if err != nil {
		return 0, err
	}
	n, ok := parseInt(content)
	if !ok {
		return 0, malformed(d.pathOf(file), content)
	}
	return n, nil
}

// parseInt parses a C int. The kernel accepts negative values for some sysctls.
func parseInt(content string) (int, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(content), 10, 32)
	return int(n), err == nil
}

//go:build linux

package procfs

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// MonotonicOffset returns by how much CLOCK_MONOTONIC of the process is ahead of the kernel's own: the
// offset of its time namespace, time_namespaces(7). It is 0 outside of one, and on kernels without
// them (before 5.6). Source: /proc/self/timens_offsets.
func (fs *FS) MonotonicOffset() (time.Duration, error) {
	self, err := fs.open(filepath.Join(fs.mount, "self"))
	if err != nil {
		return 0, err
	}
	defer self.close()
	const file = "timens_offsets"
	content, err := self.read(file, 256)
	if isNotExist(err) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	offset, ok := parseMonotonicOffset(content)
	if !ok {
		return 0, malformed(self.pathOf(file), content)
	}
	return offset, nil
}

// parseMonotonicOffset parses lines of a clock, seconds and nanoseconds.
func parseMonotonicOffset(content string) (time.Duration, bool) {
	for line := range strings.Lines(content) {
		fields := strings.Fields(line)
		// Before Linux 5.6.3, clocks have numbers.
		if len(fields) != 3 || fields[0] != "monotonic" && fields[0] != "1" {
			continue
		}
		seconds, err := strconv.ParseInt(fields[1], 10, 34)
		if err != nil {
			return 0, false
		}
		nanoseconds, err := strconv.ParseInt(fields[2], 10, 32)
		return time.Duration(seconds)*time.Second + time.Duration(nanoseconds), err == nil
	}
	return 0, false
}

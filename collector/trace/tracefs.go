//go:build linux

package trace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The tracepoint, in Linux since 4.16.
const (
	eventGroup = "sock"
	eventName  = "inet_sock_set_state"
)

// tracefsMounts are the mount points of tracefs, see Documentation/trace/ftrace.rst: the usual one,
// and the one where debugfs mounts it automatically.
var tracefsMounts = [...]string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"}

// readTracepoint returns the number of the tracepoint.
func readTracepoint() (id uint64, err error) {
	mount, err := findTracefs()
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile(filepath.Join(mount, "events", eventGroup, eventName, "id"))
	switch {
	case err == nil:
		if id, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil {
			return 0, fmt.Errorf("read tracefs: id: %w", err)
		}
		return id, nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist) && lockedDown():
		return 0, fmt.Errorf("read tracefs: %s: %w", likelyCauses(), err)
	case errors.Is(err, fs.ErrNotExist):
		return 0, fmt.Errorf("%w: no tracepoint %s:%s (Linux 4.16, CONFIG_EVENT_TRACING): %w", ErrUnsupported, eventGroup, eventName, err)
	default:
		return 0, fmt.Errorf("read tracefs: %w", err)
	}
}

// findTracefs returns the mount point of tracefs. It needs no right to read tracefs. Only root can
// find it below debugfs.
func findTracefs() (string, error) {
	for _, mount := range tracefsMounts {
		var st unix.Statfs_t
		if err := unix.Statfs(mount, &st); err == nil && st.Type == unix.TRACEFS_MAGIC {
			return mount, nil
		}
	}
	return "", fmt.Errorf("find tracefs: it is not mounted (mount -t tracefs nodev %s; in a container, mount that directory of the host; "+
		"ip netns exec hides it: use nsenter --net=/run/netns/NAME instead): %w", tracefsMounts[0], fs.ErrNotExist)
}

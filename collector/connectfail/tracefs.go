//go:build linux

package connectfail

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

// tracefs is where it belongs, see Documentation/trace/ftrace.rst.
const tracefs = "/sys/kernel/tracing"

// readTracepoint reads the number of the tracepoint, and the description of its record.
func readTracepoint() (id uint64, format string, err error) {
	if err := checkTracefs(); err != nil {
		return 0, "", err
	}
	number, err := readEvent("id")
	if err != nil {
		return 0, "", err
	}
	if id, err = strconv.ParseUint(strings.TrimSpace(number), 10, 64); err != nil {
		return 0, "", fmt.Errorf("read tracefs: id: %w", err)
	}
	format, err = readEvent("format")
	return id, format, err
}

// readEvent reads a file of the tracepoint.
func readEvent(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(tracefs, "events", eventGroup, eventName, name))
	switch {
	case err == nil:
		return string(b), nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist) && lockedDown():
		return "", fmt.Errorf("read tracefs: %s: %w", suspects(), err)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w: no tracepoint %s:%s (Linux 4.16, CONFIG_EVENT_TRACING): %w", ErrUnsupported, eventGroup, eventName, err)
	default:
		return "", fmt.Errorf("read tracefs: %w", err)
	}
}

// checkTracefs returns an error if tracefs is not mounted. To see that takes no right to read it.
func checkTracefs() error {
	var st unix.Statfs_t
	err := unix.Statfs(tracefs, &st)
	switch {
	case err == nil && st.Type == unix.TRACEFS_MAGIC:
		return nil
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("find tracefs: it is not mounted (mount -t tracefs nodev %s; in a container, mount that folder of the host): %w", tracefs, fs.ErrNotExist)
	default:
		return fmt.Errorf("find tracefs: %w", &fs.PathError{Op: "statfs", Path: tracefs, Err: err})
	}
}

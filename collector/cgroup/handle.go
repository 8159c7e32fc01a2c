//go:build linux

package cgroup

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/capability"
)

// fileHandleType is FILEID_KERNFS of the kernel: the handle of a file is its number, in 8 bytes.
const fileHandleType = 0xfe

// ask has the kernel tell the paths of control groups by their numbers, without a search, as far as it does so before the deadline. It
// moves them from unknown to known, also those that are removed or outside of the mount: these have no path. The kernel
// tells nothing without CAP_DAC_READ_SEARCH.
func (g *Groups) ask(unknown map[uint64]bool, deadline time.Time) {
	if ok, err := capability.Has(capability.DACReadSearch); !ok || err != nil {
		return
	}
	mount, err := unix.Open(g.mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // the search says why
	}
	defer unix.Close(mount)
	root, ok := rootPath(mount)
	for id := range unknown {
		if !ok || !time.Now().Before(deadline) {
			return
		}
		path, err := pathByHandle(mount, id)
		if err != nil && !errors.Is(err, unix.ESTALE) && !errors.Is(err, unix.ENAMETOOLONG) {
			return
		}
		g.known[id] = unnamed(id)
		delete(unknown, id)
		// Where a mount has only a part of the control groups, the path of one outside may look as if it was inside.
		if in, ok := strings.CutPrefix(path, root); ok {
			if at, err := stat(path); err == nil && at == id {
				g.known[id] = newGroup("/" + strings.TrimPrefix(in, "/"))
			}
		}
	}
}

// rootPath returns the path of a mount, given a descriptor of it. ok is false if the kernel does not tell this path by handle: then
// it tells none, because it is older than Linux 5.5 or a filter of system calls forbids it.
func rootPath(mount int) (root string, ok bool) {
	var st unix.Stat_t
	if err := unix.Fstat(mount, &st); err != nil {
		return "", false
	}
	root, err := pathOf(mount)
	if err != nil {
		return "", false
	}
	told, err := pathByHandle(mount, st.Ino)
	return root, err == nil && told == root
}

// pathByHandle returns the path of a control group. mount is a descriptor of the mount. The error is ESTALE if there is no control
// group with that number, and ENAMETOOLONG if its path is longer than PATH_MAX.
func pathByHandle(mount int, id uint64) (string, error) {
	handle := unix.NewFileHandle(fileHandleType, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(mount, handle, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return pathOf(fd)
}

// pathOf returns the path of a descriptor.
func pathOf(fd int) (string, error) {
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

//go:build linux

package cgroup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// An entry is a directory in another one.
type entry struct {
	inode uint64
	name  string
}

// errDirent means that a directory entry is shorter than it says.
var errDirent = errors.New("getdents64: malformed entry")

// The members of struct linux_dirent64 of getdents64(2).
const (
	direntOffset = 8  // of the entry after this one
	direntLength = 16 // of the entry
	direntType   = 18
	direntName   = 19
)

// maxEntry is the greatest length of an entry: names have 255 bytes at most.
const maxEntry = 280

// readEntries reads entries of a directory from an offset on, as many as the buffer has room for. It reports the offset behind them,
// and whether there are no more.
func readEntries(fd int, from int64, buffer []byte) (entries []entry, offset int64, last bool, err error) {
	if from != 0 {
		if _, err := unix.Seek(fd, from, unix.SEEK_SET); err != nil {
			return nil, from, false, os.NewSyscallError("lseek", err)
		}
	}
	for len(buffer) >= maxEntry {
		n, err := unix.Getdents(fd, buffer)
		if err != nil {
			return nil, from, false, os.NewSyscallError("getdents64", err)
		}
		if n == 0 {
			return entries, from, true, nil
		}
		if entries, from, err = parseEntries(buffer[:n], entries); err != nil {
			return nil, from, false, err
		}
		buffer = buffer[n:]
	}
	return entries, from, false, nil
}

// parseEntries appends what getdents64(2) wrote, and returns the offset behind it.
func parseEntries(b []byte, entries []entry) (_ []entry, offset int64, err error) {
	for len(b) > 0 {
		if len(b) <= direntName {
			return nil, 0, errDirent
		}
		length := int(binary.NativeEndian.Uint16(b[direntLength:]))
		if length <= direntName || length > len(b) {
			return nil, 0, errDirent
		}
		offset = int64(binary.NativeEndian.Uint64(b[direntOffset:]))
		name, _, _ := bytes.Cut(b[direntName:length], []byte{0})
		if b[direntType] == syscall.DT_DIR && string(name) != "." && string(name) != ".." {
			entries = append(entries, entry{binary.NativeEndian.Uint64(b), string(name)})
		}
		b = b[length:]
	}
	return entries, offset, nil
}

// hasDirs reports whether a directory in another one may have directories. It has none if it is removed.
func hasDirs(fd int, name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Nlink != 2 // 2 and the number of directories in it (fs/kernfs/inode.c)
}

// stat returns the inode of a file.
func stat(path string) (id uint64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

//go:build linux

package procfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// An FS is a mounted proc(5) file system. It serves one goroutine at a time.
type FS struct {
	mount  string
	buffer []byte // for the content of a file
}

// NewFS returns the file system at a mount point, usually /proc. Nothing is read yet.
func NewFS(mount string) *FS { return &FS{mount: mount} }

// A Namespace is the sysctls of one network namespace. Their directory is opened only once: with
// thousands of namespaces, the kernel takes long to find it.
type Namespace struct {
	ipv4 directory
}

// A directory is an open directory.
type directory struct {
	fs   *FS
	path string
	fd   int
}

// Namespace opens the sysctls of the calling thread's network namespace. The thread must not enter
// another namespace while it uses them.
func (fs *FS) Namespace() (*Namespace, error) {
	ipv4, err := fs.open(filepath.Join(fs.mount, "sys/net/ipv4"))
	if err != nil {
		return nil, err
	}
	return &Namespace{ipv4: ipv4}, nil
}

// Close closes the directory of the sysctls.
func (ns *Namespace) Close() error { return ns.ipv4.close() }

func (fs *FS) open(path string) (directory, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return directory{}, fmt.Errorf("procfs: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	return directory{fs: fs, path: path, fd: fd}, nil
}

func (d directory) close() error { return unix.Close(d.fd) }

// pathOf returns the path of a file in the directory, for error texts.
func (d directory) pathOf(file string) string { return filepath.Join(d.path, file) }

// has reports whether the directory has a directory of that name.
func (d directory) has(name string) bool {
	fd, err := unix.Openat(d.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// errTooLong means that a file is longer than its buffer.
var errTooLong = errors.New("longer than expected")

// read returns the content of a file that is shorter than size bytes.
//
// It calls read(2) once. Some sysctls, like ip_local_reserved_ports, answer only the first
// read(2), with as much as fits. A reader with several calls, like os.ReadFile for more than
// 512 bytes, would lose the rest without an error. So content that fills the buffer is an error.
// A file of /proc/PID/net with a fixed number of lines also returns all of its content to one read
// that is large enough (single_open).
func (d directory) read(file string, size int) (string, error) {
	if len(d.fs.buffer) < size {
		d.fs.buffer = make([]byte, size)
	}
	b := d.fs.buffer[:size]
	fd, err := unix.Openat(d.fd, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("procfs: %w", &os.PathError{Op: "open", Path: d.pathOf(file), Err: err})
	}
	n, err := unix.Read(fd, b)
	unix.Close(fd)
	if err != nil {
		return "", fmt.Errorf("procfs: %w", &os.PathError{Op: "read", Path: d.pathOf(file), Err: err})
	}
	if n == len(b) {
		return "", fmt.Errorf("procfs: %s: %w: %d bytes or more", d.pathOf(file), errTooLong, size)
	}
	return string(b[:n]), nil
}

// readAll is read for a file with a line for each object: the kernel returns only the lines that fit
// into one page to a read(2), however large (seq_read_iter).
func (d directory) readAll(file string, size int) (string, error) {
	if len(d.fs.buffer) < size {
		d.fs.buffer = make([]byte, size)
	}
	b := d.fs.buffer[:size]
	fd, err := unix.Openat(d.fd, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("procfs: %w", &os.PathError{Op: "open", Path: d.pathOf(file), Err: err})
	}
	defer unix.Close(fd)
	total := 0
	for total < len(b) {
		n, err := unix.Read(fd, b[total:])
		if err != nil {
			return "", fmt.Errorf("procfs: %w", &os.PathError{Op: "read", Path: d.pathOf(file), Err: err})
		}
		if n == 0 {
			return string(b[:total]), nil
		}
		total += n
	}
	return "", fmt.Errorf("procfs: %s: %w: %d bytes or more", d.pathOf(file), errTooLong, size)
}

// malformed returns the error for a file with content that the kernel does not write.
func malformed(path, content string) error {
	const most = 200
	if len(content) > most {
		return fmt.Errorf("procfs: %s: unexpected content, %d bytes that start with %q", path, len(content), content[:most])
	}
	return fmt.Errorf("procfs: %s: unexpected content %q", path, content)
}

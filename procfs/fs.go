//go:build linux

package procfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// An FS is a mounted proc(5) file system.
type FS struct {
	mount string
}

// NewFS returns the file system at a mount point, usually /proc. Nothing is read yet.
func NewFS(mount string) FS { return FS{mount: mount} }

// A Namespace is what the file system shows of one network namespace, opened once: with
// hundreds of namespaces, the kernel's search for each path is what costs.
type Namespace struct {
	ipv4, net folder
}

// A folder is one that is open.
type folder struct {
	path string
	fd   int
}

// Namespace opens the network namespace of the calling thread, which must not change to
// another one as long as it is in use.
func (fs FS) Namespace() (*Namespace, error) {
	ipv4, err := openFolder(filepath.Join(fs.mount, "sys/net/ipv4"))
	if err != nil {
		return nil, err
	}
	net, err := openFolder(filepath.Join(fs.mount, "thread-self/net"))
	if err != nil {
		unix.Close(ipv4.fd)
		return nil, err
	}
	return &Namespace{ipv4: ipv4, net: net}, nil
}

// Close closes what Namespace opened.
func (ns *Namespace) Close() error {
	return errors.Join(unix.Close(ns.ipv4.fd), unix.Close(ns.net.fd))
}

func openFolder(path string) (folder, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return folder{}, fmt.Errorf("procfs: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	return folder{path: path, fd: fd}, nil
}

// name is the path of a file in the folder, for messages.
func (f folder) name(file string) string { return filepath.Join(f.path, file) }

// errTooLong means that a file does not fit into the buffer for it.
var errTooLong = errors.New("longer than expected")

// read returns the content of a file that is shorter than size bytes.
//
// It reads once. Some sysctls, ip_local_reserved_ports among them, answer the first
// read(2) only, with as much as fits: whoever reads on, as os.ReadFile does after
// 512 bytes, loses the rest without an error. What fills the buffer is therefore
// refused. A file of /proc/PID/net gives all of its content to one read that is large
// enough, too (seq_read).
func (f folder) read(file string, size int) (string, error) {
	b := make([]byte, size)
	fd, err := unix.Openat(f.fd, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("procfs: %w", &os.PathError{Op: "open", Path: f.name(file), Err: err})
	}
	n, err := unix.Read(fd, b)
	unix.Close(fd)
	if err != nil {
		return "", fmt.Errorf("procfs: %w", &os.PathError{Op: "read", Path: f.name(file), Err: err})
	}
	if n == len(b) {
		return "", fmt.Errorf("procfs: %s: %w: %d bytes or more", f.name(file), errTooLong, size)
	}
	return string(b[:n]), nil
}

// malformed is the error for a file whose content is not what the kernel writes.
func malformed(path, content string) error {
	const most = 200
	if len(content) > most {
		return fmt.Errorf("procfs: %s: unexpected content, %d bytes that begin with %q", path, len(content), content[:most])
	}
	return fmt.Errorf("procfs: %s: unexpected content %q", path, content)
}

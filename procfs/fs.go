package procfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// An FS is a mounted proc(5) file system.
type FS struct {
	mount string
}

// NewFS returns the file system at a mount point, usually /proc. Nothing is read
// yet.
func NewFS(mount string) FS { return FS{mount: mount} }

// sysctl is the path of a file of ip-sysctl.rst. Those of TCP hold for IPv6 too.
func (fs FS) sysctl(name string) string {
	return filepath.Join(fs.mount, "sys/net/ipv4", name)
}

// threadNet is the path of a file of the thread's network namespace.
func (fs FS) threadNet(name string) string {
	return filepath.Join(fs.mount, "thread-self/net", name)
}

// readSysctl returns the content of a file under /proc/sys that is shorter than
// size bytes.
//
// It reads once. Some sysctls, ip_local_reserved_ports among them, answer the first
// read(2) only, with as much as fits: whoever reads on, as os.ReadFile does after
// 512 bytes, loses the rest without an error. What fills the buffer is therefore
// refused.
func readSysctl(path string, size int) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("procfs: %w", err)
	}
	defer f.Close()

	b := make([]byte, size)
	n, err := f.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("procfs: %w", err)
	}
	if n == len(b) {
		return "", fmt.Errorf("procfs: %s: %d bytes or more, expected less", path, size)
	}
	return string(b[:n]), nil
}

// readFile returns the content of a file that any number of reads may make up.
func readFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("procfs: %w", err)
	}
	return string(b), nil
}

// malformed is the error for a file whose content is not what the kernel writes.
func malformed(path, content string) error {
	const most = 200
	if len(content) > most {
		return fmt.Errorf("procfs: %s: unexpected content, %d bytes that begin with %q", path, len(content), content[:most])
	}
	return fmt.Errorf("procfs: %s: unexpected content %q", path, content)
}

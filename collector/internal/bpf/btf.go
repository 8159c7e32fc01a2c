//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// CheckBTF returns an error unless the kernel describes its types (BTF), which programs look up the members of
// its structures in. It is fs.ErrNotExist if the kernel does not. Every user may read the description.
func CheckBTF() error {
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no description of the kernel's types (BTF), it needs CONFIG_DEBUG_INFO_BTF=y, and in a container the directory /sys/kernel/btf of the host: %w", err)
	}
	return err
}

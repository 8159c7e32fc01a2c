//go:build linux

package capability

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe" //nolint:depguard // capset(2) takes addresses

	"golang.org/x/sys/unix"
)

// Keep gives up all capabilities of the process except these. If there are any to give up, that is
// for good: no program that the process executes gets them back by being root's or by capabilities
// of its file.
//
// Each thread has capabilities of its own. Go can change those of all threads only in a program
// without cgo. In a program with cgo, Keep changes nothing and returns an error.
func Keep(kept ...Capability) error {
	had, err := get()
	if err != nil {
		return err
	}
	data := had
	for i := range data {
		data[i].Permitted &= mask(i, kept)
		data[i].Effective = data[i].Permitted
		data[i].Inheritable &= mask(i, kept)
	}
	if data == had {
		return nil
	}
	if err := onAllThreads(syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)); err != nil {
		return fmt.Errorf("capability: set no_new_privs: %w", err)
	}
	if had[0].Effective&(1<<unix.CAP_SETPCAP) != 0 {
		if err := clearBoundingSet(); err != nil {
			return fmt.Errorf("capability: clear the bounding set: %w", err)
		}
	}
	// Ambient capabilities end with the permitted ones.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	err = onAllThreads(syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0))
	if err != nil {
		return fmt.Errorf("capability: give up capabilities: %w", err)
	}
	return nil
}

// mask returns the bits of capabilities in one word of a set.
func mask(word int, capabilities []Capability) (bits uint32) {
	for _, c := range capabilities {
		if int(c/32) == word {
			bits |= 1 << (c % 32)
		}
	}
	return bits
}

// clearBoundingSet lets programs that the process executes have no capability. It needs CAP_SETPCAP.
func clearBoundingSet() error {
	for c := uintptr(0); ; c++ {
		err := onAllThreads(syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0))
		if errors.Is(err, unix.EINVAL) {
			return nil // the kernel has no more
		}
		if err != nil {
			return err
		}
	}
}

// onAllThreads returns the error of syscall.AllThreadsSyscall.
func onAllThreads(_, _ uintptr, errno syscall.Errno) error {
	switch errno {
	case 0:
		return nil
	case unix.ENOTSUP:
		return errors.New("not possible in a program with cgo: build it with CGO_ENABLED=0")
	default:
		return errno
	}
}

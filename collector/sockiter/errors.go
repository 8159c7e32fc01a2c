//go:build linux

package sockiter

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/bpf"
	"ephemeral_port_exporter/collector/internal/capability"
)

// Errors for errors.Is. Besides these, an expired deadline is os.ErrDeadlineExceeded and a
// refusal is fs.ErrPermission.
var (
	// ErrUnsupported means that this kernel lacks a feature that an Iterator needs.
	ErrUnsupported = errors.New("not supported by this kernel, it needs Linux 5.9 for 64 bits, CONFIG_BPF_SYSCALL and CONFIG_PROC_FS")

	// ErrMalformed means that the kernel returned something else than records.
	ErrMalformed = errors.New("malformed records")
)

// missingCapabilities returns an error that names the capabilities that the process lacks, or nil.
func missingCapabilities() error {
	missing, err := capability.Missing(capability.BPF, capability.Perfmon)
	if err != nil {
		return fmt.Errorf("sockiter: %w", err)
	}
	if len(missing) > 0 {
		return fmt.Errorf("sockiter: %s missing: a BPF iterator needs CAP_BPF and CAP_PERFMON: %w", capability.Join(missing), fs.ErrPermission)
	}
	return nil
}

// explain adds the likely cause to an error of the kernel, for a process that has the
// capabilities. tried is what the process tried to do.
func explain(tried string, err error) error {
	var errno unix.Errno
	var refused *ebpf.VerifierError
	switch {
	case errors.As(err, &refused) && len(refused.Log) > 0: // it says what it misses
		return fmt.Errorf("sockiter: %s: %w: %w", tried, ErrUnsupported, err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("sockiter: %s: %w: %w", tried, ErrUnsupported, err)
	case errors.As(err, &errno) && errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("sockiter: %s: forbidden in spite of the capabilities, by seccomp (in systemd SystemCallFilter=, in containers their profile), "+
			"a user namespace, the LSM policy, or before Linux 5.11 a limit of locked memory that other programs of this user have reached (%s): %w", tried, bpf.MemlockCure, errno)
	default:
		return fmt.Errorf("sockiter: %s: %w", tried, err)
	}
}

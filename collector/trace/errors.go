//go:build linux

package trace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/bpf"
	"ephemeral_port_exporter/collector/internal/capability"
)

// ErrUnsupported means that this kernel lacks a feature that a Probe needs.
var ErrUnsupported = errors.New("not supported by this kernel")

// missingCapabilities returns an error that names the capabilities that the process lacks, or nil.
func missingCapabilities() error {
	missing, err := capability.Missing(capability.BPF, capability.Perfmon)
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	if len(missing) > 0 {
		return fmt.Errorf("trace: %s missing: a BPF program on a tracepoint needs CAP_BPF and CAP_PERFMON: %w", capability.Join(missing), fs.ErrPermission)
	}
	return nil
}

// explain adds the likely cause to an error of the kernel, for a process that has the
// capabilities. tried is what the process tried to do.
func explain(tried string, err error) error {
	var errno unix.Errno
	var refused *ebpf.VerifierError
	switch {
	case errors.As(err, &refused) && lockedDown(): // programs may not read memory of the kernel
		return fmt.Errorf("trace: %s: %s: %w", tried, likelyCauses(), fs.ErrPermission)
	case errors.As(err, &refused) && len(refused.Log) > 0: // it says what it misses
		return fmt.Errorf("trace: %s: %w: %w", tried, ErrUnsupported, err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("trace: %s: %w: CONFIG_BPF_SYSCALL and CONFIG_BPF_EVENTS are needed: %w", tried, ErrUnsupported, err)
	case errors.As(err, &errno) && errors.Is(err, fs.ErrPermission):
		// Only the errno: the text of the library blames RLIMIT_MEMLOCK on all kernels.
		return fmt.Errorf("trace: %s: %s: %w", tried, likelyCauses(), errno)
	default:
		return fmt.Errorf("trace: %s: %w", tried, err)
	}
}

// likelyCauses names what can forbid an operation to a process that has the capabilities.
func likelyCauses() string {
	if lockedDown() {
		return "forbidden, the kernel is in lockdown mode confidentiality, see kernel_lockdown(7)"
	}
	return "forbidden in spite of the capabilities, by seccomp (in systemd SystemCallFilter=, in containers their profile), " +
		"a user namespace, the LSM policy, or before Linux 5.11 by a limit of locked memory below 4 MB (" + bpf.MemlockCure + ")"
}

// lockedDown reports whether the kernel is in lockdown mode confidentiality. Mode integrity forbids nothing that a Probe does.
func lockedDown() bool {
	modes, err := os.ReadFile("/sys/kernel/security/lockdown")
	return err == nil && strings.Contains(string(modes), "[confidentiality]")
}

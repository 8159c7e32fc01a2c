//go:build linux

package trace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/bpf"
	"ephemeral_port_exporter/collector/internal/capability"
)

// ErrUnsupported means that this kernel lacks a feature that a Probe needs.
var ErrUnsupported = errors.New("not supported by this kernel")

// missingCapabilities returns an error that names the capabilities that the process lacks, or nil.
// unreadable is the error of reading tracefs, or nil.
func missingCapabilities(unreadable error) error {
	needed := []capability.Capability{capability.BPF, capability.Perfmon}
	if errors.Is(unreadable, fs.ErrPermission) && os.Geteuid() != 0 {
		needed = append(needed, capability.DACReadSearch) // only root may read tracefs without it
	}
	missing, err := capability.Missing(needed...)
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	if len(missing) > 0 {
		return fmt.Errorf("trace: %s missing: a BPF program on a tracepoint needs CAP_BPF and CAP_PERFMON, and CAP_DAC_READ_SEARCH to read tracefs as another user than root: %w", capability.Join(missing), fs.ErrPermission)
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
		return fmt.Errorf("trace: %s: %w: %w", tried, ErrUnsupported, err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("trace: %s: %w: CONFIG_BPF_SYSCALL, CONFIG_BPF_EVENTS and CONFIG_PERF_EVENTS are needed: %w", tried, ErrUnsupported, err)
	case errors.As(err, &errno) && errors.Is(err, fs.ErrPermission):
		// Only the errno: the text of the library blames RLIMIT_MEMLOCK on all kernels.
		return fmt.Errorf("trace: %s: %s: %w", tried, likelyCauses(), errno)
	default:
		return fmt.Errorf("trace: %s: %w", tried, err)
	}
}

// attaching is what explain says for errors of perf events.
const attaching = "attach to tracepoint " + eventGroup + ":" + eventName

// explainEvent is explain for an error of perf_event_open(2).
func explainEvent(err error) error {
	const sysctl = "/proc/sys/kernel/perf_event_paranoid"
	b, readErr := os.ReadFile(sysctl)
	level, parseErr := strconv.Atoi(strings.TrimSpace(string(b)))
	if errors.Is(err, unix.EACCES) && readErr == nil && parseErr == nil && level > mostParanoid {
		return fmt.Errorf("trace: %s: kernel.perf_event_paranoid is %d, where kernels of some distributions want CAP_SYS_ADMIN; "+
			"with %d (sysctl -w kernel.perf_event_paranoid=%d) CAP_PERFMON is enough: %w", attaching, level, mostParanoid, mostParanoid, err)
	}
	return explain(attaching, err)
}

// mostParanoid is the greatest kernel.perf_event_paranoid of the mainline kernel, see
// Documentation/admin-guide/sysctl/kernel.rst. Debian and others have greater ones.
const mostParanoid = 2

// likelyCauses names what can forbid an operation to a process that has the capabilities.
func likelyCauses() string {
	if lockedDown() {
		return "forbidden, the kernel is in lockdown mode confidentiality, see kernel_lockdown(7)"
	}
	return "forbidden in spite of the capabilities, by seccomp (in systemd SystemCallFilter=, in containers their profile), " +
		"a user namespace, the LSM policy, or before Linux 5.11 by a limit of locked memory below 2 MB (" + bpf.MemlockCure + ")"
}

// lockedDown reports whether the kernel is in lockdown mode confidentiality. If the kernel was
// booted in it, tracefs is empty. Mode integrity forbids nothing that a Probe does.
func lockedDown() bool {
	modes, err := os.ReadFile("/sys/kernel/security/lockdown")
	return err == nil && strings.Contains(string(modes), "[confidentiality]")
}

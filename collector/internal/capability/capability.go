//go:build linux

package capability

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// A Capability is a number from linux/capability.h.
type Capability int

// The capabilities that the exporter may need.
const (
	DACReadSearch  Capability = unix.CAP_DAC_READ_SEARCH
	NetBindService Capability = unix.CAP_NET_BIND_SERVICE
	NetAdmin       Capability = unix.CAP_NET_ADMIN
	SysPtrace      Capability = unix.CAP_SYS_PTRACE
	SysAdmin       Capability = unix.CAP_SYS_ADMIN
	Perfmon        Capability = unix.CAP_PERFMON // Linux 5.8
	BPF            Capability = unix.CAP_BPF     // Linux 5.8
)

// String returns the name in linux/capability.h.
func (c Capability) String() string {
	switch c {
	case DACReadSearch:
		return "CAP_DAC_READ_SEARCH"
	case NetBindService:
		return "CAP_NET_BIND_SERVICE"
	case NetAdmin:
		return "CAP_NET_ADMIN"
	case SysPtrace:
		return "CAP_SYS_PTRACE"
	case SysAdmin:
		return "CAP_SYS_ADMIN"
	case Perfmon:
		return "CAP_PERFMON"
	case BPF:
		return "CAP_BPF"
	default:
		return fmt.Sprintf("capability %d", int(c))
	}
}

// Missing returns the needed capabilities that are not in the effective set of the calling
// thread, in the given order.
func Missing(needed ...Capability) ([]Capability, error) {
	data, err := get()
	if err != nil {
		return nil, err
	}
	has := func(c Capability) bool { return isEffective(data, c) }
	var missing []Capability
	for _, c := range needed {
		// CAP_SYS_ADMIN includes both: bpf_capable() and perfmon_capable() of the kernel.
		included := (c == BPF || c == Perfmon) && has(SysAdmin)
		if !has(c) && !included {
			missing = append(missing, c)
		}
	}
	return missing, nil
}

// Has reports whether a capability is in the effective set of the calling thread, by itself.
func Has(c Capability) (bool, error) {
	data, err := get()
	return err == nil && isEffective(data, c), err
}

// isEffective reports whether a capability is in the effective set.
func isEffective(data [2]unix.CapUserData, c Capability) bool {
	return data[c/32].Effective&(1<<(c%32)) != 0
}

// get returns the capabilities of the calling thread.
func get() (data [2]unix.CapUserData, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return data, fmt.Errorf("capability: get capabilities: %w", err)
	}
	return data, nil
}

// Join returns the names in the form "A, B and C".
func Join(capabilities []Capability) string {
	var names []string
	for _, c := range capabilities {
		names = append(names, c.String())
	}
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

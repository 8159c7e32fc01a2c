//go:build linux

package scan

import (
	"fmt"
	"os"
	"slices"

	"ephemeral_port_exporter/collector/cilium"
	"ephemeral_port_exporter/collector/internal/capability"
)

// neededCapabilities are those without which a scan fails.
var neededCapabilities = map[Scope][]capability.Capability{
	ScopeNamed: {capability.SysAdmin},
	ScopeAll:   {capability.SysAdmin, capability.SysPtrace},
}

// checkCapabilities returns an error that names the capabilities that the scope needs and the
// process does not have.
func checkCapabilities(scope Scope) error {
	missing, err := capability.Missing(neededCapabilities[scope]...)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return &PermanentError{fmt.Errorf("--namespaces=%s enters other network namespaces and needs %s: grant this to the process, or run with --namespaces=%s",
			scope, capability.Join(missing), ScopeSelf)}
	}
	return nil
}

// DropCapabilities gives up the capabilities that scans do not use, for all threads and for good.
// Until the process listens, it keeps CAP_NET_BIND_SERVICE too, for ports below 1024.
//
// The error says why the process still has them. Scans work all the same.
func (s *Scanner) DropCapabilities(listening bool) error {
	kept := slices.Clone(neededCapabilities[s.cfg.Scope])
	if s.cfg.othersInScope() {
		// Not needed, but with it, a scan finds namespaces in the directories of other users, and
		// the command of their processes.
		kept = append(kept, capability.DACReadSearch)
	}
	if s.cfg.SNAT {
		kept = append(kept, capability.NetAdmin)
		// The others are for the maps of Cilium, whose agent can start later: see cilium.Open. Root owns them.
		if os.Geteuid() != 0 && s.cfg.BPFFS != "" {
			kept = append(kept, capability.DACReadSearch)
		}
		if s.kernel.before(5, 19) && cilium.CheckFileSystem(s.cfg.BPFFS) == nil {
			kept = append(kept, capability.BPF)
		}
	}
	if s.cfg.Exact || s.cfg.Trace {
		// Before Linux 5.19, bpf(2) asks for it also to open an iterator or run a program that is
		// loaded, which frees slots. Alone, it gives no access to the memory of the kernel.
		kept = append(kept, capability.BPF)
		own, err := capability.Has(capability.BPF)
		if err != nil {
			return err
		}
		if !own && s.kernel.before(5, 19) {
			kept = append(kept, capability.SysAdmin) // which includes it
		}
	}
	if !listening {
		kept = append(kept, capability.NetBindService)
	}
	return capability.Keep(kept...)
}

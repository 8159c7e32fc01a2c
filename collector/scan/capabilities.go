//go:build linux

package scan

import (
	"fmt"

	"ephemeral_port_exporter/collector/internal/capability"
)

// checkCapabilities returns an error that names the capabilities that the scope needs and the
// process does not have.
func checkCapabilities(scope Scope) error {
	needed := map[Scope][]capability.Capability{
		ScopeNamed: {capability.SysAdmin},
		ScopeAll:   {capability.SysAdmin, capability.SysPtrace},
	}
	missing, err := capability.Missing(needed[scope]...)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("--namespaces=%s enters other network namespaces and needs %s: grant this to the process, or run with --namespaces=%s",
			scope, capability.Join(missing), ScopeSelf)
	}
	return nil
}

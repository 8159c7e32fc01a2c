package netns

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// MissingCapabilities returns the names of those that the process does not have in effect,
// of capabilities(7) by number.
func MissingCapabilities(needed ...int) ([]string, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, fmt.Errorf("netns: get capabilities: %w", err)
	}
	names := map[int]string{unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE"}
	var missing []string
	for _, c := range needed {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			missing = append(missing, names[c])
		}
	}
	return missing, nil
}

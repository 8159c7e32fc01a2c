//go:build linux

package scan

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A version is that of the kernel, without its patches: distributions take changes from later ones. The zero
// value is that of a kernel that does not say it, and earlier than any.
type version struct{ major, minor int }

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

// kernelVersion returns the version that uname(2) says.
func kernelVersion() (version, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return version{}, fmt.Errorf("read the version of the kernel with uname: %w", err)
	}
	return parseVersion(unix.ByteSliceToString(uts.Release[:])), nil
}

// parseVersion parses a release, as 6.1.0-49-cloud-amd64.
func parseVersion(release string) (v version) {
	if _, err := fmt.Sscanf(release, "%d.%d", &v.major, &v.minor); err != nil {
		return version{}
	}
	return v
}

// before reports whether v is earlier than a version.
func (v version) before(major, minor int) bool {
	return v.major < major || v.major == major && v.minor < minor
}

//go:build linux

package procfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// envInside marks the test binary that inNamespace started.
const envInside = "PROCFS_TEST_INSIDE"

// inNamespace runs the calling test again in a new process. That process has a new network namespace
// and the right to change its sysctls. inNamespace reports whether the caller is that process. If
// the kernel forbids namespaces, the test is skipped, except in CI.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envInside) != "" {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), envInside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC)) && os.Getenv("CI") == "" {
		t.Skipf("the kernel forbids this user a network namespace: %v", err)
	}
	if err != nil {
		t.Errorf("in a network namespace: %v\n%s", err, out)
	}
	return false
}

// setSysctl sets a file under /proc/sys/net.
func setSysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

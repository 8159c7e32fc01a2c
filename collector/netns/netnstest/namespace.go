//go:build linux

package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// envInside marks the re-executed test binary.
const envInside = "NETNSTEST_INSIDE"

// Main runs the tests of a package in a new network namespace, set up like that of New, and in a
// new mount namespace without the named namespaces of the host. A user who is not root also gets a new user namespace. Main returns the
// exit code for TestMain.
//
// It first builds the programs that the tests run. It does so outside of the namespace, which
// has no network for the download of modules.
func Main(m *testing.M, programs ...Program) int {
	if spec := os.Getenv(envHold); spec != "" {
		return holdMain(spec)
	}
	switch os.Getenv(envInside) {
	case "new":
		err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		if err == nil {
			err = hideNamed()
		}
		if err == nil {
			err = setUp()
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "netnstest: the tests need new namespaces: run them as root, or allow user namespaces: %v\n", err)
			return 1
		}
		os.Setenv(envInside, "ready") // for the workers that fuzzing starts
		return m.Run()
	case "ready":
		return m.Run()
	}

	if os.Getenv(envPrograms) == "" {
		dir, err := build(programs)
		defer os.RemoveAll(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, "netnstest:", err)
			return 1
		}
		os.Setenv(envPrograms, dir)
	}

	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), envInside+"=new")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	// Pdeathsig is sent when the parent's thread ends, not when its process ends.
	runtime.LockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	default:
		// The tests must not run on the host: they listen on fixed ports and set sysctls.
		fmt.Fprintf(os.Stderr, "netnstest: the tests need new namespaces: run them as root, or allow user namespaces: %v\n", err)
		return 1
	}
}

// hideNamed hides the named namespaces of the host from the tests: scans would find them.
func hideNamed() error {
	for _, dir := range []string{"/run/netns", "/run/docker/netns"} {
		err := unix.Mount("tmpfs", dir, "tmpfs", 0, "")
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	return nil
}

// New moves the calling test to a new network namespace, which ends with the test. Processes
// that the test starts are in it, and sockets that the test opens belong to it. Goroutines that
// the test starts are outside.
//
// Inside, all of 127.0.0.0/8, ::1, 198.51.100.0/24, 203.0.113.0/24 and 2001:db8::/64 is local:
// a listener can have any of these addresses. Packets to 192.0.2.0/24 are lost.
//
// A test that expects a port to be free as soon as its socket is closed must not run in parallel with others: a process
// that another test starts has copies of all file descriptors until it executes its program.
func New(tb testing.TB) {
	tb.Helper()
	// The thread is never unlocked: the runtime ends it together with the goroutine. The
	// namespace ends with its last thread.
	runtime.LockOSThread()

	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Fatalf("new network namespace: %v", err)
	}
	if err := setUp(); err != nil {
		tb.Fatal(err)
	}
}

// setUp gives a new namespace its addresses.
func setUp() error {
	if err := ip(
		"link set lo up",
		"addr add 198.51.100.1/24 dev lo",
		"addr add 203.0.113.1/24 dev lo",
		"addr add 2001:db8::1/128 dev lo nodad",
		"addr add 2001:db8::2/128 dev lo nodad",
		"route add local 2001:db8::/64 dev lo",
		"route add 192.0.2.0/24 dev lo",
	); err != nil {
		return err
	}
	return sysctl("ipv6/ip_nonlocal_bind", "1")
}

// IP runs commands of ip(8) in the test's namespace.
func IP(tb testing.TB, commands ...string) {
	tb.Helper()
	if err := ip(commands...); err != nil {
		tb.Fatal(err)
	}
}

func ip(commands ...string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch %q: %w: %s", commands, err, out)
	}
	return nil
}

// Sysctl sets a file under /proc/sys/net of the test's namespace.
func Sysctl(tb testing.TB, name, value string) {
	tb.Helper()
	if err := sysctl(name, value); err != nil {
		tb.Fatal(err)
	}
}

func sysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

//go:build linux

package main

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// unprivileged lets a command run with these capabilities only. It runs as uid 65534, or as the only
// uid if the user namespace has only one. Other processes of the test may be restricted too.
func unprivileged(t *testing.T, cmd *exec.Cmd, capabilities ...uintptr) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Fields(string(b))[2] == "1" {
		boundCapabilities(t, capabilities...)
		return
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
		AmbientCaps: capabilities,
	}
}

// boundCapabilities limits the capabilities of processes that this thread starts. With uid 0, they
// have exactly these.
func boundCapabilities(t *testing.T, capabilities ...uintptr) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		if slices.Contains(capabilities, c) {
			continue
		}
		// EINVAL: this kernel does not have it.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Fatal(err)
		}
	}
}

// startSleep runs a process in a network namespace of its own until the test ends, and
// returns a part of that namespace's series.
func startSleep(t *testing.T) (info string) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "ns/net"), &st); err != nil {
		t.Fatal(err)
	}
	return `inode="` + strconv.FormatUint(st.Ino, 10) + `",netns="netns-`
}

// openTempDir returns a temporary directory that every user may search.
func openTempDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for parent := dir; parent != filepath.Clean(os.TempDir()); parent = filepath.Dir(parent) {
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestNamespacesCapabilities checks that the documented capabilities are enough, and that the error
// names each one that is missing.
func TestNamespacesCapabilities(t *testing.T) {
	dir := openTempDir(t)
	netnstest.Mount(t, filepath.Join(dir, "mounted"), nil)
	ofProcess := startSleep(t)

	const admin, ptrace = unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE
	const mounted = `ephemeral_port_collect_success{netns="mounted"} 1`
	tests := []struct {
		name         string
		scope        string
		capabilities []uintptr
		missing      string // or it runs
		want         []string
	}{
		{"self", "self", nil, "", []string{`ephemeral_port_collect_success{netns="self"} 1`}},
		{"named", "named", []uintptr{admin}, "", []string{mounted}},
		{"named without", "named", []uintptr{ptrace}, "needs CAP_SYS_ADMIN:", nil},
		{"all", "all", []uintptr{admin, ptrace}, "", []string{mounted, ofProcess}},
		{"all without ptrace", "all", []uintptr{admin}, "needs CAP_SYS_PTRACE:", nil},
		{"all without admin", "all", []uintptr{ptrace}, "needs CAP_SYS_ADMIN:", nil},
		{"all without any", "all", nil, "needs CAP_SYS_ADMIN and CAP_SYS_PTRACE:", nil},
	}
	if !netnstest.HasCookies(t) {
		tests[3].want = []string{mounted} // the other one has no unique name
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			address := "127.0.0.1:" + strconv.Itoa(10160+i)
			args := []string{"--namespaces=" + tt.scope, "--web.listen-address=" + address}
			if tt.scope != "self" {
				args = append(args, "--namespaces.dir="+dir)
			}
			cmd := command(t, args...)
			unprivileged(t, cmd, tt.capabilities...)
			if tt.missing != "" {
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != codeUnusable || !strings.Contains(string(out), tt.missing) {
					t.Errorf("ended with %v, want exit status 78 and %q:\n%s", err, tt.missing, out)
				}
				return
			}
			e := start(t, cmd, "http://"+address)
			_, metrics := e.get(t, "/metrics")
			for _, want := range tt.want {
				if !strings.Contains(metrics, want) {
					t.Errorf("no %s", want)
				}
			}
			if got := strings.Contains(metrics, "ephemeral_port_namespaces{"); got != (tt.scope != "self") {
				t.Errorf("outcomes of namespaces: %v", got)
			}
		})
	}
}

// TestNamespacesProcfs mounts procfs at another path, as in a container, with and without hidepid=2.
func TestNamespacesProcfs(t *testing.T) {
	netnstest.Cookies(t)
	ofProcess := startSleep(t)
	for i, tt := range []struct {
		name  string
		mount func(path string) error
	}{
		{"bound", func(path string) error { return unix.Mount("/proc", path, "", unix.MS_BIND|unix.MS_REC, "") }},
		{"hidepid=2", func(path string) error { return unix.Mount("proc", path, "proc", 0, "hidepid=2") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := openTempDir(t)
			address := "127.0.0.1:" + strconv.Itoa(10170+i)
			cmd := command(t, "--namespaces=all", "--path.procfs="+host, "--web.listen-address="+address)
			unprivileged(t, cmd, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE)
			err := tt.mount(host)
			if errors.Is(err, unix.EPERM) && os.Getenv("CI") == "" {
				t.Skip("the kernel forbids this user to mount procfs")
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(host, unix.MNT_DETACH) })

			e := start(t, cmd, "http://"+address)
			_, metrics := e.get(t, "/metrics")
			if !strings.Contains(metrics, ofProcess) {
				t.Errorf("the namespace of the process is not there:\n%s", e.log)
			}
		})
	}
}

// TestNamespacesUserNamespace checks that the exporter does not start in a user namespace that has no
// rights on other network namespaces.
func TestNamespacesUserNamespace(t *testing.T) {
	dir := openTempDir(t)
	netnstest.Mount(t, filepath.Join(dir, "mounted"), nil)
	for scope, want := range map[string]string{
		"named": "setns: operation not permitted",
		"all":   "processes may not be examined",
	} {
		t.Run(scope, func(t *testing.T) {
			args := []string{"--namespaces=" + scope, "--web.listen-address=127.0.0.1:10175"}
			if scope == "named" {
				args = append(args, "--namespaces.dir="+dir)
			}
			cmd := command(t, args...)
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  unix.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
			}
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != codeUnusable {
				t.Errorf("ended with %v, want exit status 78", err)
			}
			for _, want := range []string{want, "--namespaces=" + scope + " reaches no other network namespace", "run in the user namespace of the host"} {
				if !strings.Contains(string(out), want) {
					t.Errorf("did not say %q:\n%s", want, out)
				}
			}
		})
	}
}

// TestNamespacesDirMissing checks that a missing directory is logged at the start, and that the
// exporter runs.
func TestNamespacesDirMissing(t *testing.T) {
	const address = "127.0.0.1:10176"
	e := start(t, command(t, "--namespaces=named", "--namespaces.dir=/nonexistent", "--web.listen-address="+address), "http://"+address)
	for range 2 {
		_, metrics := e.get(t, "/metrics")
		if got := sample(t, metrics, "ephemeral_port_namespaces_discovery_failures "); got != 1 {
			t.Errorf("%v failures, want 1", got)
		}
		if got := sample(t, metrics, `ephemeral_port_namespaces{outcome="failed"} `); got != 0 {
			t.Errorf("%v failed namespaces, want 0", got)
		}
	}
	if log := e.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, "place=/nonexistent") {
		t.Errorf("want one warning that names the directory:\n%s", log)
	}
}

// TestNamespacesNoCookie runs the exporter on a kernel before Linux 5.14, which has no cookies of
// network namespaces: those with a name are read, again and again.
func TestNamespacesNoCookie(t *testing.T) {
	dir := t.TempDir()
	netnstest.Mount(t, filepath.Join(dir, "named"), func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
		c := netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.7:80")}
		c.Hold(t, 60)
	})
	// getsockopt(…, SOL_SOCKET, SO_NETNS_COOKIE, …)
	filterCalls(t, []unix.SockFilter{
		{Code: loadWord, K: 0},
		{Code: jumpIf, K: unix.SYS_GETSOCKOPT, Jf: 3},
		{Code: loadWord, K: 32},
		{Code: jumpIf, K: unix.SO_NETNS_COOKIE, Jf: 1},
		{Code: ret, K: seccompErrno | uint32(unix.ENOPROTOOPT)},
		{Code: ret, K: seccompAllow},
	})
	const address = "127.0.0.1:10177"
	e := start(t, command(t, "--namespaces=named", "--namespaces.dir="+dir, "--web.listen-address="+address), "http://"+address)
	for range 3 {
		_, metrics := e.get(t, "/metrics")
		if got := sample(t, metrics, `ephemeral_port_max_utilization_ratio{netns="named"} `); got != 0.6 {
			t.Errorf("utilization %v, want 0.6", got)
		}
	}
}

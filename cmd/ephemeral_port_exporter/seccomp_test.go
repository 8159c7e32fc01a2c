//go:build linux

package main

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/web"
)

// A seccompProfile is a profile in the format of the OCI runtime specification, with the includes of
// Docker.
type seccompProfile struct {
	DefaultAction   string        `json:"defaultAction"`
	DefaultErrnoRet uint32        `json:"defaultErrnoRet"`
	Syscalls        []seccompRule `json:"syscalls"`
}

// A seccompRule applies to some system calls. It needs the capabilities, if any.
type seccompRule struct {
	Comment  string       `json:"comment"`
	Names    []string     `json:"names"`
	Action   string       `json:"action"`
	ErrnoRet uint32       `json:"errnoRet"`
	Args     []seccompArg `json:"args"`
	Includes struct {
		Caps []string `json:"caps"`
	} `json:"includes"`
}

// A seccompArg is a condition on an argument.
type seccompArg struct {
	Index    uint32 `json:"index"`
	Value    uint32 `json:"value"`
	ValueTwo uint32 `json:"valueTwo"`
	Op       string `json:"op"`
}

// readSeccompProfile returns the profile that we ship.
func readSeccompProfile(t *testing.T) seccompProfile {
	t.Helper()
	f, err := os.Open("../../deploy/seccomp/ephemeral_port_exporter.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	decoder := json.NewDecoder(f)
	decoder.DisallowUnknownFields()
	var p seccompProfile
	if err := decoder.Decode(&p); err != nil {
		t.Fatal(err)
	}
	return p
}

// measured returns the rules for what the exporter calls with these capabilities.
func (p seccompProfile) measured(capabilities ...string) []seccompRule {
	return slices.DeleteFunc(slices.Clone(p.Syscalls), func(r seccompRule) bool {
		forbidden := slices.ContainsFunc(r.Includes.Caps, func(c string) bool { return !slices.Contains(capabilities, c) })
		return forbidden || strings.HasPrefix(r.Comment, "What runc may call")
	})
}

// systemCalls returns the numbers of the system calls of an architecture.
func systemCalls(t *testing.T, arch string) map[string]uint32 {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "golang.org/x/sys/unix").Output()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "zsysnum_linux_"+arch+".go"))
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]uint32{}
	for _, m := range regexp.MustCompile(`(?m)^\tSYS_(\w+) += (\d+)$`).FindAllStringSubmatch(string(b), -1) {
		n, err := strconv.ParseUint(m[2], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		numbers[strings.ToLower(m[1])] = uint32(n)
	}
	return numbers
}

// filterOf returns the filter for the rules. Instead of failing, any other system call ends the
// process: Go's runtime then prints the stack. See seccomp(2) for struct seccomp_data.
func filterOf(t *testing.T, rules []seccompRule) []unix.SockFilter {
	t.Helper()
	const (
		and           = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		jumpIfGreater = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
		seccompTrap   = 0x00030000 // SECCOMP_RET_TRAP
	)
	loadNumber := unix.SockFilter{Code: loadWord, K: 0}
	numbers := systemCalls(t, runtime.GOARCH)
	filter := []unix.SockFilter{loadNumber}
	for _, r := range rules {
		action := map[string]uint32{"SCMP_ACT_ALLOW": seccompAllow, "SCMP_ACT_ERRNO": seccompErrno | r.ErrnoRet}[r.Action]
		body, understood := []unix.SockFilter{{Code: ret, K: action}}, action != 0
		for _, a := range slices.Backward(r.Args) {
			low, behind := unix.SockFilter{Code: loadWord, K: 16 + 8*a.Index}, uint8(len(body)) // of the argument, little endian
			switch a.Op {
			case "SCMP_CMP_EQ":
				body = append([]unix.SockFilter{low, {Code: jumpIf, K: a.Value, Jf: behind}}, body...)
			case "SCMP_CMP_LE":
				body = append([]unix.SockFilter{low, {Code: jumpIfGreater, K: a.Value, Jt: behind}}, body...)
			case "SCMP_CMP_MASKED_EQ":
				body = append([]unix.SockFilter{low, {Code: and, K: a.Value}, {Code: jumpIf, K: a.ValueTwo, Jf: behind}}, body...)
			default:
				understood = false
			}
		}
		if !understood {
			t.Fatalf("rule %+v is not understood", r)
		}
		body = append(body, loadNumber)
		for _, name := range r.Names {
			if n, ok := numbers[name]; ok {
				filter = append(filter, unix.SockFilter{Code: jumpIf, K: n, Jf: uint8(len(body))})
				filter = append(filter, body...)
			}
		}
	}
	return append(filter, unix.SockFilter{Code: ret, K: seccompTrap})
}

// envFilter makes the test binary filter its system calls and execute its arguments.
const envFilter = "SECCOMP_FILTER"

// filtered lets a command run with a filter from its first instruction on.
func filtered(t *testing.T, cmd *exec.Cmd, filter []unix.SockFilter) {
	t.Helper()
	spec, err := json.Marshal(filter)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args = append([]string{"filtered", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/proc/self/exe"
	cmd.Env = append(cmd.Environ(), envFilter+"="+string(spec))
}

// filteredMain is the process that a command of filtered starts.
func filteredMain(spec string) error {
	var filter []unix.SockFilter
	if err := json.Unmarshal([]byte(spec), &filter); err != nil {
		return err
	}
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())) // see sd_listen_fds(3)
	set := setFilter
	if os.Getenv(envFaults) != "" {
		set = setFaultFilter
	}
	if err := set(filter); err != nil {
		return err
	}
	return syscall.Exec(os.Args[1], os.Args[1:], os.Environ())
}

// TestSystemCalls runs the exporter in each mode, from its start to SIGTERM, with no other system
// calls than those of the profile that we ship.
func TestSystemCalls(t *testing.T) {
	profile := readSeccompProfile(t)
	cgroups, owned := ownedConnections(t, "192.0.2.3:443")
	dir := openTempDir(t)
	netnstest.Mount(t, filepath.Join(dir, "mounted"), func() {
		netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:443")}.Hold(t, 500) // not idle
	})
	certificate(t, dir)
	config := filepath.Join(dir, "web.yml")
	if err := os.WriteFile(config, []byte("tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"+
		"basic_auth_users:\n  prometheus: $2a$04$JxYPWr0djqEs5o6UGuZP3OggPDos30.vkpvW2mbiMc3wreLmtsWmK # bcrypt of \"secret\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"server.crt", "server.key"} {
		if err := os.Chmod(filepath.Join(dir, file), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	const admin, ptrace, search, bpf, perfmon = unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH, unix.CAP_BPF, unix.CAP_PERFMON
	const netAdmin = unix.CAP_NET_ADMIN
	trackFlows(t)
	tests := []struct {
		name         string
		args         []string
		capabilities []uintptr // of uid 65534
		root         bool      // with all capabilities
		includes     []string  // of the rules
		cgo          bool
	}{
		{name: "self"},
		{name: "self, cgo", cgo: true},
		{name: "self, root", root: true},
		{name: "TLS and password", args: []string{"--web.config.file=" + config}},
		{name: "TLS and password, cgo", args: []string{"--web.config.file=" + config}, cgo: true},
		{name: "systemd socket", args: []string{"--web.systemd-socket"}},
		{name: "named", args: []string{"--namespaces=named", "--namespaces.dir=" + dir}, capabilities: []uintptr{admin}, includes: []string{"CAP_SYS_ADMIN"}},
		{name: "all", args: []string{"--namespaces=all", "--namespaces.dir=" + dir}, capabilities: []uintptr{admin, ptrace}, includes: []string{"CAP_SYS_ADMIN"}},
		{name: "all, root", args: []string{"--namespaces=all", "--namespaces.dir=" + dir}, root: true, includes: []string{"CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH"}},
		{name: "exact", args: []string{"--exact"}, capabilities: []uintptr{bpf, perfmon}, includes: []string{"CAP_BPF"}},
		{name: "exact, root", args: []string{"--exact"}, root: true, includes: []string{"CAP_BPF"}},
		{name: "exact, no CAP_BPF", args: []string{"--exact"}, capabilities: []uintptr{admin}, includes: []string{"CAP_SYS_ADMIN"}},
		{name: "connect failures", args: []string{"--trace"}, capabilities: []uintptr{bpf, perfmon}, includes: []string{"CAP_BPF"}},
		{name: "connect failures, root", args: []string{"--trace"}, root: true, includes: []string{"CAP_BPF"}},
		{name: "connect failures, no CAP_BPF", args: []string{"--trace"}, capabilities: []uintptr{admin}, includes: []string{"CAP_SYS_ADMIN"}},
		{name: "snat", args: []string{"--snat"}, capabilities: []uintptr{netAdmin}, includes: []string{"CAP_NET_ADMIN"}},
		{name: "snat, root", args: []string{"--snat"}, root: true, includes: []string{"CAP_NET_ADMIN"}},
		{name: "snat, all", args: []string{"--snat", "--namespaces=all", "--namespaces.dir=" + dir}, capabilities: []uintptr{admin, ptrace, netAdmin}, includes: []string{"CAP_SYS_ADMIN", "CAP_NET_ADMIN"}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			counts := slices.Contains(tt.args, "--trace")
			if counts {
				netnstest.LockTraces(t)
			}
			if slices.Contains(tt.args, "--exact") {
				netnstest.HostRoot(t)
			}
			address := "127.0.0.1:" + strconv.Itoa(10260+i)
			cmd := command(t, append(tt.args, "--path.cgroup="+cgroups, "--collect.timeout=30s", "--destination.min-ports=10", "--web.listen-address="+address)...)
			if tt.cgo {
				cmd.Path = cgoProgram(t)
			}
			filtered(t, cmd, filterOf(t, profile.measured(tt.includes...)))
			if !tt.root {
				unprivileged(t, cmd, tt.capabilities...)
			}
			url := "http://" + address
			if slices.Contains(tt.args, "--web.config.file="+config) {
				url = "https://prometheus:secret@" + address
			}
			if slices.Contains(tt.args, "--web.systemd-socket") {
				listener, err := net.Listen("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				defer listener.Close()
				socket, err := listener.(*net.TCPListener).File()
				if err != nil {
					t.Fatal(err)
				}
				defer socket.Close()
				cmd.ExtraFiles = []*os.File{socket}
				cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
			}
			e := start(t, cmd, url)
			scrapeHard(t, e, address, owned)
			if counts {
				failToConnect(t, "192.0.2.1:7131", 3)
				scrapeHard(t, e, address, owned)
				if _, metrics := e.get(t, "/metrics"); strings.Contains(metrics, "\n"+unattributedBinds+" ") != countsBinds(t) {
					t.Errorf("failed binds are not counted:\n%s", e.log)
				}
			}
			if slices.Contains(tt.args, "--snat") {
				if _, metrics := e.get(t, "/metrics"); !strings.Contains(metrics, snatCollected) {
					t.Errorf("no flows:\n%s", metrics)
				}
			}
			if err := e.stop(t); err != nil {
				t.Errorf("SIGTERM: %v, want exit status 0", err)
			}
			if t.Failed() {
				t.Errorf("log:\n%s", e.log)
			}
		})
	}
}

// scrapeHard makes the exporter run through its paths: many threads, TLS, HTTP/2, clients that
// misbehave, signals. The metrics must contain a part of a series.
func scrapeHard(t *testing.T, e *exporter, address, series string) {
	t.Helper()
	for _, withHTTP2 := range []bool{false, true} {
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: withHTTP2, DisableKeepAlives: !withHTTP2,
		}}
		for range 20 {
			resp, err := client.Get(e.url + "/metrics")
			if err != nil {
				t.Fatalf("%v:\n%s", err, e.log)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || sample(t, string(body), `ephemeral_port_collect_success{netns="self"} `) != 1 || !strings.Contains(string(body), series) ||
				strings.Contains(string(body), "ephemeral_port_collect_success{netns=\"mounted\"} 0") {
				t.Fatalf("%v:\n%s", err, body)
			}
			if sample(t, string(body), "process_open_fds ") < 5 {
				t.Error("the exporter does not know its descriptors")
			}
		}
		for _, path := range []string{"/", "/?format=html", web.RunbookPath} {
			resp, err := client.Get(e.url + path)
			if err != nil {
				t.Fatalf("%s: %v:\n%s", path, err, e.log)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", path, resp.Status)
			}
		}
		client.CloseIdleConnections()
	}
	hostile(t, address, 30, func(conn net.Conn) error {
		_, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\n")
		return err
	})
	hostile(t, address, 30, func(conn net.Conn) error {
		_ = conn.(*net.TCPConn).SetLinger(0) // RST
		return conn.Close()
	})
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGSTOP, unix.SIGCONT} {
		if err := e.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSystemCallsFilter checks that a system call that is not in the profile ends the exporter.
func TestSystemCallsFilter(t *testing.T) {
	dir := openTempDir(t)
	netnstest.Mount(t, filepath.Join(dir, "mounted"), nil)
	cmd := command(t, "--namespaces=named", "--namespaces.dir="+dir, "--web.listen-address=127.0.0.1:10259")
	filtered(t, cmd, filterOf(t, readSeccompProfile(t).measured())) // without CAP_SYS_ADMIN
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "SIGSYS: bad system call") || !strings.Contains(string(out), "Setns") {
		t.Errorf("ended with %v:\n%s", err, out)
	}
}

// TestTakenOver tries, with the profile of each mode, calls of code that has taken over the exporter.
func TestTakenOver(t *testing.T) {
	const admin, bpf, netAdmin = "CAP_SYS_ADMIN", "CAP_BPF", "CAP_NET_ADMIN"
	// If the profile allows a call, it fails all the same: its arguments are wrong, except those of the rules.
	const wrong, datagram = ^uintptr(0), unix.SOCK_DGRAM | unix.SOCK_CLOEXEC
	calls := []struct {
		name       string
		number     uintptr
		args       [3]uintptr
		capability string // that allows it, "none" if nothing does; CAP_SYS_ADMIN does what CAP_BPF does
	}{
		{"TCP", unix.SYS_SOCKET, [3]uintptr{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC, unix.IPPROTO_TCP}, ""},
		{"SCTP", unix.SYS_SOCKET, [3]uintptr{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, "none"},
		{"UDP-Lite over IPv6", unix.SYS_SOCKET, [3]uintptr{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE}, "none"},
		{"sock_diag", unix.SYS_SOCKET, [3]uintptr{unix.AF_NETLINK, wrong, unix.NETLINK_SOCK_DIAG}, ""},
		{"netfilter", unix.SYS_SOCKET, [3]uintptr{unix.AF_NETLINK, wrong, unix.NETLINK_NETFILTER}, netAdmin},
		{"rtnetlink", unix.SYS_SOCKET, [3]uintptr{unix.AF_NETLINK, wrong, unix.NETLINK_ROUTE}, netAdmin},
		{"audit", unix.SYS_SOCKET, [3]uintptr{unix.AF_NETLINK, wrong, unix.NETLINK_AUDIT}, "none"},
		{"IPsec", unix.SYS_SOCKET, [3]uintptr{unix.AF_NETLINK, wrong, unix.NETLINK_XFRM}, "none"},
		{"generic netlink", unix.SYS_SOCKET, [3]uintptr{unix.AF_NETLINK, wrong, unix.NETLINK_GENERIC}, "none"},
		{"packets", unix.SYS_SOCKET, [3]uintptr{unix.AF_PACKET, wrong, 0}, "none"},
		{"crypto", unix.SYS_SOCKET, [3]uintptr{unix.AF_ALG, wrong, 0}, "none"},
		{"connect to a daemon", unix.SYS_SOCKET, [3]uintptr{unix.AF_UNIX, unix.SOCK_STREAM, wrong}, "none"},
		{"cookie", unix.SYS_SOCKET, [3]uintptr{unix.AF_UNIX, datagram, wrong}, admin},
		{"user namespace", unix.SYS_UNSHARE, [3]uintptr{wrong}, "none"},
		{"network namespace", unix.SYS_SETNS, [3]uintptr{wrong, unix.CLONE_NEWNET}, admin},
		{"mount namespace", unix.SYS_SETNS, [3]uintptr{wrong, unix.CLONE_NEWNS}, "none"},
		{"mount", unix.SYS_MOUNT, [3]uintptr{wrong, wrong, wrong}, "none"},
		{"ptrace", unix.SYS_PTRACE, [3]uintptr{unix.PTRACE_ATTACH, wrong}, "none"},
		{"memory of others", unix.SYS_PROCESS_VM_READV, [3]uintptr{wrong}, "none"},
		{"own limits", unix.SYS_PRLIMIT64, [3]uintptr{0, wrong}, ""},
		{"limits of others", unix.SYS_PRLIMIT64, [3]uintptr{1, wrong}, "none"},
		{"terminal", unix.SYS_IOCTL, [3]uintptr{wrong, unix.TIOCSTI}, "none"},
		{"perf event", unix.SYS_PERF_EVENT_OPEN, [3]uintptr{wrong}, "none"},
		{"BPF", unix.SYS_BPF, [3]uintptr{wrong}, bpf},
		{"io_uring", unix.SYS_IO_URING_SETUP, [3]uintptr{0, wrong}, "none"},
		{"keys", unix.SYS_KEYCTL, [3]uintptr{wrong}, "none"},
		{"module", unix.SYS_INIT_MODULE, [3]uintptr{wrong, wrong, wrong}, "none"},
		{"remove a file", unix.SYS_UNLINKAT, [3]uintptr{wrong, wrong}, "none"},
	}
	for _, capability := range []string{"", admin, bpf, netAdmin} {
		t.Run("with "+capability, func(t *testing.T) {
			const denied = unix.ENOTNAM // no call says so
			filter := filterOf(t, readSeccompProfile(t).measured(capability))
			filter[len(filter)-1].K = seccompErrno | uint32(denied)
			filterCalls(t, filter)
			for _, c := range calls {
				fd, _, errno := unix.RawSyscall(c.number, c.args[0], c.args[1], c.args[2])
				if errno == 0 {
					unix.Close(int(fd))
				}
				if allowed, want := errno != denied, c.capability == "" || c.capability == capability || c.capability == bpf && capability == admin; allowed != want {
					t.Errorf("%s: allowed %v (%v), want %v", c.name, allowed, errno, want)
				}
			}
		})
	}
}

// TestSystemCallsOfRuntime checks that the profile has all that Go's runtime may call, on any number of
// CPUs, and no unknown names.
func TestSystemCallsOfRuntime(t *testing.T) {
	profile := readSeccompProfile(t)
	var names []string
	for _, r := range profile.measured() {
		names = append(names, r.Names...)
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, arch := range []string{"amd64", "arm64"} {
		numbers := systemCalls(t, arch)
		var source string
		for _, file := range []string{"runtime/sys_linux_" + arch + ".s", "internal/runtime/syscall/linux/defs_linux_" + arch + ".go"} {
			b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(goroot)), "src", file))
			if err != nil {
				t.Fatal(err)
			}
			source += string(b)
		}
		found := 0
		for _, m := range regexp.MustCompile(`(?m)^(?:#define)?\s+SYS_(\w+)\s+=?\s*\d+$`).FindAllStringSubmatch(source, -1) {
			name := strings.ToLower(m[1])
			if _, ok := numbers[name]; !ok {
				continue // a typing error, or of another architecture
			}
			found++
			if !slices.Contains(names, name) {
				t.Errorf("%s: Go's runtime may call %s", arch, name)
			}
		}
		if found < 30 {
			t.Errorf("%s: %d system calls of the runtime", arch, found)
		}
		for name := range numbers {
			known[name] = true
		}
	}
	for _, r := range profile.Syscalls {
		for _, name := range r.Names {
			if !known[name] {
				t.Errorf("no system call %s", name)
			}
		}
	}
	if profile.DefaultAction != "SCMP_ACT_ERRNO" || profile.DefaultErrnoRet != uint32(unix.EPERM) {
		t.Errorf("by default %s, %d: the error texts are for EPERM", profile.DefaultAction, profile.DefaultErrnoRet)
	}
}

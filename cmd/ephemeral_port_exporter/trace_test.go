//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// failToConnect makes n connects that fail because no port is free, in a network namespace of the
// test.
func failToConnect(t *testing.T, destination string, n int) {
	t.Helper()
	t.Run("connect", func(t *testing.T) {
		netnstest.New(t)
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40001")
		c := netnstest.Client{Destination: netip.MustParseAddrPort(destination)}
		c.Hold(t, 2)
		for range n {
			if _, err := c.Connect(); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Fatalf("connect(): %v, want EADDRNOTAVAIL", err)
			}
		}
	})
}

// failuresTo returns the failed connects to a destination.
func failuresTo(t *testing.T, metrics, destination string) float64 {
	t.Helper()
	return sumOf(t, metrics, "connect_failures_total", destination)
}

// closesTo returns the connections to a destination that this host closed first.
func closesTo(t *testing.T, metrics, destination string) float64 {
	t.Helper()
	return sumOf(t, metrics, "destination_closes_total", destination)
}

// sumOf returns the sum of the series of a destination.
func sumOf(t *testing.T, metrics, name, destination string) float64 {
	t.Helper()
	to := netip.MustParseAddrPort(destination)
	return sumOfSeries(t, metrics, name+`\{.*destination_ip="`+regexp.QuoteMeta(to.Addr().String())+`",destination_port="`+strconv.Itoa(int(to.Port()))+`".*\}`)
}

// sumOfSeries returns the sum of the series that match a regular expression.
func sumOfSeries(t *testing.T, metrics, series string) (sum float64) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^ephemeral_port_`+series+` (.*)$`).FindAllStringSubmatch(metrics, -1) {
		value, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += value
	}
	return sum
}

const unattributed = "ephemeral_port_connect_failures_unattributed_total "

// checkStartFails checks that the exporter does not start because of its first flag, and that its
// output has these texts.
func checkStartFails(t *testing.T, cmd *exec.Cmd, want ...string) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != codeUnusable {
		t.Errorf("ended with %v, want exit status 78:\n%s", err, out)
	}
	for _, w := range append(want, "level=ERROR", cmd.Args[1]+" cannot ") {
		if !strings.Contains(string(out), w) {
			t.Errorf("did not say %q:\n%s", w, out)
		}
	}
	if strings.Contains(string(out), "Listening") {
		t.Errorf("listened all the same:\n%s", out)
	}
}

// TestTrace checks that each run counts from 0 and leaves nothing in the kernel, even if it
// is killed.
func TestTrace(t *testing.T) {
	netnstest.LockTraces(t)
	const address, destination = "127.0.0.1:10180", "192.0.2.1:7101"
	for i, signal := range []os.Signal{unix.SIGTERM, unix.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			e := start(t, command(t, "--trace", "--web.listen-address="+address), "http://"+address)
			for scrape := range 2 {
				failToConnect(t, destination, 10+i)
				_, metrics := e.get(t, "/metrics")
				if got, want := failuresTo(t, metrics, destination), float64((1+scrape)*(10+i)); got != want {
					t.Errorf("counted %v failures, want %v", got, want)
				}
				sample(t, metrics, unattributed)
			}

			id := programOf(t, e.cmd.Process.Pid)
			if err := e.cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_ = e.wait()
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				program, err := ebpf.NewProgramFromID(id)
				if errors.Is(err, unix.ENOENT) {
					break
				}
				program.Close()
				if time.Now().After(deadline) {
					t.Fatalf("the program is still in the kernel: %v", err)
				}
			}
		})
	}
}

// TestTraceLimit checks the limit of series.
func TestTraceLimit(t *testing.T) {
	netnstest.LockTraces(t)
	const address = "127.0.0.1:10183"
	e := start(t, command(t, "--trace", "--destination.limit=0", "--web.listen-address="+address), "http://"+address)
	failToConnect(t, "192.0.2.1:7102", 3)
	_, metrics := e.get(t, "/metrics")
	if got := sample(t, metrics, unattributed); got < 3 || strings.Contains(metrics, "ephemeral_port_connect_failures_total{") {
		t.Errorf("counted %v failures, want 3, and no series:\n%s", got, metrics)
	}
}

// portless returns a socket in a network namespace of its own that has no port for connect(), and
// the label of that namespace.
func portless(t *testing.T) (fd int, netns string) {
	t.Helper()
	t.Run("namespace", func(t *testing.T) {
		netnstest.New(t)
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40000")
		netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "40000")
		var err error
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		netns = "netns-" + strconv.FormatUint(cookie, 10)
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd, netns
}

// TestTraceFair floods the exporter with failures of 10,000 pools, and goes on. Meanwhile
// connects fail in another network namespace: within two scrapes, they have a series that names it.
func TestTraceFair(t *testing.T) {
	netnstest.LockTraces(t)
	const address = "127.0.0.1:10186"
	e := start(t, command(t, "--trace", "--destination.limit=32", "--web.listen-address="+address), "http://"+address)

	var flooded atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	flooder, floodNetns := portless(t)
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(i >> 16), byte(i >> 8), byte(i)}), 7105)
			if err := unix.Connect(flooder, netnstest.Sockaddr(to, false)); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Errorf("connect(): %v, want EADDRNOTAVAIL", err)
				return
			}
			if flooded.Add(1) > 10000 {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}()
	stopFlood := sync.OnceFunc(func() {
		close(stop)
		<-stopped
	})
	t.Cleanup(stopFlood)

	for flooded.Load() < 10000 {
		time.Sleep(time.Millisecond)
	}
	_, metrics := e.get(t, "/metrics")
	if n := strings.Count(metrics, "\nephemeral_port_connect_failures_total{"); n != 32 || !strings.Contains(metrics, `netns="`+floodNetns+`",`) {
		t.Errorf("%d series, want all that there may be, and some of %s", n, floodNetns)
	}
	before := flooded.Load()

	victim, victimNetns := portless(t)
	const destination, n = "127.0.0.1:7104", 5
	to := netnstest.Sockaddr(netip.MustParseAddrPort(destination), false)
	for range n {
		if err := unix.Connect(victim, to); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Fatalf("connect(): %v, want EADDRNOTAVAIL", err)
		}
	}
	for range 2 {
		_, metrics = e.get(t, "/metrics")
	}
	series := `ephemeral_port_connect_failures_total{cgroup="`
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, series) && strings.Contains(line, `netns="`+victimNetns+`"`) {
			series, _, _ = strings.Cut(line, " ")
		}
	}
	if got := sample(t, metrics, series+" "); got != n || !strings.Contains(series, `destination_port="7104",netns="`+victimNetns+`",pod_uid="`) {
		t.Errorf("%v failures in %s, want %d", got, series, n)
	}
	if got := sample(t, metrics, `ephemeral_port_trace_table_utilization_ratio{table="failures"} `); got <= 0 || got > 0.5 {
		t.Errorf("the table is used by %v, want at most a half", got)
	}
	if flooded.Load() == before {
		t.Error("the flood did not go on")
	}

	stopFlood()
	_, metrics = e.get(t, "/metrics")
	all := sample(t, metrics, unattributed) + sample(t, metrics, "ephemeral_port_connect_failures_expired_total ")
	for _, m := range regexp.MustCompile(`(?m)^ephemeral_port_connect_failures_total\{.*\} (.*)$`).FindAllStringSubmatch(metrics, -1) {
		value, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		all += value
	}
	// Failures of other processes may add to that.
	if saw := float64(flooded.Load() + n); all < saw {
		t.Errorf("counted %v failures in all, the clients saw %v", all, saw)
	}
}

// programOf returns the BPF program of a process, which exists as long as it is attached.
func programOf(t *testing.T, pid int) ebpf.ProgramID {
	t.Helper()
	infos, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "fdinfo/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range infos {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // closed meanwhile
		}
		if m := regexp.MustCompile(`prog_id:\s+(\d+)\n`).FindSubmatch(b); m != nil {
			id, err := strconv.Atoi(string(m[1]))
			if err != nil {
				t.Fatal(err)
			}
			return ebpf.ProgramID(id)
		}
	}
	t.Fatal("the process has no BPF program")
	return 0
}

// TestTraceCapabilities checks that the documented capabilities are enough, and that the
// error names each one that is missing.
func TestTraceCapabilities(t *testing.T) {
	const bpf, perfmon = unix.CAP_BPF, unix.CAP_PERFMON
	tests := []struct {
		name         string
		capabilities []uintptr
		missing      string // or it runs
	}{
		{"both", []uintptr{bpf, perfmon}, ""},
		{"admin", []uintptr{unix.CAP_SYS_ADMIN}, ""}, // which includes both
		{"no bpf", []uintptr{perfmon}, "CAP_BPF missing"},
		{"no perfmon", []uintptr{bpf}, "CAP_PERFMON missing"},
		{"none", nil, "CAP_BPF and CAP_PERFMON missing"},
	}
	// As LimitMEMLOCK= of the drop-in: kernels before 5.11 need it.
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 8 << 20, Max: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.missing == "" {
				netnstest.LockTraces(t)
			}
			address := "127.0.0.1:" + strconv.Itoa(10200+i)
			cmd := command(t, "--trace", "--web.listen-address="+address)
			unprivileged(t, cmd, tt.capabilities...)
			if tt.missing != "" {
				checkStartFails(t, cmd, "trace: "+tt.missing)
				return
			}
			e := start(t, cmd, "http://"+address)
			destination := "192.0.2.1:" + strconv.Itoa(7110+i)
			failToConnect(t, destination, 3)
			_, metrics := e.get(t, "/metrics")
			if got := failuresTo(t, metrics, destination); got != 3 {
				t.Errorf("counted %v failures, want 3", got)
			}
			if has, want := strings.Contains(metrics, "\n"+unattributedBinds+" "), countsBinds(t); has != want {
				t.Errorf("counts binds: %v, root alone: %v", has, want)
			}
		})
	}
}

// TestTraceStartFails checks that the error names what is missing or forbidden, and the
// cause if it is known.
func TestTraceStartFails(t *testing.T) {
	deny := func(call, errno uint32) func(testing.TB) {
		return func(t testing.TB) {
			filterCalls(t, []unix.SockFilter{
				{Code: loadWord, K: 0},
				{Code: jumpIf, K: call, Jf: 1},
				{Code: ret, K: seccompErrno | errno},
				{Code: ret, K: seccompAllow},
			})
		}
	}
	cover := func(path string) func(testing.TB) {
		return func(t testing.TB) {
			t.Helper()
			if err := unix.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(path, 0) })
		}
	}
	lockDown := func(mode string) func(testing.TB) {
		return func(t testing.TB) {
			t.Helper()
			cover("/sys/kernel/security")(t)
			if err := os.WriteFile("/sys/kernel/security/lockdown", []byte(mode), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name  string
		fault []func(testing.TB)
		want  []string
	}{
		{"no BTF", []func(testing.TB){cover("/sys/kernel/btf")}, []string{
			"trace: no description of the kernel's types (BTF), it needs CONFIG_DEBUG_INFO_BTF=y", "/sys/kernel/btf/vmlinux: no such file",
		}},
		{"no bpf", []func(testing.TB){deny(unix.SYS_BPF, uint32(unix.ENOSYS))}, []string{
			"load the BPF programs: not supported by this kernel: CONFIG_BPF_SYSCALL and CONFIG_BPF_EVENTS are needed", "function not implemented",
		}},
		{"locked down", []func(testing.TB){lockDown("none integrity [confidentiality]\n"), deny(unix.SYS_BPF, uint32(unix.EPERM))}, []string{
			"load the BPF programs: forbidden, the kernel is in lockdown mode confidentiality, see kernel_lockdown(7)",
		}},
		{"bpf forbidden", []func(testing.TB){lockDown("none [integrity] confidentiality\n"), deny(unix.SYS_BPF, uint32(unix.EPERM))}, []string{
			"load the BPF programs: forbidden in spite of the capabilities, by seccomp (in systemd SystemCallFilter=", "before Linux 5.11 by a limit of locked memory below 4 MB (in systemd LimitMEMLOCK=8M,", "operation not permitted\"",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.LockTraces(t)
			cmd := command(t, "--trace", "--web.listen-address=127.0.0.1:10181")
			for _, fault := range tt.fault {
				fault(t)
			}
			checkStartFails(t, cmd, tt.want...)
		})
	}
}

// failInCgroups has a process move from control group to control group, in a network namespace of its
// own. It makes connects to 127.0.0.1 fail: n in the first, 2 n in the second, and so on.
func failInCgroups(t *testing.T, mount string, groups []string, port string, n int) {
	t.Helper()
	script := `ip link set lo up
echo 40000 40000 > /proc/sys/net/ipv4/ip_local_port_range
echo 40000 > /proc/sys/net/ipv4/ip_local_reserved_ports
n=0
for group; do
	echo $$ > $group/cgroup.procs
	n=$((n + ` + strconv.Itoa(n) + `))
	for ((i = 0; i < n; i++)); do { : <> /dev/tcp/127.0.0.1/` + port + `; } 2>/dev/null; done
done
exit 0`
	cmd := exec.Command("unshare", "--net", "bash", "-c", script, "bash")
	for _, path := range groups {
		cmd.Args = append(cmd.Args, mount+path)
	}
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestTraceCgroup checks that series name the control groups of the clients: those of two
// pods with the same addresses, and of one whose control group is gone.
func TestTraceCgroup(t *testing.T) {
	netnstest.LockTraces(t)
	const address, port, failures = "127.0.0.1:10188", "7107", 3
	const blue, green = "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b", "4f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b"
	container := strings.Repeat("9b1c7a0d", 8)
	mount := netnstest.Cgroups(t)
	slice := fmt.Sprintf("/failures_%d.slice", os.Getpid())
	class := slice + "/kubepods-burstable.slice"
	pod := func(uid string) string {
		return class + "/kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
	}
	pods := []string{pod(blue), pod(green), class + "/gone"}
	groups := []string{pods[0] + "/cri-containerd-" + container + ".scope", pods[1], pods[2]}
	ids := map[string]uint64{}
	for _, path := range append([]string{slice, class}, append(pods, groups[0])...) {
		ids[path] = netnstest.NewCgroup(t, mount+path)
	}

	e := start(t, command(t, "--trace", "--path.cgroup="+mount, "--web.listen-address="+address), "http://"+address)
	failInCgroups(t, mount, groups, port, failures)
	netnstest.RemoveCgroup(t, mount+groups[2])
	_, metrics := e.get(t, "/metrics")
	gone := "cgroup-" + strconv.FormatUint(ids[groups[2]], 10)
	netns := `netns-\d+`
	if !netnstest.HasCookies(t) {
		netns = "" // the program does not know it
	}
	for i, want := range []struct{ cgroup, container, pod string }{{groups[0], container, blue}, {groups[1], "", green}, {gone, "", ""}} {
		series := regexp.MustCompile(`(?m)^ephemeral_port_connect_failures_total\{cgroup="` + want.cgroup + `",container_id="` + want.container +
			`",destination_ip="127.0.0.1",destination_port="` + port + `",netns="` + netns + `",pod_uid="` + want.pod +
			`",source_ip="127.0.0.1"\} ` + strconv.Itoa((i+1)*failures) + `$`)
		if !series.MatchString(metrics) {
			t.Errorf("no series %v in\n%s", series, metrics)
		}
	}
	if got := strings.Count(metrics, `destination_port="`+port+`"`); got != len(groups) {
		t.Errorf("%d series, want %d", got, len(groups))
	}
}

// TestTraceCgroupShare checks that one who makes control groups below his own takes only its
// share of the table, and of the series.
func TestTraceCgroupShare(t *testing.T) {
	netnstest.LockTraces(t)
	const address, port, children, share = "127.0.0.1:10189", "7108", 80, 64
	mount := netnstest.Cgroups(t)
	slice := "/user-" + strconv.Itoa(os.Getpid())
	netnstest.NewCgroup(t, mount+slice)
	netnstest.NewCgroup(t, mount+slice+"/user")
	var groups []string
	for i := range children {
		groups = append(groups, slice+"/user/"+strconv.Itoa(i))
		netnstest.NewCgroup(t, mount+groups[i])
	}
	e := start(t, command(t, "--trace", "--path.cgroup="+mount, "--web.listen-address="+address), "http://"+address)
	failInCgroups(t, mount, groups, port, 1)
	_, metrics := e.get(t, "/metrics")
	if got := strings.Count(metrics, `destination_port="`+port+`"`); got != share {
		t.Errorf("%d series, want %d", got, share)
	}
	// The first ones have a series.
	const attributed, all = share * (share + 1) / 2, children * (children + 1) / 2
	if got := failuresTo(t, metrics, "127.0.0.1:"+port); got != attributed {
		t.Errorf("%v failures in series, want %d", got, attributed)
	}
	if got := sample(t, metrics, unattributed); got < all-attributed {
		t.Errorf("%v failures without a series, want %d", got, all-attributed)
	}
}

// TestNoTrace checks that the exporter does not use BPF without the flag.
func TestNoTrace(t *testing.T) {
	const address = "127.0.0.1:10182"
	killBPF := func(t *testing.T) {
		filterCalls(t, []unix.SockFilter{
			{Code: loadWord, K: 0},
			{Code: jumpIf, K: unix.SYS_BPF, Jt: 1},
			{Code: jumpIf, K: unix.SYS_PERF_EVENT_OPEN, Jf: 1},
			{Code: ret, K: seccompKill},
			{Code: ret, K: seccompAllow},
		})
	}
	t.Run("with the flag", func(t *testing.T) {
		netnstest.LockTraces(t)
		cmd := command(t, "--web.listen-address="+address, "--trace")
		killBPF(t)
		if out, err := cmd.CombinedOutput(); err == nil || err.Error() != "signal: bad system call" {
			t.Fatalf("%v, want SIGSYS:\n%s", err, out)
		}
	})
	t.Run("without", func(t *testing.T) {
		cmd := command(t, "--web.listen-address="+address)
		killBPF(t)
		e := start(t, cmd, "http://"+address)
		_, metrics := e.get(t, "/metrics")
		if sample(t, metrics, `ephemeral_port_collect_success{netns="self"} `) != 1 || strings.Contains(metrics, "connect_failures") {
			t.Errorf("/metrics:\n%s", metrics)
		}
		if err := e.stop(t); err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}

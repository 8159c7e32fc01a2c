//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/web"
)

func TestMain(m *testing.M) {
	if os.Getenv(envBareLoop) != "" {
		bareLoopMain()
		return
	}
	if spec := os.Getenv(envFilter); spec != "" {
		fmt.Fprintln(os.Stderr, filteredMain(spec)) // it returns errors only
		os.Exit(1)
	}
	if spec := os.Getenv(envGoProxy); spec != "" {
		os.Exit(goProxyMain(spec))
	}
	flag.Parse()
	for version := range strings.SplitSeq(*ciliumVersions, ",") {
		_ = netnstest.Download("github.com/cilium/cilium@" + version) // the tests that need it say what is wrong
	}
	os.Exit(netnstest.Main(m, netnstest.Program{Name: name, Args: []string{"build", "."}}))
}

// command returns the command that runs the binary with these arguments.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, netnstest.ProgramPath(name), args...)
}

// An exporter is a running binary.
type exporter struct {
	cmd  *exec.Cmd
	url  string
	log  *logBuffer
	wait func() error // until it ends, for its exit error
}

// A logBuffer can be written and read at the same time.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serving is in the log when the exporter serves an address.
const serving = `msg="Serving the status page"`

// start runs the binary until the test ends, and waits until it serves as many addresses as its arguments
// have. url is that of one of them.
func start(t *testing.T, cmd *exec.Cmd, url string) *exporter {
	t.Helper()
	e := &exporter{cmd: cmd, url: url, log: &logBuffer{}}
	cmd.Stdout, cmd.Stderr = e.log, e.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	e.wait = sync.OnceValue(func() error { return <-ended })
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = e.wait()
	})
	addresses := max(strings.Count(strings.Join(cmd.Args, " "), "--web.listen-address="), 1)
	for strings.Count(e.log.String(), serving) < addresses {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the exporter ended with %v:\n%s", err, e.log)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return e
}

// get returns status and body of a page.
func (e *exporter) get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get(e.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// sample returns the value behind a series' name and labels.
func sample(t testing.TB, metrics, series string) float64 {
	t.Helper()
	_, rest, ok := strings.Cut(metrics, "\n"+series)
	if !ok {
		t.Fatalf("no %s in\n%s", series, metrics)
	}
	value, _, _ := strings.Cut(rest, "\n")
	f, err := strconv.ParseFloat(value, 64)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// stop sends SIGTERM and returns the exit error of the process.
func (e *exporter) stop(t *testing.T) error {
	t.Helper()
	if err := e.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return e.wait()
}

// TestBadFlags checks that the exporter does not start with an invalid flag, and says what is valid.
func TestBadFlags(t *testing.T) {
	tests := []struct{ flag, want string }{
		{"--destination.limit=-1", "--destination.limit=-1: must be a whole number, 0 or more"},
		{"--destination.limit=many", "--destination.limit=many: must be a whole number, 0 or more"},
		{"--destination.min-ports=-5", "--destination.min-ports=-5: must be a whole number, 0 or more"},
		{"--web.max-requests=1.5", "--web.max-requests=1.5: must be a whole number, 0 or more"},
		{"--time-wait.length=0s", "--time-wait.length=0s: must be a duration above 0"},
		{"--time-wait.length=-60s", "--time-wait.length=-60s: must be a duration above 0"},
		{"--collect.timeout=0", "--collect.timeout=0: must be a duration above 0"},
		{"--collect.timeout=5", "--collect.timeout=5: must be a duration above 0, for example 500ms or 5s"},
		{"--web.listen-address=10149", "--web.listen-address=10149: must be host:port"},
		{"--web.listen-address=:70000", "--web.listen-address=:70000: must be host:port"},
		{"--web.listen-address=::1:10149", "--web.listen-address=::1:10149: must be host:port"},
		{"--web.telemetry-path=metrics", "--web.telemetry-path=metrics: must be a plain path"},
		{"--web.telemetry-path=/", "--web.telemetry-path=/: must be a plain path like /metrics, and not /, /runbook, "},
		{"--web.telemetry-path=/runbook", "must be a plain path"},
		{"--web.telemetry-path=/docs/model", "must be a plain path"},
		{"--web.telemetry-path=/-/ready", "must be a plain path"},
		{"--web.telemetry-path=/{x", "must be a plain path"},
		{"--web.telemetry-path=/metrics/", "must be a plain path"},
		{"--namespaces.dir=/run/netns", "--namespaces.dir=/run/netns: has no effect with --namespaces=self"},
		{"--snat.port-range=40000", "--snat.port-range=40000: must be two ports from 1 to 65535"},
		{"--snat.port-range=0-1023", "--snat.port-range=0-1023: must be two ports from 1 to 65535"},
		{"--snat.port-range=40100-40000", "--snat.port-range=40100-40000: must be two ports from 1 to 65535"},
		{"--snat.port-range=1024-65536", "--snat.port-range=1024-65536: must be two ports from 1 to 65535"},
		{"--snat --snat.port-range=40000-40099 --snat.port-range=40099-40100", "--snat.port-range=40099-40100: must have no port of --snat.port-range=40000-40099"},
		{"--snat.port-range=4928-4943 --snat.port-range=4944-4959", "--snat.port-range=4928-4943,4944-4959: has no effect without --snat"},
		{"--snat.port-range=40000-40099", "--snat.port-range=40000-40099: has no effect without --snat"},
		{"--snat.takeover", "--snat.takeover: has no effect without --snat"},
		{"--fail-on=warning", "--fail-on=warning: has no effect without --status"},
		{"--format=json", "--format=json: has no effect without --status"},
		{"--destination=10.0.0.2", "--destination: has no effect without --status"},
		{"--watch=2s", "--watch=2s: has no effect without --status"},
		{"--status --fail-on=error", "--fail-on=error: must be one of warning, critical"},
		{"--status --format=html", "--format=html: must be one of text, json"},
		{"--status --destination=proxy:443", "--destination=proxy:443: must be ADDRESS or ADDRESS:PORT, such as 10.0.0.2, 10.0.0.2:443 or [2001:db8::2]:443"},
		{"--status --watch=999ms", "--watch=999ms: must be 1s or more"},
		{"--status --watch=-2s", "--watch=-2s: must be a duration above 0"},
		{"--no-such-flag", "unknown long flag '--no-such-flag'"},
		{"--log.level=loud", "--log.level=loud: unrecognized log level"},
		{"--log.format=xml", "--log.format=xml: unrecognized log format"},
		{"--namespaces=some", "--namespaces=some: must be one of self, named, all"},
		{"--web.config.file=/nonexistent", "--web.config.file=/nonexistent: open /nonexistent: no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.flag, func(t *testing.T) {
			out, err := command(t, strings.Fields(tt.flag)...).CombinedOutput()
			var exit *exec.ExitError
			want := codeUnusable
			if strings.Contains(tt.flag, "--fail-on") {
				want = 3
			}
			if !errors.As(err, &exit) || exit.ExitCode() != want {
				t.Errorf("ended with %v, want exit status %d", err, want)
			}
			if !strings.Contains(string(out), tt.want) || strings.Count(string(out), "\n") != 1 {
				t.Errorf("said %q, want one line with %q", out, tt.want)
			}
		})
	}
}

// TestStartFails checks that the exporter does not start if every collection would fail, and logs the
// reason once.
func TestStartFails(t *testing.T) {
	tests := []struct {
		name  string
		args  []string
		errno unix.Errno // of socket(AF_NETLINK), by seccomp
		want  []string
	}{
		{"no proc", []string{"--path.procfs=/nonexistent"}, 0, []string{
			"--path.procfs=/nonexistent must be a mounted proc file system", "/nonexistent/sys/net/ipv4", "no such file",
		}},
		{"no netlink", nil, unix.EPROTONOSUPPORT, []string{"NETLINK_SOCK_DIAG", "gVisor", "protocol not supported"}},
		{"no address family", nil, unix.EAFNOSUPPORT, []string{"NETLINK_SOCK_DIAG", "address family not supported"}},
		{"forbidden", nil, unix.EPERM, []string{"RestrictAddressFamilies", "operation not permitted"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := command(t, append(tt.args, "--web.listen-address=127.0.0.1:1000")...)
			if tt.errno != 0 {
				denyNetlink(t, tt.errno)
			}
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != codeUnusable {
				t.Errorf("ended with %v, want exit status 78:\n%s", err, out)
			}
			for _, want := range append(tt.want, "level=ERROR", "this host cannot be watched") {
				if !strings.Contains(string(out), want) {
					t.Errorf("did not say %q:\n%s", want, out)
				}
			}
			if strings.Contains(string(out), "Listening") {
				t.Errorf("listened all the same:\n%s", out)
			}
		})
	}
}

// denyNetlink lets socket(AF_NETLINK) fail in this test's thread and in processes that it starts.
func denyNetlink(t *testing.T, errno unix.Errno) {
	t.Helper()
	// struct seccomp_data { int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6]; }
	filterCalls(t, []unix.SockFilter{
		{Code: loadWord, K: 0},
		{Code: jumpIf, K: unix.SYS_SOCKET, Jf: 3},
		{Code: loadWord, K: 16},
		{Code: jumpIf, K: unix.AF_NETLINK, Jf: 1},
		{Code: ret, K: seccompErrno | uint32(errno)},
		{Code: ret, K: seccompAllow},
	})
}

// Parts of seccomp filters, see seccomp(2).
const (
	loadWord = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	jumpIf   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	ret      = unix.BPF_RET | unix.BPF_K

	seccompKill  = 0x80000000 // SECCOMP_RET_KILL_PROCESS
	seccompErrno = 0x00050000 // SECCOMP_RET_ERRNO
	seccompAllow = 0x7fff0000 // SECCOMP_RET_ALLOW
)

// filterCalls filters the system calls of this test's thread and of processes that it starts.
func filterCalls(t testing.TB, filter []unix.SockFilter) {
	t.Helper()
	if err := setFilter(filter); err != nil {
		t.Fatal(err)
	}
}

// setFilter filters the system calls of the calling goroutine, which it locks to its thread.
func setFilter(filter []unix.SockFilter) error {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	runtime.KeepAlive(&program)
	return err
}

// timeWaitTo counts the connections in TIME_WAIT to an address and port, as /proc/net/tcp has it.
func timeWaitTo(t *testing.T, remote string) (n float64) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		// sl local_address rem_address st, see Documentation/networking/proc_net_tcp.rst
		if f := strings.Fields(line); len(f) > 3 && f[2] == remote && f[3] == "06" {
			n++
		}
	}
	return n
}

// TestRun runs the exporter without any privilege.
func TestRun(t *testing.T) {
	// Otherwise a scrape may take over one of the ports in TIME_WAIT that it is to count.
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "0")
	t.Cleanup(func() { netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "2") })
	cmd := command(t, "--web.listen-address=127.0.0.1:10149", "--destination.min-ports=1")
	unprivileged(t, cmd)
	e := start(t, cmd, "http://127.0.0.1:10149")

	for _, want := range []string{
		`msg="Starting ephemeral_port_exporter"`,
		`msg="Watching ephemeral ports" range_low=32768 range_high=60999 capacity=28232`,
		`msg="Listening on" address=127.0.0.1:10149`,
		`msg="Serving the status page" page=http://127.0.0.1:10149/`,
	} {
		if !strings.Contains(e.log.String(), want) {
			t.Errorf("log does not say %s:\n%s", want, e.log)
		}
	}
	if strings.Contains(e.log.String(), "level=WARN") {
		t.Errorf("warning:\n%s", e.log)
	}

	// Connections that the client closes first, as curl does. Packets that overtake each other on
	// two CPUs can have a connection reset at its end, then it leaves nothing in TIME_WAIT.
	for range 30 {
		conn, err := net.Dial("tcp", "127.0.0.1:10149")
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	const timeWait = `ephemeral_port_destination_ports{destination_ip="127.0.0.1",destination_port="10149",netns="self",source_ip="127.0.0.1",state="time_wait"} `
	var got, want float64
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		_, metrics := e.get(t, "/metrics") // the server closes when it gets to it
		got, want = sample(t, metrics, timeWait), timeWaitTo(t, "0100007F:27A5")
		if got == want && want >= 20 {
			break
		}
	}
	if got != want || want < 20 {
		t.Errorf("%s%v, want %v, most of 30 connections", timeWait, got, want)
	}

	status, metrics := e.get(t, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("/metrics: status %d", status)
	}
	for _, want := range []string{
		`ephemeral_port_collect_success{netns="self"} 1`,
		`ephemeral_port_capacity_ports{netns="self"} 28232`,
		`ephemeral_port_exporter_build_info{`,
		"go_goroutines ", "process_open_fds ", "promhttp_metric_handler_requests_total{",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics does not have %s", want)
		}
	}

	if status, body := e.get(t, "/?format=html"); status != http.StatusOK || !strings.Contains(body, "No destination is in danger") ||
		!strings.Contains(body, `href="/metrics"`) || !strings.Contains(body, "<p>ephemeral_port_exporter (devel), revision ") {
		t.Errorf("/: status %d, body:\n%s", status, body)
	}
	if status, body := e.get(t, "/-/ready"); status != http.StatusOK || body != "OK\n" {
		t.Errorf("/-/ready: status %d, body %q", status, body)
	}
	for _, path := range []string{"/nonexistent", "/debug/pprof/"} {
		if status, _ := e.get(t, path); status != http.StatusNotFound {
			t.Errorf("%s: status %d, want 404", path, status)
		}
	}

	if err := e.stop(t); err != nil {
		t.Errorf("SIGTERM: %v, want exit status 0:\n%s", err, e.log)
	}
	if strings.Contains(e.log.String(), "level=ERROR") {
		t.Errorf("log has errors:\n%s", e.log)
	}
}

// TestSignals does not end for a terminal that closes, or a reader of the log that goes away.
func TestSignals(t *testing.T) {
	const address = "127.0.0.1:10158"
	cmd := command(t, "--web.listen-address="+address, "--log.level=debug")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = writer, writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	writer.Close()
	e := &exporter{cmd: cmd, url: "http://" + address, wait: cmd.Wait}
	log := bufio.NewScanner(reader)
	for listening := false; !listening; listening = strings.Contains(log.Text(), serving) {
		if !log.Scan() {
			t.Fatal("the exporter does not listen")
		}
	}
	if err := cmd.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	reader.Close()
	// Something to log, for nobody: bytes that are no request, on a server that logs them.
	for range 3 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\n")
		_, _ = io.ReadAll(io.LimitReader(conn, 1))
		conn.Close()
	}
	if status, _ := e.get(t, "/metrics"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	if err := e.stop(t); err != nil {
		t.Errorf("SIGTERM: %v, want exit status 0", err)
	}
}

// TestNoPortsLeft checks the warning if no port can be chosen.
func TestNoPortsLeft(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40009")
	netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "40000-40008")
	netnstest.Listen(t, "127.0.0.1:40009", false)
	const address = "127.0.0.1:10155"
	e := start(t, command(t, "--web.listen-address="+address), "http://"+address)
	if log := e.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, "No port is left") || !strings.Contains(log, "reserved=9 blocked=1") {
		t.Errorf("want one warning:\n%s", log)
	}
}

// TestProcSubset checks that the error names subset=pid if procfs hides the sysctls.
func TestProcSubset(t *testing.T) {
	proc := t.TempDir()
	cmd := command(t, "--path.procfs="+proc, "--web.listen-address=127.0.0.1:10156")
	if err := unix.Mount("/proc", proc, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(proc, unix.MNT_DETACH) })
	// An empty sys, as with subset=pid, which an ordinary user may not mount.
	if err := unix.Mount("tmpfs", filepath.Join(proc, "sys"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "does not show the sysctls of networks: mount it without subset=pid") {
		t.Errorf("ended with %v:\n%s", err, out)
	}
}

// TestPlaceholderHash checks that the exporter does not start with the placeholder, and names the
// file.
func TestPlaceholderHash(t *testing.T) {
	config := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(config, []byte("basic_auth_users:\n  prometheus: $2y$10$...\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := command(t, "--web.config.file="+config).CombinedOutput()
	if err == nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "--web.config.file="+config+": crypto/bcrypt: ") {
		t.Errorf("ended with %v:\n%s", err, out)
	}
}

// TestListenPortInRange checks the warning about a listen port in the ephemeral range.
func TestListenPortInRange(t *testing.T) {
	netnstest.New(t) // elsewhere a connection in TIME_WAIT may have the port
	e := start(t, command(t, "--web.listen-address=127.0.0.1:10150", "--web.listen-address=127.0.0.1:40000"), "http://127.0.0.1:40000")
	if log := e.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, "port=40000 range_low=32768 range_high=60999") {
		t.Errorf("want one warning about port 40000:\n%s", log)
	}
}

// TestListenPortTaken checks that the error names a port that is in use.
func TestListenPortTaken(t *testing.T) {
	netnstest.Listen(t, "127.0.0.1:10151", false)
	out, err := command(t, "--web.listen-address=127.0.0.1:10151").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "listen tcp 127.0.0.1:10151: bind: address already in use") {
		t.Errorf("ended with %v:\n%s", err, out)
	}
}

// TestPaths changes the path of metrics and omits the metrics about the exporter itself.
func TestPaths(t *testing.T) {
	e := start(t, command(t, "--web.listen-address=127.0.0.1:10152", "--web.telemetry-path=/ports", "--web.disable-exporter-metrics"), "http://127.0.0.1:10152")
	status, metrics := e.get(t, "/ports")
	if status != http.StatusOK {
		t.Errorf("/ports: status %d", status)
	}
	for s := bufio.NewScanner(strings.NewReader(metrics)); s.Scan(); {
		if line := s.Text(); !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "ephemeral_port_") {
			t.Errorf("metric of the exporter itself: %s", line)
		}
	}
	if status, _ := e.get(t, "/metrics"); status != http.StatusNotFound {
		t.Errorf("/metrics: status %d, want 404", status)
	}
	if _, body := e.get(t, "/?format=html"); !strings.Contains(body, `href="/ports"`) {
		t.Errorf("the status page does not link to /ports:\n%s", body)
	}
}

// TestBasicAuth checks that scrapes need the password of --web.config.file.
func TestBasicAuth(t *testing.T) {
	config := filepath.Join(t.TempDir(), "web.yml")
	const hash = "$2a$04$JxYPWr0djqEs5o6UGuZP3OggPDos30.vkpvW2mbiMc3wreLmtsWmK" // bcrypt of "secret"
	if err := os.WriteFile(config, []byte("basic_auth_users:\n  prometheus: "+hash+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const address = "127.0.0.1:10153"
	e := start(t, command(t, "--web.listen-address="+address, "--web.config.file="+config), "http://"+address)
	if status, body := e.get(t, "/metrics"); status != http.StatusUnauthorized || strings.Contains(body, "ephemeral_port_") {
		t.Errorf("without password: status %d, body %q", status, body)
	}
	e.url = "http://prometheus:secret@" + address
	if status, body := e.get(t, "/metrics"); status != http.StatusOK || !strings.Contains(body, "ephemeral_port_collect_success") {
		t.Errorf("with password: status %d, body %q", status, body)
	}
}

// TestProbes checks that TCP probes succeed and log nothing. With TLS and a password, HTTP probes
// would need both.
func TestProbes(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir)
	config := filepath.Join(dir, "web.yml")
	if err := os.WriteFile(config, []byte(`tls_server_config:
  cert_file: server.crt
  key_file: server.key
basic_auth_users:
  prometheus: $2a$04$JxYPWr0djqEs5o6UGuZP3OggPDos30.vkpvW2mbiMc3wreLmtsWmK # bcrypt of "secret"
`), 0o600); err != nil {
		t.Fatal(err)
	}
	const address = "127.0.0.1:10157"
	e := start(t, command(t, "--web.listen-address="+address, "--web.config.file="+config), "https://"+address)
	before := e.log.String()
	for range 5 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	for url, want := range map[string]int{
		e.url + web.HealthyPath:                                http.StatusUnauthorized,
		"https://prometheus:secret@" + address + web.ReadyPath: http.StatusOK,
	} {
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d", url, resp.StatusCode, want)
		}
	}
	if got := strings.TrimPrefix(e.log.String(), before); got != "" {
		t.Errorf("probes are in the log:\n%s", got)
	}

	// Other errors of TLS are still logged.
	if _, err := http.Get("http://" + address + web.HealthyPath); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if strings.Contains(e.log.String(), "HTTP connection failed") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("HTTP on the port of HTTPS is not in the log:\n%s", e.log)
}

// certificate writes server.crt and server.key.
func certificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"server.crt": {Type: "CERTIFICATE", Bytes: der}, "server.key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// A seccompNotice is struct seccomp_notif, and a seccompAnswer is struct seccomp_notif_resp, of linux/seccomp.h.
type (
	seccompNotice struct {
		ID         uint64
		PID, Flags uint32
		Number     int32
		Arch       uint32
		IP         uint64
		Args       [6]uint64
	}
	seccompAnswer struct {
		ID         uint64
		Value      int64
		Err, Flags int32
	}
)

// faults lets system calls of a process fail at random.
type faults struct {
	perMille atomic.Int32
	injected atomic.Int32
}

// faultyCalls are those that need memory of the kernel, and of which no failure ends Go's runtime.
var faultyCalls = []string{
	"openat", "socket", "connect", "accept4", "read", "write", "recvfrom", "sendto", "setsockopt", "setns", "getdents64", "readlinkat",
	"fstat", "fstatat", "newfstatat", "statfs", "fstatfs", "bpf",
}

// envFaults makes the test binary have others decide about its system calls, and execute its arguments.
const envFaults = "SECCOMP_FAULTS"

// injectFaults has a command run with faults, without any at first.
func injectFaults(t *testing.T, cmd *exec.Cmd) *faults {
	t.Helper()
	filter := []unix.SockFilter{{Code: loadWord, K: 0}}
	numbers := systemCalls(t, runtime.GOARCH)
	for _, name := range faultyCalls {
		if n, ok := numbers[name]; ok {
			filter = append(filter, unix.SockFilter{Code: jumpIf, K: n, Jf: 1}, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_USER_NOTIF})
		}
	}
	filtered(t, cmd, append(filter, unix.SockFilter{Code: ret, K: seccompAllow}))
	cmd.Env = append(cmd.Env, envFaults+"=1")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(pair[1]), "listener")}
	f := &faults{}
	t.Cleanup(func() { cmd.ExtraFiles[0].Close() })
	go func() {
		defer unix.Close(pair[0])
		rights := make([]byte, unix.CmsgSpace(4))
		if _, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), rights, unix.MSG_CMSG_CLOEXEC); err == nil && n == len(rights) {
			f.serve(int(binary.NativeEndian.Uint32(rights[unix.CmsgLen(0):])))
		}
	}()
	return f
}

// setFaultFilter filters the system calls of the calling thread, and sends the descriptor by which another process decides
// about them to descriptor 3.
func setFaultFilter(filter []unix.SockFilter) error {
	const listener = 3 // of ExtraFiles
	unix.CloseOnExec(listener)
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	return unix.Sendmsg(listener, []byte{0}, unix.UnixRights(int(fd)), nil, 0)
}

// serve answers for the kernel until the last thread with the filter has ended.
func (f *faults) serve(listener int) {
	defer unix.Close(listener)
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) || poll[0].Revents&unix.POLLHUP != 0 {
			return
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			continue
		}
		var notice seccompNotice
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&notice))); errno != 0 {
			continue // the call was interrupted
		}
		answer := seccompAnswer{ID: notice.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		rate := f.perMille.Load()
		if notice.Number == unix.SYS_ACCEPT4 {
			rate *= 10 // a scrape has one
		}
		if rand.Int32N(1000) < rate && f.mayFail(&notice) {
			f.injected.Add(1)
			answer.Flags, answer.Err = 0, -int32([]unix.Errno{unix.ENOMEM, unix.ENOBUFS}[rand.IntN(2)])
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&answer)))
	}
}

// mayFail spares the descriptors of Go's runtime, and the log.
func (f *faults) mayFail(notice *seccompNotice) bool {
	if notice.Number != unix.SYS_READ && notice.Number != unix.SYS_WRITE {
		return true
	}
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", notice.PID, notice.Args[0]))
	return err == nil && (strings.HasPrefix(target, "/") || strings.HasPrefix(target, "socket:") || strings.Contains(target, "bpf"))
}

// faultyDestination is that of connects that fail.
const faultyDestination = `destination_ip="192.0.2.9",destination_port="7171"`

// steady returns the series of a scrape that are the same in each.
func steady(metrics string) map[string]string {
	changing := regexp.MustCompile(`duration_seconds|time_wait_sockets|unreported_|source_ip="127\.|collect_sockets|^namespaces|udp_sockets|trace_(table|missed)|_(failures|closes)_(expired|unattr)`)
	series := map[string]string{}
	for line := range strings.Lines(metrics) {
		line, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "ephemeral_port_")
		others := regexp.MustCompile("_(failures|closes)_total{").MatchString(line) && !strings.Contains(line, faultyDestination) // of other tests on this host
		if name, value, _ := strings.Cut(line, " "); ok && !others && !changing.MatchString(name) {
			series[name] = value
		}
	}
	return series
}

// checkSteady checks that each series has its value, or is absent and a metric says so. It reports whether all are there.
func checkSteady(t *testing.T, want map[string]string, metrics string) (complete bool) {
	t.Helper()
	got := steady(metrics)
	missing := sample(t, metrics, "ephemeral_port_namespaces_discovery_failures ") > 0
	failed := func(success string) bool { return got[success] != "1" && (got[success] == "0" || missing) }
	complete = true
	for series, value := range want {
		name, labels, _ := strings.Cut(series, "{")
		netns := "{" + regexp.MustCompile(`netns="[^"]*"`).FindString(labels) + "}"
		v, ok := got[series]
		switch {
		case v == value:
			continue
		case ok && strings.HasSuffix(name, "collect_success") && v == "0":
		case ok:
			t.Errorf("%s %s, want %s", series, v, value)
		case strings.HasPrefix(name, "udp_"):
			ok = failed("udp_collect_success"+netns) || failed("collect_success"+netns)
		case strings.HasPrefix(name, "snat_"):
			ok = failed("snat_collect_success"+netns) || failed("collect_success"+netns)
		case strings.HasPrefix(name, "connect_"), strings.HasPrefix(name, "bind_"):
			ok = failed("trace_collect_success")
		case name == "netns_info":
			ok = missing || failed("collect_success"+netns)
		case strings.HasPrefix(name, "time_wait_"), strings.HasPrefix(name, "conntrack_"):
			ok = true // the log says so
		default:
			ok = failed("collect_success" + netns)
		}
		if !ok {
			t.Errorf("%s is absent, and no metric says why", series)
		}
		complete = false
	}
	for series, value := range got {
		if _, ok := want[series]; !ok && (value != "0" || !strings.Contains(series, "collect_success")) {
			t.Errorf("%s %s only when the kernel fails", series, value)
		}
	}
	return complete
}

// TestKernelFails has one in some hundred system calls fail for want of memory. Each scrape has the right numbers, or
// says which are missing. The exporter goes on, and has all of them when the kernel has memory again.
func TestKernelFails(t *testing.T) {
	const address, destination = "127.0.0.1:10350", "192.0.2.9:7171"
	args := []string{"--snat", "--snat.port-range=40000-40063", "--namespaces=named"}
	if netnstest.IsHostRoot() {
		netnstest.LockTraces(t)
		args = append(args, "--exact", "--trace")
	}
	netnstest.HoldInChild(t, netnstest.Holding{Client: netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:7170")}, Count: 500},
		netnstest.Holding{UDP: &netnstest.UDP{Local: netip.MustParseAddrPort("198.51.100.1:0")}, Count: 400})
	dir := openTempDir(t)
	g := newGateway(t, filepath.Join(dir, "gateway"))
	g.send(t, 64)
	cmd := command(t, append(args, "--namespaces.dir="+dir, "--web.listen-address="+address)...)
	f := injectFaults(t, cmd)
	e := start(t, cmd, "http://"+address)
	g.send(t, 3) // which are dropped
	if netnstest.IsHostRoot() {
		failToConnect(t, destination, 3)
	}
	e.get(t, "/metrics")
	_, metrics := e.get(t, "/metrics")
	want := steady(metrics)
	if n := sample(t, metrics, `ephemeral_port_conntrack_dropped_total{netns="gateway"} `); n != 3 {
		t.Errorf("%v packets dropped, want 3", n)
	}

	complete, unanswered := 0, 0
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range 60 {
		f.perMille.Store([]int32{2, 5, 20}[i%3])
		resp, err := client.Get(e.url + "/metrics")
		if err != nil {
			unanswered++
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			unanswered++
			continue
		}
		if checkSteady(t, want, string(body)) {
			complete++
		}
		if t.Failed() {
			t.Fatalf("scrape %d:\n%s\n%s", i, e.log, body)
		}
	}
	f.perMille.Store(0)
	t.Log(strconv.Itoa(complete) + " scrapes complete, " + strconv.Itoa(unanswered) + " without an answer, " + strconv.Itoa(int(f.injected.Load())) + " faults")
	if f.injected.Load() == 0 || unanswered > 40 {
		t.Errorf("%d faults, %d of 60 scrapes without an answer:\n%s", f.injected.Load(), unanswered, e.log)
	}
	if _, metrics := e.get(t, "/metrics"); !checkSteady(t, want, metrics) {
		t.Errorf("afterwards:\n%s", metrics)
	}
	if err := e.stop(t); err != nil {
		t.Errorf("ended with %v:\n%s", err, e.log)
	}
}

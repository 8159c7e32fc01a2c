//go:build linux

package netnstest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Call is a system call of a traced process.
type Call struct {
	Thread string // name and number: "haproxy-12"
	Name   string // "connect"
	Result int    // 0 or more, or minus an errno
}

// A Trace records system calls of a process and its children, see Documentation/trace/ftrace.rst.
type Trace struct {
	dir  string
	pipe int    // descriptor of trace_pipe
	rest []byte // an unfinished line
	seen []Call
}

// TraceCalls starts a process and records these system calls of it and of its children. The test must have called
// HostRoot or LockTraces, and New, which keeps it on one thread.
func TraceCalls(tb testing.TB, cmd *exec.Cmd, names ...string) *Trace {
	tb.Helper()
	dir, err := os.MkdirTemp(filepath.Join(Tracefs(tb), "instances"), "netnstest-")
	if err != nil {
		tb.Fatalf("new trace: %v", err)
	}
	t := &Trace{dir: dir}
	tb.Cleanup(func() { t.remove(tb) })
	t.pipe, err = unix.Open(filepath.Join(t.dir, "trace_pipe"), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		tb.Fatalf("read trace: %v", err)
	}
	tb.Cleanup(func() { unix.Close(t.pipe) })

	// This thread's children are recorded, until it is told not to. Without set_event_pid, all processes are.
	self := strconv.Itoa(unix.Gettid())
	t.set(tb, "options/event-fork", "1")
	t.set(tb, "set_event_pid", self)
	for _, name := range names {
		t.set(tb, "events/syscalls/sys_exit_"+name+"/enable", "1")
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	t.set(tb, "set_event_notrace_pid", self)
	return t
}

// set writes a file of the trace.
func (t *Trace) set(tb testing.TB, file, value string) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(t.dir, file), []byte(value), 0); err != nil {
		tb.Fatalf("set up trace: %v", err)
	}
}

// remove removes the trace. It is busy while a process that another test starts at this moment has
// not yet closed the descriptors that it inherited.
func (t *Trace) remove(tb testing.TB) {
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if err = os.Remove(t.dir); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	if err != nil {
		tb.Errorf("remove trace: %v", err)
	}
}

// callLine matches a line of trace_pipe:
//
//	haproxy-12  [001] .....  7071.123456: sys_connect -> 0xffffffffffffff9d
var callLine = regexp.MustCompile(`(?m)^ *(.+?) +\[\d+\] .*: sys_(\w+) -> 0x([0-9a-f]+)$`)

// Calls returns all calls that have ended, in order.
func (t *Trace) Calls(tb testing.TB) []Call {
	tb.Helper()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(t.pipe, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) || n == 0 && err == nil {
			break
		}
		if err != nil {
			tb.Fatalf("read trace: %v", err)
		}
		t.rest = append(t.rest, buf[:n]...)
	}
	if bytes.Contains(t.rest, []byte("LOST")) {
		tb.Fatalf("the kernel had no room for all calls:\n%s", t.rest)
	}
	end := bytes.LastIndexByte(t.rest, '\n') + 1
	for _, m := range callLine.FindAllSubmatch(t.rest[:end], -1) {
		result, err := strconv.ParseUint(string(m[3]), 16, 64)
		if err != nil {
			tb.Fatalf("read trace: %v", err)
		}
		t.seen = append(t.seen, Call{Thread: string(m[1]), Name: string(m[2]), Result: int(int64(result))})
	}
	t.rest = bytes.Clone(t.rest[end:])
	return t.seen
}

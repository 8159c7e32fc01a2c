//go:build linux

package scan

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
	"ephemeral_port_exporter/procfs"
)

// read is the Result of what was read.
var read = Result{Outcome: Collected}

// A fault is a way in which a collection can fail.
type fault struct {
	name   string
	answer func(sockdiagtest.Request) [][]byte
	dial   error
	want   error // of Check and Scan
	text   string
}

var faults = []fault{
	{name: "tcp_diag missing", want: sockdiag.ErrUnsupported, text: "modprobe tcp_diag", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{r.Done(unix.ENOENT)}
	}},
	{name: "tcp_diag gone after the listeners", want: sockdiag.ErrUnsupported, text: "modprobe tcp_diag", answer: func(r sockdiagtest.Request) [][]byte {
		if r.Sequence == 1 {
			return [][]byte{r.Done(0)}
		}
		return [][]byte{r.Done(unix.ENOENT)}
	}},
	{name: "listeners refused", want: os.ErrPermission, text: "dump listeners", answer: func(r sockdiagtest.Request) [][]byte {
		if r.Sequence == 1 {
			return [][]byte{r.Error(unix.EPERM)}
		}
		return [][]byte{row(r), r.Done(0)}
	}},
	{name: "no netlink", want: unix.EPROTONOSUPPORT, text: "protocol not supported", dial: os.NewSyscallError("socket", unix.EPROTONOSUPPORT)},
	{name: "forbidden", want: os.ErrPermission, text: "not permitted", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{r.Error(unix.EPERM)}
	}},
	{name: "no buffers", want: unix.ENOBUFS, text: "no buffer space", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{r.Error(unix.ENOBUFS)}
	}},
	{name: "busy", want: unix.EBUSY, text: "resource busy", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{r.Error(unix.EBUSY)}
	}},
	{name: "busy after sockets", want: unix.EBUSY, text: "resource busy", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{row(r), r.Done(unix.EBUSY)}
	}},
	{name: "no answer", want: os.ErrDeadlineExceeded, text: "i/o timeout", answer: func(sockdiagtest.Request) [][]byte { return nil }},
	{name: "rows without an end", want: os.ErrDeadlineExceeded, text: "i/o timeout", answer: func(r sockdiagtest.Request) [][]byte {
		if r.Sequence == 1 {
			return [][]byte{r.Done(0)}
		}
		return [][]byte{row(r)}
	}},
	{name: "half a message", want: sockdiag.ErrMalformed, text: "44 bytes left", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{row(r)[:44]}
	}},
	{name: "interrupted", want: sockdiag.ErrInterrupted, text: "interrupted", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{row(r), r.Message(unix.NLMSG_OVERRUN, 0, nil)}
	}},
}

// row returns one connection.
func row(r sockdiagtest.Request) []byte {
	return r.Socket(uint8(tcpstate.Established), netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:80"), 0)
}

// healthy returns an answer with no listener and one connection.
func healthy(r sockdiagtest.Request) [][]byte {
	if r.Sequence == 1 {
		return [][]byte{r.Done(0)}
	}
	return [][]byte{row(r), r.Done(0)}
}

// faultyScanner returns a Scanner whose kernel has the fault *f, none if that is nil. It logs to
// the buffer.
func faultyScanner(t *testing.T, f **fault) (*Scanner, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	s := newScanner(t, Config{
		Proc:           fixedProc(t),
		Limits:         pool.Limits{MinPorts: 1, Most: 10},
		TimeWaitLength: time.Minute,
		Timeout:        time.Minute,
		Logger:         slog.New(slog.NewTextHandler(&log, nil)),
	})
	log.Reset()
	s.dial = func(buffer []byte) (*sockdiag.Conn, error) {
		answer := healthy
		if *f != nil {
			if (*f).dial != nil {
				return nil, (*f).dial
			}
			answer = (*f).answer
		}
		fd, err := sockdiagtest.Dial(answer)
		if err != nil {
			return nil, err
		}
		return sockdiag.NewConn(fd, buffer), nil
	}
	return s, &log
}

// fixedProc returns a fake procfs with the settings of a usual host.
func fixedProc(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"sys/net/ipv4/ip_local_port_range":     "32768\t60999\n",
		"sys/net/ipv4/ip_local_reserved_ports": "\n",
		"sys/net/ipv4/tcp_tw_reuse":            "2\n",
		"sys/net/ipv4/tcp_tw_reuse_delay":      "1000\n",
		"sys/net/ipv4/tcp_timestamps":          "1\n",
		"sys/net/ipv4/tcp_fin_timeout":         "60\n",
		"sys/net/ipv4/tcp_max_tw_buckets":      "131072\n",
		"thread-self/net/sockstat":             "TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 0\nUDP: inuse 0 mem 0\n",
		"thread-self/net/netstat":              "TcpExt: TCPTimeWaitOverflow\nTcpExt: 0\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestFaults checks that a fault gives no measured values, is logged once with its cause, and does
// not affect the next scan.
func TestFaults(t *testing.T) {
	var current *fault
	s, log := faultyScanner(t, &current)
	for i := range faults {
		f := &faults[i]
		t.Run(f.name, func(t *testing.T) {
			current = f
			if errors.Is(f.want, os.ErrDeadlineExceeded) {
				s.cfg.Timeout = 250 * time.Millisecond
			}
			if s, _ := s.Check(); !errors.Is(s.Namespaces[0].TCP.Err, f.want) {
				t.Errorf("got %v, want %v", s.Namespaces[0].TCP.Err, f.want)
			}

			log.Reset()
			checkFailed(t, s.Scan(t.Context()), f.want)
			if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, f.text) {
				t.Errorf("log: got %q, want one error that says %q", got, f.text)
			}

			current = nil
			s.cfg.Timeout = time.Minute
			log.Reset()
			n := s.Scan(t.Context()).Namespaces[0]
			if n.TCP.Outcome != Collected || n.TCP.Err != nil || len(n.TCP.Report.Destinations) != 1 || n.TCP.Report.Destinations[0].Address.String() != "10.0.0.2:80" {
				t.Errorf("the scan after the fault: got %+v", n)
			}
			if log.Len() != 0 {
				t.Errorf("log after the fault: %s", log)
			}
		})
	}
}

// checkFailed checks that the only namespace has failed and has no measured values.
func checkFailed(t *testing.T, snapshot Snapshot, want error) {
	t.Helper()
	if len(snapshot.Namespaces) != 1 || !errors.Is(snapshot.Namespaces[0].TCP.Err, want) {
		t.Fatalf("got %+v, want our namespace with %v", snapshot, want)
	}
	got := snapshot.Namespaces[0]
	outcome := Failed
	if errors.Is(want, os.ErrDeadlineExceeded) {
		outcome = Deadline
	}
	empty := Namespace{Name: Self, TCP: TCP{Result: Result{outcome, got.TCP.Err}}, UDP: UDP{Result: Result{Outcome: Idle}}}
	if got.UDP.Outcome != Idle { // the settings could not be read
		empty.UDP.Result = empty.TCP.Result
	}
	if diff := cmp.Diff(empty, got, cmpopts.EquateErrors()); diff != "" {
		t.Errorf("numbers of a scan that failed (-want +got):\n%s", diff)
	}
}

// TestFaultsLeakNothing checks descriptors and goroutines after 1000 scans, of which one in ten
// succeeds.
func TestFaultsLeakNothing(t *testing.T) {
	var current *fault
	s, _ := faultyScanner(t, &current)
	s.cfg.Timeout = 2 * time.Millisecond
	scans := func(n int) {
		for i := range n {
			current = nil
			if n := len(faults) + 1; i%n != 0 {
				current = &faults[i%n-1]
			}
			s.Scan(t.Context())
		}
	}
	scans(10)
	time.Sleep(50 * time.Millisecond)
	fds, goroutines := inUse(t)
	scans(1000)
	// The fake kernel closes its end a moment after ours.
	checkInUse(t, fds, goroutines)
}

// checkInUse waits until no more descriptors and goroutines than these are in use.
func checkInUse(t *testing.T, fds, goroutines int) {
	t.Helper()
	f, g := inUse(t)
	for deadline := time.Now().Add(10 * time.Second); (f > fds || g > goroutines) && time.Now().Before(deadline); f, g = inUse(t) {
		time.Sleep(10 * time.Millisecond)
	}
	if f > fds || g > goroutines {
		t.Errorf("%d descriptors and %d goroutines, want at most %d and %d", f, g, fds, goroutines)
	}
}

// inUse returns the number of open descriptors and of goroutines.
func inUse(t *testing.T) (fds, goroutines int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries), runtime.NumGoroutine()
}

// TestFaultsOfProc checks that a scan fails if a file of procfs cannot be read.
func TestFaultsOfProc(t *testing.T) {
	var none *fault
	s, log := faultyScanner(t, &none)
	s.proc = procfs.NewFS(t.TempDir())
	checkFailed(t, s.Scan(t.Context()), os.ErrNotExist)
	if got := log.String(); !strings.Contains(got, "sys/net/ipv4") {
		t.Errorf("log: got %q, want the name of the file", got)
	}
}

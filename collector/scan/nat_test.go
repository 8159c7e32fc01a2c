//go:build linux

package scan

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/conntrack"
	"ephemeral_port_exporter/collector/conntrack/conntracktest"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/snat"
	"ephemeral_port_exporter/collector/snat/nattest"
	"ephemeral_port_exporter/collector/sockdiag"
	"ephemeral_port_exporter/collector/sockdiag/sockdiagtest"
	"ephemeral_port_exporter/procfs"
)

// A natFault is a way in which the flows cannot be read.
type natFault struct {
	name   string
	answer func(sockdiagtest.Request) [][]byte
	dial   error
	change func(t *testing.T, proc string) // of procfs, when the kernel is asked for flows
	before func(t *testing.T, proc string) // of procfs, before the scan
	want   error                           // if it has a type
	text   string
}

var natFaults = []natFault{
	{name: "no netlink", dial: os.NewSyscallError("socket", unix.EPROTONOSUPPORT), want: unix.EPROTONOSUPPORT, text: "protocol not supported"},
	{name: "no ctnetlink", want: conntrack.ErrUnsupported, text: "modprobe nf_conntrack_netlink", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{r.Error(unix.EINVAL)}
	}},
	{name: "forbidden", want: os.ErrPermission, text: "CAP_NET_ADMIN", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{r.Error(unix.EPERM)}
	}},
	{name: "no buffers", want: unix.ENOBUFS, text: "no buffer space", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{r.Error(unix.ENOBUFS)}
	}},
	{name: "errno after flows", want: unix.EBUSY, text: "resource busy", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{natRow(r), r.Done(unix.EBUSY)}
	}},
	{name: "interrupted", want: conntrack.ErrInterrupted, text: "interrupted", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{natRow(r), r.Message(unix.NLMSG_OVERRUN, 0, nil)}
	}},
	{name: "half a message", want: conntrack.ErrMalformed, text: "44 bytes left", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{natRow(r)[:44]}
	}},
	{name: "no answer", want: os.ErrDeadlineExceeded, text: "i/o timeout", answer: func(sockdiagtest.Request) [][]byte { return nil }},
	{name: "flows without an end", want: os.ErrDeadlineExceeded, text: "i/o timeout", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{natRow(r)}
	}},
	{name: "table resized", want: conntrack.ErrInterrupted, text: "nf_conntrack_buckets changed from 1024 to 2048", change: func(t *testing.T, proc string) {
		writeProc(t, proc, "sys/net/netfilter/nf_conntrack_buckets", "2048\n")
	}},
	{name: "table size gone", want: fs.ErrNotExist, text: "nf_conntrack_buckets", change: func(t *testing.T, proc string) {
		removeProc(t, proc, "sys/net/netfilter/nf_conntrack_buckets")
	}},
	{name: "bad timeout", text: "nf_conntrack_udp_timeout: unexpected content", before: func(t *testing.T, proc string) {
		writeProc(t, proc, "sys/net/netfilter/nf_conntrack_udp_timeout", "soon\n")
	}},
	{name: "bad size", text: "nf_conntrack_count: unexpected content", before: func(t *testing.T, proc string) {
		writeProc(t, proc, "sys/net/netfilter/nf_conntrack_count", "many\n")
	}},
	{name: "bad counters", text: "stat/nf_conntrack: unexpected content", before: func(t *testing.T, proc string) {
		writeProc(t, proc, "thread-self/net/stat/nf_conntrack", "entries\n")
	}},
}

// natRow returns a flow that is translated.
func natRow(r sockdiagtest.Request) []byte {
	return flowRow(r, "10.0.0.1:1234", "192.0.2.9:40000", conntrack.SrcNAT)
}

// flowRow returns a flow with this source, as its client and as its destination see it.
func flowRow(r sockdiagtest.Request, source, translated string, status conntrack.Status) []byte {
	destination := netip.MustParseAddrPort("192.0.2.1:443")
	f := conntracktest.Flow{
		Protocol: unix.IPPROTO_TCP, State: uint8(conntrack.Established), Status: uint32(status), Timeout: 100,
		Original: conntracktest.Tuple{Source: netip.MustParseAddrPort(source), Destination: destination},
		Reply:    conntracktest.Tuple{Source: destination, Destination: netip.MustParseAddrPort(translated)},
	}
	return r.Message(0x100, unix.NLM_F_MULTI, f.Body())
}

// natProc returns a fake procfs of a host that tracks flows.
func natProc(t *testing.T) string {
	t.Helper()
	dir := fixedProc(t)
	for name, content := range map[string]string{
		"sys/net/netfilter/nf_conntrack_count":                 "7\n",
		"sys/net/netfilter/nf_conntrack_max":                   "4096\n",
		"sys/net/netfilter/nf_conntrack_buckets":               "1024\n",
		"sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait": "120\n",
		"sys/net/netfilter/nf_conntrack_udp_timeout":           "30\n",
		"thread-self/net/stat/nf_conntrack":                    "entries insert_failed drop early_drop\n7 a 10 1\n7 0 1 2\n",
	} {
		writeProc(t, dir, name, content)
	}
	return dir
}

// writeProc replaces a file, so that no reader sees a part of it.
func writeProc(t *testing.T, proc, name, content string) {
	t.Helper()
	path := filepath.Join(proc, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path+"~", []byte(content), 0o644), os.Rename(path+"~", path)); err != nil {
		t.Error(err)
	}
}

func removeProc(t *testing.T, proc, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(proc, name)); err != nil {
		t.Error(err)
	}
}

// wantConntrack is what natProc tells.
var wantConntrack = Conntrack{Result: read, Entries: 7, Limit: 4096, Counted: true, InsertFailed: 10, Dropped: 17, EarlyDropped: 3}

// A fakeHost is a Scanner of a fake kernel.
type fakeHost struct {
	*Scanner
	log       bytes.Buffer
	sockets   *fault    // nil: healthy
	flows     *natFault // nil: healthy
	flowDumps int
}

// newFakeHost returns a healthy host with this procfs.
func newFakeHost(t *testing.T, proc string) *fakeHost {
	t.Helper()
	h := &fakeHost{}
	cfg := testConfig()
	cfg.Proc, cfg.SNAT, cfg.SNATPorts, cfg.SNATTakeover = proc, true, []pool.PortRange{range64}, true
	cfg.Logger = slog.New(slog.NewTextHandler(&h.log, nil))
	h.Scanner = newScanner(t, cfg)
	h.dial = func(buffer []byte) (*sockdiag.Conn, error) {
		answer := healthy
		if h.sockets != nil {
			if h.sockets.dial != nil {
				return nil, h.sockets.dial
			}
			answer = h.sockets.answer
		}
		fd, err := sockdiagtest.Dial(answer)
		if err != nil {
			return nil, err
		}
		return sockdiag.NewConn(fd, buffer), nil
	}
	h.dialNAT = func(buffer []byte) (*conntrack.Conn, error) {
		h.flowDumps++
		f := h.flows
		if f != nil && f.dial != nil {
			return nil, f.dial
		}
		fd, err := sockdiagtest.Dial(func(r sockdiagtest.Request) [][]byte {
			if f != nil && f.change != nil {
				f.change(t, proc)
			}
			if f != nil && f.answer != nil {
				return f.answer(r)
			}
			own, foreign := "198.51.100.1:40001", "10.0.0.1:40002"
			return [][]byte{natRow(r), flowRow(r, own, own, 0), flowRow(r, foreign, foreign, 0), r.Done(0)}
		})
		if err != nil {
			return nil, err
		}
		return conntrack.NewConn(fd, buffer), nil
	}
	h.log.Reset()
	return h
}

// scanOnce returns the namespace and what was logged.
func (h *fakeHost) scanOnce(t *testing.T) (Namespace, string) {
	t.Helper()
	h.log.Reset()
	n := h.Scan(t.Context()).Namespaces[0]
	return n, h.log.String()
}

// checkSockets checks that the sockets of the fake kernel were read.
func checkSockets(t *testing.T, n Namespace) {
	t.Helper()
	if n.TCP.Outcome != Collected || n.TCP.Err != nil || len(n.TCP.Report.Destinations) != 1 {
		t.Errorf("sockets: got %q, %v, %+v, want one destination", n.TCP.Outcome, n.TCP.Err, n.TCP.Report.Destinations)
	}
}

// checkFlows checks that the flows of the fake kernel were read: one is translated, one is of an own socket,
// and one is neither.
func checkFlows(t *testing.T, n Namespace) {
	t.Helper()
	if n.NAT.Outcome == "" || n.NAT.Err != nil || len(n.NAT.Report.Pools) != 1 || n.NAT.Report.Pools[0].Held != 1 || n.NAT.Report.Flows != 2 || n.NAT.Duration <= 0 {
		t.Errorf("flows: got %+v, want one of one pool, of two", n.NAT)
	}
	if diff := cmp.Diff(wantConntrack, n.Conntrack); diff != "" {
		t.Errorf("conntrack (-want +got):\n%s", diff)
	}
}

// TestNATFaults checks that a fault of connection tracking gives no numbers, is logged once with its cause,
// and affects neither the sockets nor the next scan.
func TestNATFaults(t *testing.T) {
	for _, f := range natFaults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			proc := natProc(t)
			h := newFakeHost(t, proc)
			h.flows = &f
			if errors.Is(f.want, os.ErrDeadlineExceeded) {
				h.cfg.Timeout = 3 * time.Second
			}
			for _, logged := range []int{1, 0} { // the second time, it is known
				if f.change != nil {
					writeProc(t, proc, "sys/net/netfilter/nf_conntrack_buckets", "1024\n")
				}
				if f.before != nil {
					f.before(t, proc)
				}
				n, log := h.scanOnce(t)
				checkSockets(t, n)
				if n.NAT.Outcome == "" || !strings.Contains(n.NAT.Err.Error(), f.text) || f.want != nil && !errors.Is(n.NAT.Err, f.want) {
					t.Fatalf("flows: got %+v, want %v that says %q", n.NAT, f.want, f.text)
				}
				if diff := cmp.Diff(NAT{Result: failure(n.NAT.Err)}, n.NAT, cmpopts.EquateErrors()); diff != "" {
					t.Errorf("numbers of flows that could not be read (-want +got):\n%s", diff)
				}
				if (n.Conntrack.Entries == 0) != (n.Conntrack.Err != nil) {
					t.Errorf("conntrack %+v, error %v", n.Conntrack, n.Conntrack.Err)
				}
				if strings.Count(log, "\n") != logged {
					t.Errorf("log: got %q, want %d lines", log, logged)
				}
				for _, text := range []string{"level=ERROR", "netns=self", f.text} {
					if logged > 0 && !strings.Contains(log, text) {
						t.Errorf("log: got %q, want %q", log, text)
					}
				}
			}
			h.flows = nil
			h.cfg.Timeout = time.Minute
			h.proc = procfs.NewFS(natProc(t))
			n, log := h.scanOnce(t)
			checkSockets(t, n)
			checkFlows(t, n)
			if log != "" {
				t.Errorf("log after the fault: %s", log)
			}
		})
	}
}

// TestNATBesideFaults checks that the flows are known where the sockets are not.
func TestNATBesideFaults(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			h := newFakeHost(t, natProc(t))
			h.sockets = &f
			if errors.Is(f.want, os.ErrDeadlineExceeded) {
				h.cfg.Timeout = 3 * time.Second // an eighth of it is for the flows
			}
			n, log := h.scanOnce(t)
			if !errors.Is(n.TCP.Err, f.want) {
				t.Errorf("sockets: got %v, want %v", n.TCP.Err, f.want)
			}
			checkFlows(t, n)
			if strings.Count(log, "\n") != 1 || !strings.Contains(log, f.text) {
				t.Errorf("log: got %q, want one line with %q", log, f.text)
			}
		})
	}
}

// TestNATAbsent has hosts on which there is nothing to read, or not all of it. That is no failure.
func TestNATAbsent(t *testing.T) {
	for _, tt := range []struct {
		name      string
		change    func(t *testing.T, proc string)
		started   string // is logged at the start; the rest never
		conntrack Conntrack
		flows     bool
	}{
		{"no connection tracking", func(t *testing.T, proc string) {
			removeProc(t, proc, "sys/net/netfilter")
			removeProc(t, proc, "thread-self/net/stat")
		}, "tracks no flows", Conntrack{}, false},
		{"no flows", func(t *testing.T, proc string) { writeProc(t, proc, "sys/net/netfilter/nf_conntrack_count", "0\n") }, "",
			Conntrack{Result: read, Limit: 4096, Counted: true, InsertFailed: 10, Dropped: 17, EarlyDropped: 3}, false},
		{"no limit", func(t *testing.T, proc string) { removeProc(t, proc, "sys/net/netfilter/nf_conntrack_max") }, "",
			Conntrack{Result: read, Entries: 7, Counted: true, InsertFailed: 10, Dropped: 17, EarlyDropped: 3}, true},
		{"no counters", func(t *testing.T, proc string) { removeProc(t, proc, "thread-self/net/stat") }, "", Conntrack{Result: read, Entries: 7, Limit: 4096}, true},
		{"no timeouts", func(t *testing.T, proc string) {
			removeProc(t, proc, "sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait")
		}, "", wantConntrack, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proc := natProc(t)
			tt.change(t, proc)
			h := newFakeHost(t, proc)
			if err := h.openNAT(); err != nil {
				t.Error(err)
			}
			if log := h.log.String(); (log != "") != (tt.started != "") || strings.Count(log, "\n") > 1 || !strings.Contains(log, tt.started) {
				t.Errorf("log at the start: got %q, want %q", log, tt.started)
			}
			h.natTakesOver, h.flowDumps = false, 0
			for range 2 {
				n, log := h.scanOnce(t)
				checkSockets(t, n)
				if diff := cmp.Diff(tt.conntrack, n.Conntrack); diff != "" || log != "" {
					t.Errorf("conntrack (-want +got):\n%s, log %s", diff, log)
				}
				if !tt.flows {
					if n.NAT.Outcome != "" || h.flowDumps > 0 {
						t.Errorf("flows: got %+v after %d dumps, want none", n.NAT, h.flowDumps)
					}
					continue
				}
				if n.NAT.Outcome == "" || n.NAT.Err != nil || len(n.NAT.Report.Pools) != 1 {
					t.Fatalf("flows: got %+v, want a pool", n.NAT)
				}
				if c := n.NAT.Report.Pools[0].Ceiling; math.IsNaN(c) != (tt.name == "no timeouts") {
					t.Errorf("ceiling %v", c)
				}
			}
		})
	}
}

// TestNATUnasked checks that no flow is read without Config.SNAT, and that what needs no privilege is.
func TestNATUnasked(t *testing.T) {
	h := newFakeHost(t, natProc(t))
	h.cfg.SNAT = false
	n, log := h.scanOnce(t)
	if n.NAT.Outcome != "" || h.flowDumps > 0 || log != "" {
		t.Errorf("flows: got %+v after %d dumps, log %s", n.NAT, h.flowDumps, log)
	}
	if diff := cmp.Diff(wantConntrack, n.Conntrack); diff != "" {
		t.Errorf("conntrack (-want +got):\n%s", diff)
	}
}

// TestNATStart checks what ends the program at its start, and what is only logged.
func TestNATStart(t *testing.T) {
	for _, tt := range []struct {
		name    string
		errno   unix.Errno
		want    error
		text    string
		warning string
	}{
		{"forbidden", unix.EPERM, os.ErrPermission, "--snat cannot list the flows: conntrack: count flows: it needs CAP_NET_ADMIN", ""},
		{"no ctnetlink", unix.EINVAL, nil, "", "modprobe nf_conntrack_netlink"},
		{"busy", unix.EBUSY, nil, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newFakeHost(t, natProc(t))
			h.flows = &natFault{answer: func(r sockdiagtest.Request) [][]byte { return [][]byte{r.Error(tt.errno)} }}
			err := h.openNAT()
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
			log := h.log.String()
			if (log != "") != (tt.warning != "") || !strings.Contains(log, tt.warning) || strings.Count(log, "\n") > 1 {
				t.Errorf("log: got %q, want %q", log, tt.warning)
			}
		})
	}
	t.Run("no netlink", func(t *testing.T) {
		h := newFakeHost(t, natProc(t))
		h.flows = &natFault{dial: conntrack.ErrUnsupported}
		if err := h.openNAT(); err != nil || !strings.Contains(h.log.String(), "cannot be listed") {
			t.Errorf("got %v, log %q", err, &h.log)
		}
	})
}

// TestNATPrivilege checks that New names the capability that the process does not have.
func TestNATPrivilege(t *testing.T) {
	netnstest.New(t) // the thread, and what it has lost, end with the test
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.SNAT, cfg.SNATPorts = true, []pool.PortRange{range64}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "--snat") || !strings.Contains(err.Error(), "without CAP_NET_ADMIN") {
		t.Errorf("got %v, want an error with --snat and CAP_NET_ADMIN", err)
	}
}

// TestNATRow checks what becomes of the kernel's flows, and which of them are counted.
func TestNATRow(t *testing.T) {
	const nat = conntrack.SrcNAT
	base := conntrack.Flow{
		Protocol: conntrack.TCP, State: conntrack.Established, Status: nat,
		Original: conntrack.Tuple{Source: netip.MustParseAddrPort("10.0.0.1:1234"), Destination: netip.MustParseAddrPort("192.0.2.7:80")},
		Reply:    conntrack.Tuple{Source: netip.MustParseAddrPort("192.0.2.1:443"), Destination: netip.MustParseAddrPort("192.0.2.9:40000")},
		Zone:     4,
	}
	want := snat.Flow{
		Protocol: snat.TCP, State: snat.Established, Client: netip.MustParseAddr("10.0.0.1"), ClientPort: 1234,
		Translated: netip.MustParseAddrPort("192.0.2.9:40000"), Destination: netip.MustParseAddrPort("192.0.2.1:443"), Zone: 4, SNAT: true,
	}
	for _, tt := range []struct {
		protocol conntrack.Protocol
		state    conntrack.State
		status   conntrack.Status
		want     snat.State
	}{
		{conntrack.TCP, conntrack.SynSent, nat, snat.SynSent},
		{conntrack.TCP, conntrack.SynRecv, nat | conntrack.SeenReply, snat.SynRecv},
		{conntrack.TCP, conntrack.Established, nat | conntrack.Assured, snat.Established},
		{conntrack.TCP, conntrack.FinWait, nat, snat.FinWait},
		{conntrack.TCP, conntrack.CloseWait, nat, snat.CloseWait},
		{conntrack.TCP, conntrack.LastAck, nat, snat.LastAck},
		{conntrack.TCP, conntrack.TimeWait, nat, snat.TimeWait},
		{conntrack.TCP, conntrack.Close, nat, snat.Close},
		{conntrack.TCP, conntrack.SynSent2, nat, snat.SynSent2},
		{conntrack.TCP, conntrack.None, nat | conntrack.Offload, snat.Established},
		{conntrack.TCP, conntrack.SynSent2 + 1, nat, snat.Established}, // of a later kernel
		{conntrack.TCP, conntrack.SynSent, 0, snat.SynSent},
		{conntrack.UDP, conntrack.None, nat, snat.Unreplied},
		{conntrack.UDP, conntrack.None, nat | conntrack.SeenReply, snat.Replied},
		{conntrack.UDP, conntrack.None, nat | conntrack.SeenReply | conntrack.Assured, snat.Assured},
		{conntrack.UDP, conntrack.None, nat | conntrack.Offload, snat.Assured},
	} {
		f, want := base, want
		f.Protocol, f.State, f.Status = tt.protocol, tt.state, tt.status
		want.State, want.SNAT = tt.want, tt.status&nat != 0
		if tt.protocol == conntrack.UDP {
			want.Protocol = snat.UDP
		}
		row := snat.Flow{Zone: 99, SNAT: true, State: snat.LastAck} // of the flow before
		if setNATRow(&row, &f); row != want {
			t.Errorf("%+v: got %+v, want %+v", f, row, want)
		}
	}
}

// TestTakesOverKernel compares what a Scanner assumes with what this kernel does to packets. What it assumes to
// be held, it logs.
func TestTakesOverKernel(t *testing.T) {
	want := nattest.TakesOver(t)
	for _, backport := range []bool{false, true} {
		var log bytes.Buffer
		cfg := testConfig()
		cfg.SNAT, cfg.SNATPorts, cfg.SNATTakeover = true, []pool.PortRange{range64}, backport
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		if got := newScanner(t, cfg).natTakesOver; got != (want || backport) {
			t.Errorf("SNATTakeover %v: assumes %v, the kernel does %v", backport, got, want)
		}
		if logged := strings.Contains(log.String(), "see --snat.takeover"); logged == (want || backport) {
			t.Errorf("SNATTakeover %v, the kernel does %v: log %q", backport, want, &log)
		}
	}
}

// TestDropCounter tells drops between two scans from those before the first, and forgets them after a while.
func TestDropCounter(t *testing.T) {
	var c dropCounter
	start := time.Now()
	for _, tt := range []struct {
		name  string
		after time.Duration
		drops uint64
		want  bool
	}{
		{"before the first scan", 0, 7, false},
		{"none since", time.Minute, 7, false},
		{"one more", 2 * time.Minute, 8, true},
		{"another reader", 2*time.Minute + time.Second, 8, true},
		{"just recent", 7*time.Minute - 1, 8, true},
		{"long ago", 7 * time.Minute, 8, false},
		{"the module was loaded again", 8 * time.Minute, 0, false},
		{"one of the new count", 9 * time.Minute, 1, true},
	} {
		if got := c.observe(tt.drops, start.Add(tt.after)); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

//go:build linux

package scan

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
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
)

// udpFaults are ways in which a dump of UDP sockets can fail.
var udpFaults = []fault{
	{name: "udp_diag missing", want: sockdiag.ErrUnsupported, text: "modprobe udp_diag", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{r.Done(unix.ENOENT)}
	}},
	{name: "forbidden", want: os.ErrPermission, text: "not permitted", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{r.Error(unix.EPERM)}
	}},
	{name: "no buffers", want: unix.ENOBUFS, text: "no buffer space", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{udpRow(r), r.Error(unix.ENOBUFS)}
	}},
	{name: "IPv6 fails", want: unix.EBUSY, text: "resource busy", answer: func(r sockdiagtest.Request) [][]byte {
		if r.Body[0] == unix.AF_INET {
			return [][]byte{udpRow(r), r.Done(0)}
		}
		return [][]byte{r.Done(unix.EBUSY)}
	}},
	{name: "no answer", want: os.ErrDeadlineExceeded, text: "i/o timeout", answer: func(sockdiagtest.Request) [][]byte { return nil }},
	{name: "rows without an end", want: os.ErrDeadlineExceeded, text: "i/o timeout", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{udpRow(r)}
	}},
	{name: "half a message", want: sockdiag.ErrMalformed, text: "44 bytes left", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{udpRow(r)[:44]}
	}},
	{name: "interrupted", want: sockdiag.ErrInterrupted, text: "interrupted", answer: func(r sockdiagtest.Request) [][]byte {
		return [][]byte{udpRow(r), r.Message(unix.NLMSG_OVERRUN, 0, nil)}
	}},
}

// udpRow returns one socket.
func udpRow(r sockdiagtest.Request) []byte {
	return r.Socket(uint8(tcpstate.Close), netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("0.0.0.0:0"), 0)
}

// udpHealthy returns an answer with one socket.
func udpHealthy(r sockdiagtest.Request) [][]byte {
	if r.Body[0] == unix.AF_INET {
		return [][]byte{udpRow(r), r.Done(0)}
	}
	return [][]byte{r.Done(0)}
}

// udpFaultyScanner returns a Scanner whose kernel has the faults *tcp and *udp, none if these are nil, and
// enough UDP sockets to be read. It logs to the buffer.
func udpFaultyScanner(t *testing.T, tcp, udp **fault) (*Scanner, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	s := newScanner(t, Config{
		Proc:           fixedProc(t),
		Limits:         pool.Limits{MinPorts: 1, Most: 10},
		TimeWaitLength: time.Minute,
		Timeout:        time.Minute,
		Logger:         slog.New(slog.NewTextHandler(&log, nil)),
	})
	const sockstat = "TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 0\nUDP: inuse 20000 mem 0\n"
	if err := os.WriteFile(filepath.Join(s.cfg.Proc, "thread-self/net/sockstat"), []byte(sockstat), 0o644); err != nil {
		t.Fatal(err)
	}
	log.Reset()
	s.dial = func(buffer []byte) (*sockdiag.Conn, error) {
		tcp, udp := *tcp, *udp // the fake kernel is another goroutine
		fd, err := sockdiagtest.Dial(func(r sockdiagtest.Request) [][]byte {
			f, answer := tcp, healthy
			if r.Type == unix.SOCK_DIAG_BY_FAMILY && r.Body[1] == unix.IPPROTO_UDP {
				f, answer = udp, udpHealthy
			}
			if f != nil {
				answer = f.answer
			}
			return answer(r)
		})
		if err != nil {
			return nil, err
		}
		return sockdiag.NewConn(fd, buffer), nil
	}
	return s, &log
}

// checkUDPCollected checks that UDP was read.
func checkUDPCollected(t *testing.T, u UDP) {
	t.Helper()
	if u.Outcome != Collected || u.Err != nil || u.Report.Pools[0].Ports != 1 || u.Report.Pools[1].Ports != 0 || u.Report.CapacityPorts != 28232 {
		t.Errorf("UDP: got %+v", u)
	}
}

// checkTCPCollected checks that TCP was read.
func checkTCPCollected(t *testing.T, n Namespace) {
	t.Helper()
	if n.TCP.Outcome != Collected || n.TCP.Err != nil || len(n.TCP.Report.Destinations) != 1 {
		t.Errorf("TCP: got %+v", n)
	}
}

// TestUDPFaults checks that a fault of UDP gives no measured values, is logged once as long as it
// lasts, and affects neither TCP nor the next scan.
func TestUDPFaults(t *testing.T) {
	for i := range udpFaults {
		f := &udpFaults[i]
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			var none, current *fault
			s, log := udpFaultyScanner(t, &none, &current)
			current = f
			if errors.Is(f.want, os.ErrDeadlineExceeded) {
				s.cfg.Timeout = 3 * time.Second // an eighth of it is for UDP
			}
			if !errors.Is(f.want, os.ErrDeadlineExceeded) {
				if _, err := s.Check(); err != nil {
					t.Errorf("Check: %v", err)
				}
			}
			for range 2 {
				n := s.Scan(t.Context()).Namespaces[0]
				outcome := Failed
				if errors.Is(f.want, os.ErrDeadlineExceeded) {
					outcome = Deadline
				} else if errors.Is(f.want, sockdiag.ErrUnsupported) {
					outcome = Unsupported
				}
				want := UDP{Result: Result{outcome, n.UDP.Err}, Sockets: 20000}
				if diff := cmp.Diff(want, n.UDP, cmpopts.EquateErrors()); diff != "" || !errors.Is(n.UDP.Err, f.want) {
					t.Errorf("want %v and no numbers (-want +got):\n%s", f.want, diff)
				}
				checkTCPCollected(t, n)
			}
			if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "UDP") || !strings.Contains(got, f.text) {
				t.Errorf("log: got %q, want one line that says %q", got, f.text)
			}

			current = nil
			s.cfg.Timeout = time.Minute
			log.Reset()
			n := s.Scan(t.Context()).Namespaces[0]
			checkTCPCollected(t, n)
			checkUDPCollected(t, n.UDP)
			if log.Len() != 0 {
				t.Errorf("log after the fault: %s", log)
			}
		})
	}
}

// TestUDPBesideFaults checks that a fault of TCP does not affect UDP.
func TestUDPBesideFaults(t *testing.T) {
	for i := range faults {
		f := &faults[i]
		if f.answer == nil {
			continue // without netlink, there is no UDP either
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			var none *fault
			s, _ := udpFaultyScanner(t, &f, &none)
			if errors.Is(f.want, os.ErrDeadlineExceeded) {
				s.cfg.Timeout = 3 * time.Second // an eighth of it is for UDP
			}
			n := s.Scan(t.Context()).Namespaces[0]
			if !errors.Is(n.TCP.Err, f.want) {
				t.Errorf("TCP: got %v, want %v", n.TCP.Err, f.want)
			}
			checkUDPCollected(t, n.UDP)
		})
	}
}

// TestUDPFaultsLeakNothing checks descriptors and goroutines after 300 scans with faults.
func TestUDPFaultsLeakNothing(t *testing.T) {
	var none, current *fault
	s, _ := udpFaultyScanner(t, &none, &current)
	s.cfg.Timeout = 4 * time.Millisecond
	scans := func(n int) {
		for i := range n {
			current = &udpFaults[i%len(udpFaults)]
			s.Scan(t.Context())
		}
	}
	scans(len(udpFaults))
	time.Sleep(50 * time.Millisecond)
	fds, goroutines := inUse(t)
	scans(300)
	checkInUse(t, fds, goroutines)
}

//go:build linux

package scan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// newExactScanner returns a Scanner with the exact reader.
func newExactScanner(t *testing.T, cfg Config) *Scanner {
	t.Helper()
	netnstest.HostRoot(t)
	cfg.Exact = true
	s := newScanner(t, cfg)
	t.Cleanup(func() { s.iterator.Close() })
	return s
}

// TestExactNamespaces scans several namespaces, each with as many bound ports as its number says.
// Except for these, the report of each is that of a dump.
func TestExactNamespaces(t *testing.T) {
	dir := t.TempDir()
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	const n = 5
	for i := range n {
		netnstest.Mount(t, filepath.Join(dir, fmt.Sprint("ns", i)), func() {
			netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("40000 %d", 40099+2*i))
			c.Hold(t, smallSockets)
			c.bind(netnstest.BindFirst).Hold(t, i)
			clientTo("2001:db8::1", "[2001:db8::7]:80").Hold(t, 3)
			netnstest.TimeWait(t, c.Client, netnstest.Listen(t, "[::]:80", false), 4)
		})
	}
	cfg := testConfig()
	cfg.Scope, cfg.NamespaceDirs = ScopeNamed, []string{dir}
	scanner := newExactScanner(t, cfg)
	dump, exact := byName(newScanner(t, cfg)), byName(scanner)
	for i := range n {
		name := fmt.Sprint("ns", i)
		want, got := dump[name].TCP.Report, exact[name].TCP.Report
		if got.BoundPorts != i || !got.BoundKnown || want.BoundKnown {
			t.Errorf("%s: %d bound ports, known %v, of a dump %v, want %d, true, false", name, got.BoundPorts, got.BoundKnown, want.BoundKnown, i)
		}
		want.BoundPorts, want.BoundKnown, want.TimeWait = got.BoundPorts, got.BoundKnown, got.TimeWait
		for j, d := range want.Destinations {
			if d.Address != c.Destination { // it holds none of the bound ports
				want.Destinations[j].BoundByOthers = i
				want.Destinations[j].Utilization = float64(d.Held+i) / float64(want.CapacityPorts)
			}
		}
		want.BoundUnknown, want.MaxPossibleUtilization = 0, got.MaxPossibleUtilization
		if scanner.kernel.before(5, 15) { // the iterator does not see owners
			for _, r := range []*pool.Report{&want, &got} {
				for j := range r.Destinations {
					r.Destinations[j].Owners = nil
				}
			}
		}
		without := cmp.Options{
			cmpopts.IgnoreFields(pool.Destination{}, "Ceiling", "Timestamps", "PossibleUtilization", "MayBeBound"), // bound ports lower the ceiling
			cmpopts.IgnoreFields(pool.Source{}, "Bound", "MayBound"),
			cmpopts.IgnoreFields(pool.Report{}, "BoundExact"),
		}
		if diff := cmp.Diff(want, got, without, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
			t.Errorf("%s (-dump +exact):\n%s", name, diff)
		}
	}
}

// TestExactFaults checks that a fault gives no measured values, is logged once with its cause, and
// does not affect the next scan.
func TestExactFaults(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig()
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	s := newExactScanner(t, cfg)
	check := func(text string) error {
		t.Helper()
		log.Reset()
		n := s.Scan(t.Context()).Namespaces[0]
		if n.TCP.Err == nil || !strings.Contains(n.TCP.Err.Error(), text) || n.TCP.Report.CapacityPorts != 0 || n.TCP.Report.BoundKnown || n.TCP.Duration != 0 {
			t.Errorf("got %+v, want an error that says %q and no number", n, text)
		}
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, text) {
			t.Errorf("log: got %q, want one error that says %q", got, text)
		}
		return n.TCP.Err
	}

	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if n := s.Scan(late).Namespaces[0]; !errors.Is(n.TCP.Err, os.ErrDeadlineExceeded) || n.TCP.Outcome != Deadline {
		t.Errorf("after the deadline: got %+v", n)
	}
	s.fill = func(table *pool.Table, ports pool.PortRange, deadline time.Time) error {
		var limit unix.Rlimit
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
			return err
		}
		none := unix.Rlimit{Max: limit.Max}
		return errors.Join(
			unix.Prlimit(0, unix.RLIMIT_NOFILE, &none, nil),
			s.iterate(table, ports, deadline),
			unix.Prlimit(0, unix.RLIMIT_NOFILE, &limit, nil))
	}
	if err := check("sockiter: list tcp sockets: "); !errors.Is(err, unix.EMFILE) {
		t.Errorf("got %v, want %v", err, unix.EMFILE)
	}
	s.fill = s.iterate
	if n := s.Scan(t.Context()).Namespaces[0]; n.TCP.Err != nil || n.TCP.Outcome != Collected {
		t.Errorf("the scan after the faults: got %+v", n)
	}
	s.iterator.Close()
	_ = check("sockiter: list tcp sockets: ")
}

//go:build linux

package scan

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/trace"
)

// finWait2Sockets makes n mini-sockets in FIN_WAIT2 to a destination, in a range of ports, and waits until
// they are old enough for tcp_tw_reuse, which is on then.
func finWait2Sockets(t *testing.T, ports string, n int) oracleClient {
	t.Helper()
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", ports)
	begin := setReuse(t, 1)
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	listener := netnstest.Listen(t, "198.51.100.7:80", false)
	for range n {
		client, server := netnstest.Pair(t, c.Client, listener)
		t.Cleanup(func() { unix.Close(server) })
		unix.Close(client)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		d, ok := destinationOf(collect(t), c.source, c.Destination)
		if ok && d.Ports[slices.Index(pool.States[:], tcpstate.FinWait2)] == n {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %d mini-sockets in FIN_WAIT2: %+v", n, d)
		}
	}
	begin()
	return c
}

// TestOracleFinWait2 checks what a report says of mini-sockets in FIN_WAIT2: with a trial, as many ports are free
// as connect() grants. Without one, that lies between the ports that are free and those that may be.
func TestOracleFinWait2(t *testing.T) {
	netnstest.HostRoot(t)
	const ports, n = "40000 40019", 12
	reports := map[string]pool.Report{}
	c := finWait2Sockets(t, ports, n)
	for _, trials := range []bool{false, true} {
		for _, exact := range []bool{false, true} {
			cfg := testConfig()
			cfg.Trials, cfg.Exact = trials, exact
			name := map[bool]string{false: "not tried", true: "tried"}[trials] + map[bool]string{false: "", true: ", exact"}[exact]
			reports[name] = reportOf(t, newScanner(t, cfg))
		}
	}
	granted, _ := c.Fill(t, 40)
	for name, r := range reports {
		d, ok := destinationOf(r, c.source, c.Destination)
		if !ok || d.Held != n {
			t.Fatalf("%s: got %+v, want %d ports", name, d, n)
		}
		free := freeTo(r, c.source, c.Destination)
		known := r.Settings.ReuseFinWait2 != pool.Unknown
		if known != (d.ReusableUnknown == 0) || known && granted != free {
			t.Errorf("%s: %d ports are free and %d more may be, known %v; connect() granted %d", name, free, d.ReusableUnknown, known, granted)
		}
		if granted != free && granted != free+d.ReusableUnknown {
			t.Errorf("%s: %d ports are free and %d more may be; connect() granted %d", name, free, d.ReusableUnknown, granted)
		}
		if !known && strings.HasPrefix(name, "tried") {
			t.Errorf("%s: the trial did not tell", name)
		}
	}
	t.Logf("connect() takes over mini-sockets in FIN_WAIT2: %v", granted == 20)
}

// TestFinWait2Trial checks the trial itself, on any kernel: it compares with what connect() does here.
func TestFinWait2Trial(t *testing.T) {
	netnstest.HostRoot(t)
	fact, err := startFinWait2Trial("/proc").result(time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	c := finWait2Sockets(t, "40000 40000", 1)
	granted, _ := c.Fill(t, 2)
	if want := []pool.Fact{pool.No, pool.Yes}[granted]; fact != want {
		t.Errorf("the trial says %v, but connect() granted %d of one port in FIN_WAIT2", fact, granted)
	}
}

// TestFinWait2TrialFailures checks that no connect() of a trial fails: an exporter on the host would count it.
func TestFinWait2TrialFailures(t *testing.T) {
	t.Parallel()
	netnstest.LockTraces(t)
	probe, err := trace.Attach()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { probe.Close() })
	if _, err := startFinWait2Trial("/proc").result(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	counts, _, err := probe.Failures.Counts(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counts {
		if c.Destination == trialServer {
			t.Errorf("counted %+v", c)
		}
	}
}

// TestFinWait2TrialForbidden checks that a trial that is not allowed says why, and blocks nobody.
func TestFinWait2TrialForbidden(t *testing.T) {
	fact, err := startFinWait2Trial(t.TempDir()).result(time.Now().Add(time.Minute))
	if fact != pool.Unknown || err == nil {
		t.Errorf("got %v, %v, want an error", fact, err)
	}
	late := &finWait2Trial{done: make(chan struct{})}
	if fact, err := late.result(time.Now()); fact != pool.Unknown || err == nil {
		t.Errorf("at the deadline: got %v, %v, want an error", fact, err)
	}
}

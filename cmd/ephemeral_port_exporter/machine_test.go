//go:build linux && machine

package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// The tests of this file change what belongs to the whole machine. So they are only in the machines of .ci/kernels, which
// have no other use.

// A watched is an exporter in all modes, and what it must say.
type watched struct {
	*exporter
	gateway *gateway
	pool    string // mount of a namespace in which all ports to a destination are in use

	atStart         int // length of the log: it says then what an old kernel lacks
	drops, failures float64
}

const (
	watchedSockets     = 300
	watchedDestination = "192.0.2.9:7150"
)

// startOn starts an exporter on a CPU.
func startOn(t *testing.T, address string, cpu int) *watched {
	t.Helper()
	netnstest.LockTraces(t)
	netnstest.HoldInChild(t, netnstest.Holding{Client: netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:7150")}, Count: watchedSockets})
	dir, pools := openTempDir(t), openTempDir(t)
	w := &watched{gateway: newGateway(t, filepath.Join(dir, "gateway")), pool: filepath.Join(pools, "full")}
	if got := w.gateway.send(t, 64); got != 64 {
		t.Fatalf("%d of 64 flows were granted a port", got)
	}
	netnstest.Mount(t, w.pool, func() {
		netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40001")
		netnstest.Client{Destination: netip.MustParseAddrPort(watchedDestination)}.Hold(t, 2)
	})
	runOn(t, cpu)
	cmd := command(t, "--exact", "--trace", "--snat", "--snat.port-range=40000-40063", "--namespaces=named", "--namespaces.dir="+dir,
		"--web.listen-address="+address)
	w.exporter = start(t, cmd, "http://"+address)
	w.atStart = len(w.log.String())
	return w
}

// fail has n packets dropped, and as many connects fail, on a CPU.
func (w *watched) fail(t *testing.T, cpu, n int) {
	t.Helper()
	runOn(t, cpu)
	if got := w.gateway.send(t, n); got != 0 {
		t.Fatalf("%d flows were granted a port of a full pool", got)
	}
	w.drops += float64(n)
	netnstest.In(t, w.pool, func() {
		c := netnstest.Client{Destination: netip.MustParseAddrPort(watchedDestination)}
		for range n {
			if _, err := c.Connect(); err == nil {
				t.Fatal("connect() found a port in a full pool")
			}
		}
	})
	w.failures += float64(n)
}

// check scrapes once.
func (w *watched) check(t *testing.T, when string) {
	t.Helper()
	_, metrics := w.get(t, "/metrics")
	for series, want := range map[string]float64{
		`collect_success{netns="self"} `:           1,
		`collect_success{netns="gateway"} `:        1,
		`snat_collect_success{netns="gateway"} `:   1,
		`udp_collect_success{netns="self"} `:       1,
		`time_wait_overflows_total{netns="self"} `: 0,
		`destination_ports{destination_ip="192.0.2.1",destination_port="7150",netns="self",source_ip="198.51.100.1",state="established"} `: watchedSockets,
		`conntrack_insert_failed_total{netns="gateway"} `: w.drops,
		`conntrack_dropped_total{netns="gateway"} `:       w.drops,
		`snat_collect_flows{netns="gateway"} `:            64,
		`snat_utilization_ratio{destination_ip="192.0.2.7",destination_port="443",netns="gateway",protocol="udp",source_ip="198.51.100.1"} `: 1,
		`connect_failures_unattributed_total `: 0,
	} {
		if !strings.Contains(metrics, "\nephemeral_port_"+series) {
			t.Errorf("%s: no %s", when, series)
		} else if got := sample(t, metrics, "ephemeral_port_"+series); got != want {
			t.Errorf("%s: %s%v, want %v", when, series, got, want)
		}
	}
	if got := failuresTo(t, metrics, watchedDestination); got != w.failures {
		t.Errorf("%s: %v failed connects, want %v", when, got, w.failures)
	}
	if said := w.log.String()[w.atStart:]; strings.Contains(said, "level=ERROR") || strings.Contains(said, "level=WARN") {
		t.Fatalf("%s: log:\n%s", when, said)
	}
}

// runOn has this test, and processes that it starts from now on, run on one CPU.
func runOn(t *testing.T, cpu int) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
}

// setOnline takes a CPU offline, or back.
func setOnline(t *testing.T, cpu int, online bool) {
	t.Helper()
	value := map[bool]string{false: "0", true: "1"}[online]
	if err := os.WriteFile(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/online", cpu), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// TestOfflineCPU takes the CPU offline on which the exporter has started and on which all was counted, and back, in the
// midst of scrapes. The kernel counts for each CPU: no counter falls or jumps, and what happens meanwhile is counted.
func TestOfflineCPU(t *testing.T) {
	const cpu, other = 1, 0
	w := startOn(t, "127.0.0.1:10330", cpu)
	t.Cleanup(func() { setOnline(t, cpu, true) })
	w.fail(t, cpu, 30)
	w.check(t, "on the CPU")
	runOn(t, other)
	for range 5 {
		setOnline(t, cpu, false)
		w.check(t, "offline")
		w.fail(t, other, 7)
		w.check(t, "offline, after failures")
		setOnline(t, cpu, true)
		w.check(t, "online again")
		w.fail(t, cpu, 5)
		runOn(t, other)
		w.check(t, "online again, after failures")
	}

	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for online := false; ; online = !online {
			setOnline(t, cpu, online)
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	for range 30 {
		w.check(t, "on and off")
	}
	close(end)
	<-ended
}

// TestClockJumps sets the wall clock forward and back while the exporter is scraped. No number depends on it, except when
// the exporter was started: for Prometheus that stays true.
func TestClockJumps(t *testing.T) {
	w := startOn(t, "127.0.0.1:10331", 0)
	w.fail(t, 0, 3)
	jump := func(by time.Duration) {
		t.Helper()
		now := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
			t.Fatal(err)
		}
	}
	const day = 24 * time.Hour
	for _, by := range []time.Duration{day, -day, -day, day, 20 * 365 * day, -20 * 365 * day} {
		jump(by)
		w.check(t, by.String())
		_, metrics := w.get(t, "/metrics")
		if ago := time.Since(time.Unix(int64(sample(t, metrics, "process_start_time_seconds ")), 0)); ago < -time.Minute || ago > 10*time.Minute {
			t.Errorf("%v: process_start_time_seconds is %v ago", by, ago)
		}
		w.fail(t, 0, 2)
		w.check(t, by.String()+", after failures")
		for _, path := range []string{"/", "/?format=json", "/?port=7150"} {
			if status, body := w.get(t, path); status != 200 {
				t.Errorf("%v: %s: status %d:\n%s", by, path, status, body)
			}
		}
	}
}

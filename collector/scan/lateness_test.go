//go:build linux

package scan

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/sockdiag"
)

// testLateness compares how long ports are in TIME_WAIT with the least and the most that the exporter
// reckons with. It closes connections for longer than a slot of the kernel's timer wheel lasts, so that
// timers of all ages are in it.
func testLateness(t *testing.T) {
	const n, interval = 400, 30 * time.Millisecond
	tr := newTraffic(t, 1000, false, 0)
	tr.connect() // that the exporter has something to report
	tr.closeDue()
	d := tr.scan()
	hold := tr.holdOf(d, 1000)
	conn, err := sockdiag.Dial(make([]byte, sockdiag.BufferSize))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	// A port is freed after seen and before missed.
	type port struct{ closing, closed, seen, missed time.Time }
	ports := make(map[uint16]*port)
	held := n
	begin := time.Now()
	for opened := 0; held > 0 && time.Since(begin) < hold+30*time.Second; {
		for ; opened < n && time.Since(begin) > time.Duration(opened)*interval; opened++ {
			client, server := netnstest.Pair(t, tr.client.Client, tr.listener)
			local, err := unix.Getsockname(client)
			if err != nil {
				t.Fatal(err)
			}
			p := &port{closing: time.Now()}
			netnstest.Hangup(client)
			netnstest.Hangup(server)
			p.closed = time.Now()
			ports[uint16(local.(*unix.SockaddrInet4).Port)] = p
		}
		before := time.Now()
		dumped := make(map[uint16]bool)
		if err := conn.Sockets([]tcpstate.State{tcpstate.TimeWait}, 40000, 40999, func(s *sockdiag.Socket) { dumped[s.Local.Port()] = true }); err != nil {
			t.Fatal(err)
		}
		after := time.Now()
		for number, p := range ports {
			switch {
			case dumped[number]:
				p.seen = before
			case p.missed.IsZero():
				p.missed = after
				held--
			}
		}
		time.Sleep(interval)
	}
	if held > 0 {
		t.Fatalf("%d of %d ports are still held", held, n)
	}

	var times []time.Duration
	for number, p := range ports {
		// A busy machine can be late by a moment more.
		if least, most := p.missed.Sub(p.closing), p.seen.Sub(p.closed); least < time.Minute-tick || most > hold+time.Second {
			t.Errorf("port %d was freed %v to %v after it was closed, want %v to %v", number, most, least, time.Minute, hold)
		}
		times = append(times, p.missed.Sub(p.closed))
	}
	slices.Sort(times)
	ms := time.Millisecond
	t.Logf("in TIME_WAIT for %v to %v, median %v; the ceiling reckons with %v", times[0].Round(ms), times[n-1].Round(ms), times[n/2].Round(ms), hold.Round(ms))
}

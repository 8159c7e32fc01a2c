//go:build linux

package main

import (
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// TestProgramsRate lets programs that close first make requests at a steady rate until no port is left, and
// then with tcp_tw_reuse at less and at more than the rate that the ports sustain. It checks what the exporter says of
// rates and times.
func TestProgramsRate(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	netnstest.LockTraces(t)
	for i, name := range []string{
		"HAProxy, `mode tcp`", "nginx", "Squid, `server_persistent_connections off`", "Squid, `server_persistent_connections off`, `tcp_outgoing_address`",
		"Apache, `disablereuse=on`", "Go, `DisableKeepAlives`", "Go, `DisableKeepAlives`, `LocalAddr`",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := programs[slices.IndexFunc(programs, func(p program) bool { return p.name == name })]
			h := newHost(t, steadySize)
			r := h.run(t, p, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i)}), 8001), keeps)
			testSteady(t, h, r)
			testReuse(t, h, r)
		})
	}
}

// 200 ports at 25 requests per second last for 8 s.
const (
	steadySize = 200
	steadyRate = 25.
)

// A pace says when requests are due. Time that the machine loses is not made up for.
type pace struct {
	interval time.Duration
	next     time.Time
	lost     time.Duration
}

func newPace(perSecond float64) *pace {
	return &pace{interval: time.Duration(float64(time.Second) / perSecond), next: time.Now()}
}

// wait waits until the next request is due.
func (p *pace) wait() {
	p.next = p.next.Add(p.interval)
	if late := time.Since(p.next); late > p.interval {
		p.lost += late
		p.next = time.Now()
	}
	time.Sleep(time.Until(p.next))
}

// testSteady makes requests until the first fails.
func testSteady(t *testing.T, h *host, r *running) {
	type forecast struct{ at, exhaustion float64 } // seconds
	var forecasts []forecast
	begin, steady := time.Now(), newPace(steadyRate)
	for i := 0; ; i++ {
		steady.wait()
		s, now := h.scrape(t), time.Since(begin).Seconds()
		ceiling := s.of(t, "destination_ceiling_requests_per_second", r.destination)
		if i > 0 && (ceiling > steadySize/60. || ceiling < (steadySize-5)/65.) {
			t.Fatalf("%d ports sustain %v closes per second, says\n%s", steadySize, ceiling, s)
		}
		// The rate is that of the last 10 s. The last connections may not yet be closed.
		if got := math.Round(10 * s.of(t, "destination_closes_per_second", r.destination)); now < 9 && (got < float64(i-5) || got > float64(i)) {
			t.Fatalf("%v closes after %d requests", got, i)
		}
		// It takes 100 connections to know the present rate.
		if i > 5*steadyRate {
			forecasts = append(forecasts, forecast{now, s.of(t, "destination_exhaustion_seconds", r.destination)})
		}
		if !r.request(t) {
			break
		}
		if i > steadySize {
			t.Fatalf("request %d did not fail", i)
		}
	}
	end, tolerance := time.Since(begin).Seconds(), steady.lost.Seconds()
	for _, f := range forecasts {
		if left := end - f.at; math.Abs(f.exhaustion-left) > left/10+0.5+tolerance {
			t.Errorf("after %.1f s, a forecast of %.1f s: the first request failed after %.1f s more", f.at, f.exhaustion, left)
		}
	}
	if s := h.scrape(t); s.of(t, "destination_exhaustion_seconds", r.destination) != 0 {
		t.Errorf("exhausted, and the forecast is not 0:\n%s", s)
	}
}

// testReuse goes on with tcp_tw_reuse. With it, the ports sustain the rate at which they were used up.
func testReuse(t *testing.T, h *host, r *running) {
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "1")
	if r.ports == byBind {
		// bind() does not take over TIME_WAIT, however old.
		netnstest.Sysctl(t, "ipv4/tcp_tw_reuse_delay", "1")
		s := h.scrape(t)
		if r.request(t) || s.of(t, "source_utilization_ratio", r.destination) != 1 ||
			s.of(t, "destination_utilization_ratio", r.destination) != 1 || s.of(t, "destination_exhaustion_seconds", r.destination) != 0 {
			t.Errorf("bind(ip, 0) found a port, says\n%s", s)
		}
		return
	}
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse_delay", "8000")
	ratio := func() float64 {
		s := h.scrape(t)
		return s.of(t, "destination_closes_per_second", r.destination) / s.of(t, "destination_ceiling_requests_per_second", r.destination)
	}
	until(t, "ports are free again", func() bool { return ratio() < 0.94 })
	slower := newPace(0.6 * steadyRate)
	for range int(2 * steadyRate) {
		slower.wait()
		if got := ratio(); !r.request(t) || got > 0.95 {
			t.Fatalf("at 0.6 of the ceiling a request failed, or closes / ceiling is %v", got)
		}
	}
	for i := 0; ; i++ {
		if i > 20*steadySize {
			t.Fatal("no request failed")
		}
		ok, got := r.request(t), ratio()
		if got > 1.05 {
			t.Fatalf("closes / ceiling is %v", got)
		}
		if !ok && got > 0.95 {
			break
		}
	}
}

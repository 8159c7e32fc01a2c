//go:build linux

package scan

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

var belowCeiling = flag.Duration("below-ceiling", 65*time.Second, "how long TestLoad drives connections just below the ceiling")

// tick is the greatest tick of the kernel's clock, by which ages in TIME_WAIT can be wrong.
const tick = 10 * time.Millisecond

// A traffic is connections to one destination that the client closes first, at a steady rate. What it
// did counts, not what was planned: the machine can be too busy for the plan.
type traffic struct {
	t        *testing.T
	client   oracleClient
	listener int

	others      []oracleClient // take turns with client
	turn        int
	serverFirst bool // the server closes first

	answer time.Duration // how long a connection is open
	linger time.Duration // then, how long until the server closes it

	// When the machine was too busy, connections are made up for up to this time. Further ones
	// are lost.
	catchUp time.Duration

	next     time.Time     // planned time of the next connection
	lost     time.Duration // by which the plan was delayed
	lastLost time.Time
	open     []exchange // not closed by the client, in order
	halfOpen []exchange // not closed by the server, in order
	closes   []closing  // when connections came to TIME_WAIT, or to FIN_WAIT2 if they stay there, in order

	nextScan time.Time
	observe  func(now time.Time, d pool.Destination) // is called each second
}

// An exchange is one connection.
type exchange struct {
	client, server int
	due            time.Time // for the next end to be closed
}

// A closing is the period in which a connection was closed.
type closing struct{ begin, end time.Time }

// newTraffic returns the traffic of a new namespace with these settings. The delay is that of
// tcp_tw_reuse_delay; without reuse, closed connections hold their ports for a minute.
func newTraffic(t *testing.T, ports int, reuse bool, delay time.Duration) *traffic {
	t.Helper()
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("40000 %d", 40000+ports-1))
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "0")
	netnstest.Sysctl(t, "ipv4/tcp_rfc1337", "1")
	hold := time.Minute
	if reuse {
		netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "1")
		hold = setReuseDelay(t, delay)
	}
	tr := &traffic{
		t: t, client: clientTo("198.51.100.1", "198.51.100.7:80"), catchUp: hold / 60,
		observe: func(time.Time, pool.Destination) {},
	}
	tr.listener = netnstest.Listen(t, tr.client.Destination.String(), false)
	t.Cleanup(func() {
		for _, e := range tr.open {
			unix.Close(e.client)
			unix.Close(e.server)
		}
		for _, e := range tr.halfOpen {
			unix.Close(e.server)
		}
	})
	return tr
}

// run makes connections for a time, or until one fails because no port is free.
func (tr *traffic) run(perSecond float64, d time.Duration) (failed bool) {
	tr.t.Helper()
	interval := time.Duration(float64(time.Second) / perSecond)
	tr.next = time.Now().Add(interval)
	for end := time.Now().Add(d); time.Now().Before(end); {
		wake := tr.closeDue()
		switch now := time.Now(); {
		case !now.Before(tr.next):
			if !tr.connect() {
				return true
			}
			tr.next = tr.next.Add(interval)
			if late := now.Sub(tr.next) - tr.catchUp; late > 0 {
				tr.next = tr.next.Add(late)
				tr.lost += late
				tr.lastLost = now
			}
		case !now.Before(tr.nextScan): // not while connections are to be made up for
			tr.observe(now, tr.scan())
			tr.nextScan = now.Add(max(time.Second, 10*time.Since(now))) // a scan walks the sockets of the whole machine
		}
		for _, next := range []time.Time{tr.next, tr.nextScan} {
			if next.Before(wake) {
				wake = next
			}
		}
		time.Sleep(time.Until(wake))
	}
	return false
}

// connect opens a connection. It returns false if no port is free.
func (tr *traffic) connect() bool {
	tr.t.Helper()
	c := tr.client
	if tr.turn = (tr.turn + 1) % (len(tr.others) + 1); tr.turn > 0 {
		c = tr.others[tr.turn-1]
	}
	client, err := c.Dial()
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return false
	}
	if err != nil {
		tr.t.Fatal(err)
	}
	server, _, err := unix.Accept4(tr.listener, unix.SOCK_CLOEXEC)
	if err != nil {
		tr.t.Fatal(err)
	}
	if tr.serverFirst {
		client, server = server, client
	}
	tr.open = append(tr.open, exchange{client, server, time.Now().Add(tr.answer)})
	tr.closeDue()
	return true
}

// closeDue closes what is due. It returns when the next is due, at most in a second.
func (tr *traffic) closeDue() (next time.Time) {
	for len(tr.open) > 0 && !time.Now().Before(tr.open[0].due) {
		e := tr.open[0]
		tr.open = tr.open[1:]
		begin := time.Now()
		netnstest.Hangup(e.client)
		if tr.linger == never {
			tr.closes = append(tr.closes, closing{begin, time.Now()})
		}
		e.due = begin.Add(tr.linger)
		tr.halfOpen = append(tr.halfOpen, e)
	}
	for len(tr.halfOpen) > 0 && !time.Now().Before(tr.halfOpen[0].due) {
		begin := time.Now()
		netnstest.Hangup(tr.halfOpen[0].server)
		if tr.linger != never {
			tr.closes = append(tr.closes, closing{begin, time.Now()})
		}
		tr.halfOpen = tr.halfOpen[1:]
	}
	next = time.Now().Add(time.Second)
	for _, queue := range [][]exchange{tr.open, tr.halfOpen} {
		if len(queue) > 0 && queue[0].due.Before(next) {
			next = queue[0].due
		}
	}
	return next
}

// scan returns what the exporter says of the pool.
func (tr *traffic) scan() pool.Destination {
	tr.t.Helper()
	before := time.Now()
	r := collect(tr.t)
	after := time.Now()
	for _, d := range r.Destinations {
		if d.Address == tr.client.Destination {
			tr.checkCloseRate(r.Settings, d, before, after)
			return d
		}
	}
	return pool.Destination{Ceiling: math.NaN(), Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1)}
}

// checkCloseRate compares the close rate with the connections that were closed. The time that they
// are in FIN_WAIT2 is not known to the exporter, so it checks the rate only if there is none.
func (tr *traffic) checkCloseRate(s pool.Settings, d pool.Destination, before, after time.Time) {
	tr.t.Helper()
	if tr.linger != 0 {
		return
	}
	window := 10 * time.Second
	if s.TWReuse == 1 && s.TWReuseDelay != 0 {
		window = min(window, s.TWReuseDelay)
	} else if s.TWReuse == 1 {
		window = time.Second
	}
	least, most := 0, 0
	for _, c := range tr.closes {
		if after.Sub(c.begin) < window-tick {
			least++
		}
		if before.Sub(c.end) < window+tick {
			most++
		}
	}
	// On a busy machine a late segment can end TIME_WAIT, see RFC 1337.
	if n := int(math.Round(d.CloseRate * window.Seconds())); n < least-1-least/20 || n > most {
		tr.t.Errorf("close rate: got %v, so %d connections of the last %v, want %d to %d: %+v", d.CloseRate, n, window, least, most, d)
	}
}

// closedSince returns the rate at which connections were closed in the last time of that length.
func (tr *traffic) closedSince(d time.Duration) float64 {
	now, n := time.Now(), 0
	for _, c := range tr.closes {
		if now.Sub(c.end) < d {
			n++
		}
	}
	return float64(n) / d.Seconds()
}

// holdOf returns for how long a closed connection holds its port, according to the ceiling of a pool
// with so many ports for them.
func (tr *traffic) holdOf(d pool.Destination, ports int) time.Duration {
	return time.Duration(float64(ports) / d.Ceiling * float64(time.Second))
}

// TestLoad drives connections below and above the ceilings that the exporter says, and up to
// exhaustion, in many namespaces at the same time: TIME_WAIT takes a minute.
func TestLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes 2 minutes")
	}
	t.Parallel()
	var wg sync.WaitGroup
	run := func(name string, test func(t *testing.T)) {
		// Not parallel subtests: of these, only as many run as there are CPUs.
		wg.Go(func() { t.Run(name, test) })
	}
	run("lateness", testLateness)
	run("what if", testWhatIfMinute)
	for _, reuse := range []bool{false, true} {
		for _, keepAlive := range []int{0, 200} {
			for _, answer := range []time.Duration{0, 2 * time.Second, 20 * time.Second} {
				if !reuse && answer == 20*time.Second {
					continue // it takes 3 minutes, and differs from the one with reuse in the hold only
				}
				run(fmt.Sprintf("ceiling/reuse %v/answers of %v/%d kept alive", reuse, answer, keepAlive), func(t *testing.T) {
					testCeiling(t, reuse, keepAlive, answer, 0)
				})
			}
		}
		run(fmt.Sprintf("ceiling/reuse %v/peers that close after 5s", reuse), func(t *testing.T) { testCeiling(t, reuse, 100, 0, 5*time.Second) })
		run(fmt.Sprintf("ceiling/reuse %v/peers that never close", reuse), func(t *testing.T) { testCeiling(t, reuse, 100, 0, never) })
		run(fmt.Sprintf("below the ceiling/reuse %v", reuse), func(t *testing.T) { testBelowCeiling(t, reuse) })
		for _, full := range []float64{0, 0.5} {
			for _, rate := range []float64{1.2, 2, 5} {
				if !reuse && full > 0 && rate < 2 {
					continue // it takes two minutes, and differs from the one with reuse in the hold only
				}
				run(fmt.Sprintf("forecast/reuse %v/from %v to %v of the ceiling", reuse, full, rate), func(t *testing.T) { testForecast(t, reuse, full, rate) })
			}
		}
	}
	wg.Wait()
}

const (
	finTimeout = 20 * time.Second
	never      = 40 * time.Second // FIN_WAIT2 has ended long before
)

// testCeiling raises the rate in steps until a connection finds no port. Then the host has closed
// connections at the ceiling, for as long as they hold their ports.
func testCeiling(t *testing.T, reuse bool, keepAlive int, answer, linger time.Duration) {
	ports := 1000
	if reuse {
		ports = 500
	}
	tr := newTraffic(t, ports, reuse, 10*time.Second)
	netnstest.Sysctl(t, "ipv4/tcp_fin_timeout", strconv.Itoa(int(finTimeout.Seconds())))
	tr.client.Hold(t, keepAlive)
	tr.connect() // that the exporter has something to report
	d := tr.scan()
	timeWait := d.Ports[slices.Index(pool.States[:], tcpstate.TimeWait)]
	hold := tr.holdOf(d, ports-d.Held+timeWait)
	tr.answer, tr.linger = answer, linger
	life := hold + answer + linger
	if linger == never {
		life = finTimeout + 2*time.Second // and so late
	}

	rate := 0.9 * float64(ports-keepAlive) / life.Seconds()
	if !reuse {
		rate *= 1.13 // what is below the ceiling is left to testBelowCeiling, as each step takes more than a minute
	}
	lost := tr.lost
	for deadline := time.Now().Add(10 * time.Minute); !tr.run(rate, life*5/4); rate *= 1.13 {
		if time.Now().After(deadline) {
			t.Fatalf("no connection failed at a rate of %v", rate)
		}
		lost = tr.lost
	}
	busy := tr.lost - lost // for so long of the last step the machine made no connections
	d = tr.scan()
	if d.Utilization < 0.9 { // the timer that frees the ports of some seconds may have fired since
		t.Errorf("utilization %v after a connection failed, want 1", d.Utilization)
	}
	if now := tr.closedSince(finTimeout / 6); linger == never && math.Abs(d.CloseRate-now) > 0.15*now+d.CloseRate*busy.Seconds()/(finTimeout/6).Seconds() {
		t.Errorf("close rate %v, the host closes %v per second", d.CloseRate, now)
	}
	open := keepAlive + len(tr.open)
	if linger != never {
		open += len(tr.halfOpen)
	}
	hold = tr.holdOf(d, ports-open)
	closed := tr.closedSince(hold)
	t.Logf("ceiling %.2f, closes %.2f; the host closed %.2f per second in %v; lost %v", d.Ceiling, d.CloseRate, closed, hold, tr.lost)
	if load := closed / d.Ceiling; load < 0.95-busy.Seconds()/hold.Seconds() || load > 1.05 {
		t.Errorf("a connection failed when this host had closed %.3f per second for %v, %.3f × the ceiling of %.3f", closed, hold, load, d.Ceiling)
	}
}

// testBelowCeiling stays just below the ceiling for a long time, and then exceeds it.
func testBelowCeiling(t *testing.T, reuse bool) {
	tr := newTraffic(t, 1000, reuse, 30*time.Second)
	tr.connect() // that the exporter has something to report
	ceiling := tr.scan().Ceiling
	if tr.run(0.97*ceiling, *belowCeiling) {
		t.Errorf("a connection failed at 0.97 × the ceiling of %v, after %d of which %v per second were in the last 10 s",
			ceiling, len(tr.closes), tr.closedSince(10*time.Second))
	}
	below, lost, begin := len(tr.closes), tr.lost, time.Now()
	for deadline := begin.Add(10 * time.Minute); !tr.run(1.05*ceiling, 10*time.Second); {
		if time.Now().After(deadline) {
			t.Fatalf("no connection failed at 1.05 × the ceiling of %v", ceiling)
		}
	}
	t.Logf("ceiling %.2f: %d connections in %v at 0.97 × that, lost %v; then at 1.05 × the first failed after %v", ceiling, below, *belowCeiling, lost, time.Since(begin).Round(time.Second))
}

// testForecast compares each forecast with the time at which the first connection failed. It starts
// again if the machine was so busy that there was no forecast of a steady rate.
func testForecast(t *testing.T, reuse bool, full, rate float64) {
	for deadline := time.Now().Add(10 * time.Minute); !forecast(t, reuse, full, rate); {
		if time.Now().After(deadline) {
			t.Fatal("the machine is too busy for a steady rate")
		}
	}
}

// forecast returns false if there was no forecast of a steady rate.
func forecast(t *testing.T, reuse bool, full, rate float64) bool {
	ports := 1000
	if reuse {
		ports = 400
	}
	tr := newTraffic(t, ports, reuse, 30*time.Second)
	tr.connect() // that the exporter has something to report
	d := tr.scan()
	ceiling, hold := d.Ceiling, tr.holdOf(d, ports)
	if full > 0 {
		tr.observe = func(_ time.Time, d pool.Destination) {
			if !math.IsInf(d.Exhaustion, 1) {
				t.Errorf("exhausted in %v s at %v × the ceiling", d.Exhaustion, full)
			}
		}
		tr.run(full*ceiling, hold+2*time.Second)
	}

	type forecast struct {
		at   time.Time
		in   time.Duration
		lost time.Duration
	}
	var forecasts []forecast
	start := time.Now()
	tr.observe = func(now time.Time, d pool.Destination) {
		// A rate shows after a second or a hundred connections, and at most ten seconds. Ages are
		// known to a sixtieth of the hold.
		shows := time.Duration(min(max(1, 100/(rate*ceiling)), 10)*float64(time.Second)) + hold/60 + tr.catchUp
		if now.Sub(start) > shows && now.Sub(tr.lastLost) > shows {
			in := time.Duration(min(d.Exhaustion, 1e6) * float64(time.Second))
			forecasts = append(forecasts, forecast{now, in, tr.lost})
		}
	}
	if !tr.run(rate*ceiling, 10*time.Minute) {
		t.Fatalf("no connection failed at %v × the ceiling of %v", rate, ceiling)
	}
	failed := time.Now()
	if d := tr.scan(); d.Exhaustion > 8 { // some ports may be free again, see testCeiling
		t.Errorf("exhausted in %v s after a connection failed, want 0", d.Exhaustion)
	}
	steady := 0
	for _, f := range forecasts {
		if f.lost != tr.lost {
			continue // the rate fell after it
		}
		steady++
		want := failed.Sub(f.at)
		if tolerance := max(want/10, 2*time.Second); (want - f.in).Abs() > tolerance {
			t.Errorf("%v before the first failure the forecast was %v, wrong by more than %v", want, f.in, tolerance)
		}
	}
	t.Logf("%d forecasts in %v, lost %v", steady, failed.Sub(start), tr.lost)
	return steady > 0
}

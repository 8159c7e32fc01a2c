//go:build linux

package scan

import (
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// A whatIfTest is a host whose load is changed after the exporter has said what then happens.
type whatIfTest struct {
	*traffic
	scanner *Scanner
	kept    []exchange // connections that stay open
	asked   []closing  // when there were requests, see requests
}

// newWhatIf returns the load of a namespace with these settings, see newTraffic.
func newWhatIf(t *testing.T, ports int, reuse bool) *whatIfTest {
	t.Helper()
	w := &whatIfTest{traffic: newTraffic(t, ports, reuse, time.Second), scanner: newScanner(t, testConfig())}
	t.Cleanup(func() {
		for _, e := range w.kept {
			abort([]int{e.client, e.server})
		}
	})
	return w
}

// keep opens up to n connections that stay open, from the clients in turn. It returns how many found a port.
func (w *whatIfTest) keep(n int) (granted int) {
	w.t.Helper()
	for i := range n {
		c := w.client
		if turn := i % (len(w.others) + 1); turn > 0 {
			c = w.others[turn-1]
		}
		client, err := c.Dial()
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE) {
			return i
		}
		if err != nil {
			w.t.Fatal(err)
		}
		server, _, err := unix.Accept4(w.listener, unix.SOCK_CLOEXEC)
		if err != nil {
			w.t.Fatal(err)
		}
		w.kept = append(w.kept, exchange{client: client, server: server})
	}
	return n
}

// requests has each connection carry so many requests, at a rate of requests, for a time.
func (w *whatIfTest) requests(each int, perSecond float64, d time.Duration) {
	w.t.Helper()
	interval := time.Duration(float64(time.Second) / perSecond)
	var client, server, left int
	buffer := make([]byte, 1)
	for next, end := time.Now(), time.Now().Add(d); next.Before(end); next = next.Add(interval) {
		time.Sleep(time.Until(next))
		if left == 0 {
			client, server = netnstest.Pair(w.t, w.client.Client, w.listener)
			left = each
		}
		begin := time.Now()
		for _, way := range [][2]int{{client, server}, {server, client}} {
			if _, err := unix.Write(way[0], buffer); err != nil {
				w.t.Fatal(err)
			}
			if _, err := unix.Read(way[1], buffer); err != nil {
				w.t.Fatal(err)
			}
		}
		w.asked = append(w.asked, closing{begin, time.Now()})
		if left--; left == 0 {
			begin := time.Now()
			netnstest.Hangup(client)
			netnstest.Hangup(server)
			w.closes = append(w.closes, closing{begin, time.Now()})
		}
	}
	if left > 0 {
		w.kept = append(w.kept, exchange{client: client, server: server})
	}
}

// report returns what a scan says, and of the pool of a client.
func (w *whatIfTest) report(of oracleClient) (Namespace, *pool.Destination) {
	w.t.Helper()
	n := w.scanner.Scan(w.t.Context()).Namespaces[0]
	for i := range n.TCP.Report.Destinations {
		if d := &n.TCP.Report.Destinations[i]; d.Source == of.source && d.Address == of.Destination {
			return n, d
		}
	}
	w.t.Fatalf("no such destination: %v, %+v", n.TCP.Err, n.TCP.Report.Destinations)
	return Namespace{}, nil
}

// A forecastOf says what a Change does to the load of the moment at which it was made, which had so many closes per second.
type forecastOf struct {
	what   func(advice.Change) advice.Prediction
	closes float64
}

// predict returns the predictions for the load of now.
func (w *whatIfTest) predict() forecastOf {
	w.t.Helper()
	n, d := w.report(w.client)
	t := advice.TimeWaitSockets{Sockets: n.TimeWait.Sockets, Limit: n.TimeWait.Limit, Overflows: n.TimeWait.Overflows, Recent: n.TimeWait.Recent, Window: n.TimeWait.Window}
	w.t.Logf("now: utilization %.3f, closes %.1f, ceiling %.1f", d.Utilization, d.CloseRate, d.Ceiling)
	return forecastOf{func(c advice.Change) advice.Prediction { return advice.WhatIf(&n.TCP.Report, d, t, false, c) }, d.CloseRate}
}

// check compares the pools with a prediction, which is made for as much load as the clients had in the last time of that length at the
// scan: a busy machine has less than is planned. done is when they closed, or asked; nil if all of the load is open
// connections. Before Linux 6.14, ports that are reused are in use until the second ends, so that there are fewer at its begin.
func (w *whatIfTest) check(f forecastOf, c advice.Change, done *[]closing, last time.Duration) {
	w.t.Helper()
	least, most := c, c
	load := func() float64 {
		n := 0.
		for _, c := range *done {
			if time.Since(c.end) < last {
				n++
			}
		}
		return n / last.Seconds() / f.closes
	}
	if done != nil {
		most.Load = load()
	}
	for _, client := range append(w.others, w.client) {
		_, d := w.report(client)
		if done != nil {
			least.Load = load() // some got a second old meanwhile
		}
		used := advice.Interval{Least: f.what(least).Utilization.Least, Most: f.what(most).Utilization.Most}
		w.t.Logf("%+v: predicted were %.3f, from %v utilization is %.3f, closes %.1f, ceiling %.1f", most, used, client.source, d.Utilization, d.CloseRate, d.Ceiling)
		if d.Utilization < used.Least && (last != time.Second || hasReuseDelay()) || d.Utilization > used.Most {
			w.t.Errorf("from %v: utilization %v, predicted was %v", client.source, d.Utilization, used)
		}
	}
}

// suffices checks that a prediction says for certain whether the ports suffice.
func (w *whatIfTest) suffices(p advice.Prediction, want bool) {
	w.t.Helper()
	w.t.Logf("predicted: used %.3f, closes %.1f, ceiling %.1f, %s at x %.2f, %v", p.Utilization, p.Closes, p.Ceiling, p.Limit, p.LimitAt, p.Level)
	if used := p.Utilization; want && used.Most >= 1 || !want && used.Least < 1 {
		w.t.Errorf("predicted was %+v, want that the ports suffice: %v", p, want)
	}
}

// TestWhatIf makes each change after the exporter has predicted what it does, and compares the kernel with that.
func TestWhatIf(t *testing.T) {
	t.Parallel()
	second := clientTo("198.51.100.2", "198.51.100.7:80").bind(netnstest.BindNoPort)
	tests := map[string]func(t *testing.T){
		"open connections": func(t *testing.T) {
			w := newWhatIf(t, 200, false)
			w.keep(60)
			f := w.predict()
			w.suffices(f.what(advice.Change{Load: 2}), true)
			w.suffices(f.what(advice.Change{Load: 5}), false)
			w.keep(60)
			w.check(f, advice.Change{Load: 2}, nil, 0)
			if granted := w.keep(180); granted != 80 {
				t.Errorf("%d of 180 further connections found a port, want 80", granted)
			}
		},
		"one address more": func(t *testing.T) {
			w := newWhatIf(t, 1000, false)
			w.keep(300)
			f := w.predict()
			w.suffices(f.what(advice.Change{Load: 5}), false)
			w.suffices(f.what(advice.Change{Load: 5, Addresses: 1}), true)
			w.others = []oracleClient{second}
			for _, e := range w.kept {
				abort([]int{e.client, e.server})
			}
			w.kept = nil
			if granted := w.keep(1500); granted != 1500 {
				t.Errorf("%d of 1500 connections found a port", granted)
			}
			w.check(f, advice.Change{Load: 5, Addresses: 1}, nil, 0)
		},
		"closes, with reuse": func(t *testing.T) {
			w := newWhatIf(t, 200, true)
			w.keep(1)
			w.run(40, 1200*time.Millisecond)
			f := w.predict()
			w.suffices(f.what(advice.Change{Load: 2}), true)
			w.suffices(f.what(advice.Change{Load: 100}), false)
			if w.run(80, 1200*time.Millisecond) {
				t.Error("a connection failed at twice the load")
			}
			w.check(f, advice.Change{}, &w.closes, time.Second)
			if !w.run(100*f.closes, 30*time.Second) {
				t.Error("no connection failed at a hundred times the load")
			}
		},
		"reuse": func(t *testing.T) {
			w := newWhatIf(t, 100, false)
			w.keep(1)
			w.run(60, time.Second)
			f := w.predict()
			if p := f.what(advice.Change{}); p.Utilization.Most < 1 {
				t.Errorf("predicted was %+v, want that the ports may not suffice", p)
			}
			w.suffices(f.what(advice.Change{Reuse: true}), true)
			if !w.run(60, 30*time.Second) {
				t.Error("no connection failed without reuse")
			}
			netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "1")
			time.Sleep(setReuseDelay(t, time.Second) + 2*tick)
			if w.run(20, 1200*time.Millisecond) {
				t.Error("a connection failed with reuse")
			}
			w.check(f, advice.Change{Reuse: true}, &w.closes, time.Second)
		},
		"keep-alive": func(t *testing.T) {
			w := newWhatIf(t, 200, true)
			w.keep(1)
			w.requests(1, 60, 1200*time.Millisecond)
			f := w.predict()
			w.suffices(f.what(advice.Change{Load: 100}), false)
			w.suffices(f.what(advice.Change{Load: 10, KeepAlive: 10}), true)
			w.requests(10, 600, 1200*time.Millisecond)
			w.check(f, advice.Change{KeepAlive: 10}, &w.asked, time.Second)
		},
		"the limit of TIME_WAIT": func(t *testing.T) {
			w := newWhatIf(t, 1000, false)
			netnstest.Sysctl(t, "ipv4/tcp_max_tw_buckets", "40")
			netnstest.TimeWait(t, w.client.Client, w.listener, 20)
			f := w.predict()
			if p := f.what(advice.Change{Load: 2}); p.Limit != advice.LimitTimeWait || p.LimitAt > 2 {
				t.Errorf("predicted was %+v, want that TIME_WAIT is full first", p)
			}
			netnstest.TimeWait(t, w.client.Client, w.listener, 1500) // of 1000 ports
			if n, _ := w.report(w.client); n.TimeWait.Overflows == 0 {
				t.Errorf("none skips TIME_WAIT: %+v", n.TimeWait)
			}
			w.check(f, advice.Change{Load: 75}, nil, 0)
		},
		"clients that bind first": func(t *testing.T) {
			w := newWhatIf(t, 200, false)
			w.client = w.client.bind(netnstest.BindFirst)
			for _, n := range []int{1, 59} {
				w.keep(n)
				w.report(w.client)
			}
			f := w.predict()
			w.suffices(f.what(advice.Change{Load: 2}), true)
			w.suffices(f.what(advice.Change{Load: 5}), false)
			if p := f.what(advice.Change{Load: 5}); p.Limit != advice.LimitSource {
				t.Errorf("predicted was %+v", p)
			}
			w.keep(60)
			_, d := w.report(w.client)
			r := selfReport(t, w.scanner)
			if u, p := sourceOf(t, r, d.Source).Utilization, f.what(advice.Change{Load: 2}); u < p.Utilization.Least || u > p.Utilization.Most {
				t.Errorf("utilization of the source %v, predicted was %v", u, p.Utilization)
			}
			if granted := w.keep(180); granted != 80 {
				t.Errorf("%d of 180 further connections found a port, want 80", granted)
			}
		},
	}
	var wg sync.WaitGroup
	for name, test := range tests {
		wg.Go(func() { t.Run(name, test) }) // not parallel subtests: of these, only as many run as there are CPUs
	}
	wg.Wait()
}

// testWhatIfMinute does that for a load that is steady for as long as TIME_WAIT lasts: then the prediction is as narrow as can be.
func testWhatIfMinute(t *testing.T) {
	w := newWhatIf(t, 1000, false)
	w.keep(1)
	w.run(5, 63*time.Second)
	f := w.predict()
	w.suffices(f.what(advice.Change{Load: 2}), true)
	w.suffices(f.what(advice.Change{Load: 10}), false)
	w.suffices(f.what(advice.Change{Load: 5, Reuse: true}), true)
	w.suffices(f.what(advice.Change{Load: 5, KeepAlive: 10}), true)
	w.suffices(f.what(advice.Change{Load: 2, Addresses: 1}), true)
	if used := f.what(advice.Change{}).Utilization; used.Most > 4*used.Least {
		t.Errorf("predicted were %v", used)
	}
	if w.run(10, 63*time.Second) {
		t.Error("a connection failed at twice the load")
	}
	w.check(f, advice.Change{}, &w.closes, 61*time.Second)
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "1")
	time.Sleep(setReuseDelay(t, time.Second) + 2*tick)
	if w.run(50, 1200*time.Millisecond) {
		t.Error("a connection failed at ten times the load, with reuse")
	}
	w.check(f, advice.Change{Reuse: true}, &w.closes, time.Second)
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "0")
	if !w.run(100, time.Minute) {
		t.Error("no connection failed far above ten times the load")
	}
}

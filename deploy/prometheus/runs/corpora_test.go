//go:build linux && record

package runs

import (
	"math"
	"time"
)

// A run is what a host does, and what the alerts are to say of it.
type run struct {
	Name, About string

	// Answer is the worst severity that is right: page, warn or silent.
	Answer string

	low, high int           // ip_local_port_range, unless 0: the kernel's default
	to        string        // the destination, unless empty: one that is not loopback
	length    time.Duration // unless 0: usualLength
	twice     bool          // two scrapers

	script func(w *workload, e *exporter, now float64)
}

const usualLength = 22 * time.Minute

const hold = 62. // for how many seconds a closed connection holds its port, at most

// during reports whether a time lies between two others.
func during(now, from, to float64) bool { return now >= from && now < to }

// ramp goes from one value to another between two times.
func ramp(now, from, to, low, high float64) float64 {
	return low + (high-low)*min(max((now-from)/(to-from), 0), 1)
}

// losing pauses the exporter for a while of each period, which differs from period to period.
func losing(e *exporter, now, period, paused float64) {
	phase := math.Mod(now+17*math.Floor(now/period), period)
	e.pause(phase < paused)
}

// corpora are the runs that the rules were tuned on, and those that only judge them.
var corpora = map[string][]run{
	"tuned": {
		{
			Name: "keep-alive", About: "600 of 1,000 ports by connections that stay open. One in 30 s is replaced.", Answer: "silent",
			low: 20000, high: 20999,
			script: func(w *workload, _ *exporter, _ float64) { w.keep(600, 1./30) },
		},
		{
			Name: "no-keep-alive", About: "Requests at 60% of the ceiling of 1,000 ports, each with a connection of its own.", Answer: "silent",
			low: 20000, high: 20999,
			script: func(w *workload, _ *exporter, _ float64) { w.requests(0.6 * 1000 / hold) },
		},
		{
			Name: "no-keep-alive-wide", About: "Requests at 60% of the ceiling of 10,000 ports. connect() searches thousands of ports for a free one.", Answer: "warn",
			low: 20000, high: 29999,
			script: func(w *workload, _ *exporter, _ float64) { w.requests(0.6 * 10000 / hold) },
		},
		{
			Name: "batch", About: "Twice, a batch of 58 s at 95% of the ceiling of 1,000 ports. Before and after it, 20 open connections.", Answer: "silent",
			low: 20000, high: 20999,
			script: func(w *workload, _ *exporter, now float64) {
				w.keep(20, 0)
				if during(now, 300, 358) || during(now, 937, 995) {
					w.requests(0.95 * 980 / hold)
				}
			},
		},
		{
			Name: "batch-alone", About: "A batch of 58 s at 95% of the ceiling of 1,000 ports, to a destination without other connections.", Answer: "silent",
			low: 20000, high: 20999, length: 6 * time.Minute,
			script: func(w *workload, _ *exporter, now float64) {
				if during(now, 107, 165) {
					w.requests(0.95 * 1000 / hold)
				}
			},
		},
		{
			Name: "deploy", About: "A proxy with 420 open connections of 1,000 ports is deployed twice: within 5 s, all are closed and opened again. Some attempts are closed at once.", Answer: "silent",
			low: 20000, high: 20999,
			script: func(w *workload, _ *exporter, now float64) {
				if during(now, 400, 405) || during(now, 1007, 1012) {
					w.reconnect(w.count("storm", 84))
					w.requests(8)
				}
				w.keep(420, 0.5)
			},
		},
		{
			Name: "leak", About: "An application never closes what its servers have closed: 0.8 connections per second, of 1,000 ports. They run out after 20 minutes.", Answer: "page",
			low: 20000, high: 20999,
			script: func(w *workload, _ *exporter, _ float64) { w.keep(30, 0.2); w.leak(0.8) },
		},
		{
			Name: "slow-leak", About: "Of the default range, an application leaks a connection in 5 s. At first, it has leaked 150, and 150 are open.", Answer: "warn",
			script: func(w *workload, _ *exporter, _ float64) {
				for len(w.leaked) < 150 {
					w.leakOne()
				}
				w.keep(150, 0.2)
				w.leak(0.2)
			},
		},
		{
			Name: "drain", About: "600 open connections of 1,000 ports and 2 closes per second. Within 5 minutes, all end: 20 at once each 10 s.", Answer: "silent",
			low: 20000, high: 20999,
			script: func(w *workload, _ *exporter, now float64) {
				w.keep(600-20*int(ramp(now, 600, 900, 0, 30)), 0)
				w.requests(ramp(now, 600, 900, 2, 0))
			},
		},
		{
			Name: "bursts", About: "Each 3 minutes, a job makes 1,100 connections within 10 s, of 1,000 ports. About 200 of these fail.", Answer: "page",
			low: 20000, high: 20999,
			script: func(w *workload, _ *exporter, now float64) {
				w.keep(100, 0)
				if during(math.Mod(now, 180), 60, 70) {
					w.requests(110)
				}
			},
		},
		{
			Name: "cron", About: "Each 2 minutes, a job makes 500 connections within 20 s, of 1,000 ports.", Answer: "silent",
			low: 20000, high: 20999,
			script: func(w *workload, _ *exporter, now float64) {
				w.keep(50, 0)
				if during(math.Mod(now, 120), 0, 20) {
					w.requests(25)
				}
			},
		},
		{
			Name: "cron-minute", About: "Each minute, a job makes 300 connections within 5 s, of 1,000 ports: a scrape each minute always sees it.", Answer: "silent",
			low: 20000, high: 20999,
			script: func(w *workload, _ *exporter, now float64) {
				w.keep(50, 0)
				if math.Mod(now+8, 60) < 5 {
					w.requests(60)
				}
			},
		},
		{
			Name: "growth", About: "Requests rise from 30% to 70% of the ceiling of 1,000 ports within 18 minutes.", Answer: "warn",
			low: 20000, high: 20999,
			script: func(w *workload, _ *exporter, now float64) {
				w.requests(ramp(now, 200, 1300, 0.3, 0.7) * 1000 / hold)
			},
		},
		{
			Name: "two-prometheus", About: "Requests rise from 50% to 120% of the ceiling of 1,000 ports within 12 minutes. Two Prometheus scrape, one 2.6 s after the other.", Answer: "page",
			low: 20000, high: 20999, twice: true,
			script: func(w *workload, _ *exporter, now float64) {
				w.requests(ramp(now, 300, 1020, 0.5, 1.2) * 1000 / hold)
			},
		},
		{
			Name: "lost-scrapes", About: "As keep-alive. The host is so busy that a third of the scrapes fail, and for 100 s all.", Answer: "silent",
			low: 20000, high: 20999,
			script: func(w *workload, e *exporter, now float64) {
				w.keep(600, 1./30)
				switch {
				case during(now, 900, 1000):
					e.pause(true)
				case during(now, 200, 1200):
					losing(e, now, 50, 17)
				default:
					e.pause(false)
				}
			},
		},
		{
			Name: "lost-scrapes-full", About: "As two-prometheus, of 600 ports, with one Prometheus and a third of the scrapes lost.", Answer: "page",
			low: 20000, high: 20599,
			script: func(w *workload, e *exporter, now float64) {
				w.requests(ramp(now, 300, 1020, 0.5, 1.2) * 600 / hold)
				losing(e, now, 40, 14)
			},
		},
		{
			Name: "restart", About: "As keep-alive. The exporter is restarted three times.", Answer: "silent",
			low: 20000, high: 20999,
			script: func(w *workload, e *exporter, now float64) {
				w.keep(600, 1./30)
				for _, at := range []float64{402, 811, 1173} {
					e.restartAt(now, at)
				}
			},
		},
		{
			Name: "restart-full", About: "Open connections take all of 500 ports within 5 minutes, and more are tried. Then the exporter is restarted.", Answer: "page",
			low: 20000, high: 20499,
			script: func(w *workload, e *exporter, now float64) {
				if n := int(ramp(now, 300, 600, 100, 501)); n <= 500 || w.count("retry", 1) > 0 {
					w.keep(n, 0)
				}
				for _, at := range []float64{802, 1003} {
					e.restartAt(now, at)
				}
			},
		},
	},
	"judged": {
		{
			Name: "keep-alive", About: "1,100 of 1,500 ports by connections that stay open. One in 3 s is replaced.", Answer: "silent",
			low: 30000, high: 31499,
			script: func(w *workload, _ *exporter, _ float64) { w.keep(1100, 1./3) },
		},
		{
			Name: "no-keep-alive", About: "Requests at 70% of the ceiling of 400 ports.", Answer: "silent",
			low: 30000, high: 30399,
			script: func(w *workload, _ *exporter, _ float64) { w.requests(0.7 * 400 / hold) },
		},
		{
			Name: "no-keep-alive-wide", About: "Requests at 70% of the ceiling of 8,000 ports.", Answer: "warn",
			low: 30000, high: 37999,
			script: func(w *workload, _ *exporter, _ float64) { w.requests(0.7 * 8000 / hold) },
		},
		{
			Name: "loopback", About: "Requests at 65% of the ceiling of 200 ports, which connect() takes over after 1 s: on loopback.", Answer: "silent",
			low: 30000, high: 30199, to: "127.0.9.9:443",
			script: func(w *workload, _ *exporter, _ float64) { w.requests(0.65 * 200) },
		},
		{
			Name: "batch", About: "Each 7 minutes, a batch of 45 s at 97% of the ceiling of 600 ports.", Answer: "silent",
			low: 30000, high: 30599,
			script: func(w *workload, _ *exporter, now float64) {
				w.keep(60, 0.1)
				if during(math.Mod(now, 420), 100, 145) {
					w.requests(0.97 * 540 / hold)
				}
			},
		},
		{
			Name: "batch-alone", About: "A batch of 50 s at 90% of the ceiling of 400 ports, to a destination without other connections.", Answer: "silent",
			low: 30000, high: 30399, length: 6 * time.Minute,
			script: func(w *workload, _ *exporter, now float64) {
				if during(now, 93, 143) {
					w.requests(0.9 * 400 / hold)
				}
			},
		},
		{
			Name: "deploy", About: "Three times, one of three workers with 200 open connections each of 800 ports is restarted within 2 s, 90 s apart.", Answer: "silent",
			low: 30000, high: 30799,
			script: func(w *workload, _ *exporter, now float64) {
				for _, at := range []float64{500, 590, 680} {
					if during(now, at, at+2) {
						w.reconnect(w.count("storm", 70))
						w.requests(10)
					}
				}
				w.keep(400, 0.3)
			},
		},
		{
			Name: "leak", About: "An application leaks 2 connections per second of 2,000 ports, beside 300 open ones.", Answer: "page",
			low: 30000, high: 31999,
			script: func(w *workload, _ *exporter, _ float64) { w.keep(300, 1); w.leak(2) },
		},
		{
			Name: "slow-leak", About: "Of 10,000 ports, an application leaks 9 connections in a minute, beside 400 that stay open. At first, it has leaked 240.", Answer: "warn",
			low: 30000, high: 39999,
			script: func(w *workload, _ *exporter, _ float64) {
				for len(w.leaked) < 240 {
					w.leakOne()
				}
				w.keep(400, 1)
				w.leak(0.15)
			},
		},
		{
			Name: "drain", About: "1,050 open connections of 1,400 ports end within 2 minutes, 70 at once each 8 s.", Answer: "silent",
			low: 30000, high: 31399,
			script: func(w *workload, _ *exporter, now float64) {
				w.keep(1050-70*int(ramp(now, 700, 820, 0, 15)), 0.5)
			},
		},
		{
			Name: "bursts", About: "Each 5 minutes, a job makes 700 connections within 30 s, of 500 ports. About 200 of these fail.", Answer: "page",
			low: 30000, high: 30499,
			script: func(w *workload, _ *exporter, now float64) {
				if during(math.Mod(now, 300), 120, 150) {
					w.requests(700. / 30)
				}
			},
		},
		{
			Name: "cron", About: "Each 5 minutes, a job makes 900 connections within 60 s, of 1,500 ports.", Answer: "silent",
			low: 30000, high: 31499,
			script: func(w *workload, _ *exporter, now float64) {
				w.keep(100, 0.1)
				if during(math.Mod(now, 300), 30, 90) {
					w.requests(15)
				}
			},
		},
		{
			Name: "growth", About: "Open connections rise from 500 to 1,400 of 2,000 ports within 18 minutes.", Answer: "warn",
			low: 30000, high: 31999,
			script: func(w *workload, _ *exporter, now float64) {
				w.keep(int(ramp(now, 120, 1200, 500, 1400)), 0.5)
			},
		},
		{
			Name: "two-prometheus", About: "Requests jump from 40% to 130% of the ceiling of 700 ports. Two Prometheus scrape, one 2.6 s after the other.", Answer: "page",
			low: 30000, high: 30699, twice: true,
			script: func(w *workload, _ *exporter, now float64) {
				w.requests(ramp(now, 600, 601, 0.4, 1.3) * 700 / hold)
			},
		},
		{
			Name: "lost-scrapes", About: "As no-keep-alive, of 700 ports. Half of the scrapes fail.", Answer: "silent",
			low: 30000, high: 30699,
			script: func(w *workload, e *exporter, now float64) {
				w.requests(0.6 * 700 / hold)
				e.pause(false)
				if during(now, 100, 1200) {
					losing(e, now, 60, 31)
				}
			},
		},
		{
			Name: "lost-scrapes-full", About: "Open connections rise from 300 to all of 900 ports within 15 minutes. Half of the scrapes fail.", Answer: "page",
			low: 30000, high: 30899,
			script: func(w *workload, e *exporter, now float64) {
				if n := int(ramp(now, 120, 1020, 300, 901)); n <= 900 || w.count("retry", 2) > 0 {
					w.keep(n, 0.1)
				}
				losing(e, now, 70, 36)
			},
		},
		{
			Name: "restart", About: "As loopback, at 50% of the ceiling of 100 ports. The exporter is restarted each 3 minutes.", Answer: "silent",
			low: 30000, high: 30099, to: "127.0.9.9:443",
			script: func(w *workload, e *exporter, now float64) {
				w.requests(50)
				e.restartAt(now, 180*math.Floor(now/180))
			},
		},
		{
			Name: "restart-full", About: "Requests at 130% of the ceiling of 300 ports, for 5 minutes. Within them, the exporter is restarted.", Answer: "page",
			low: 30000, high: 30299,
			script: func(w *workload, e *exporter, now float64) {
				w.requests(map[bool]float64{true: 1.3, false: 0.3}[during(now, 600, 900)] * 300 / hold)
				e.restartAt(now, 700)
			},
		},
	},
}

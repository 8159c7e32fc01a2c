package pool

import (
	"net/netip"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
)

// TestTimestampsUse has a namespace with tcp_tw_reuse, and connections in TIME_WAIT that were closed one each second.
func TestTimestampsUse(t *testing.T) {
	const start = 1000 * time.Second
	on := reusing(hundredPorts, time.Second)
	off := on
	off.Timestamps = 0
	ages := func(from, to int) (ages []int) {
		for age := from; age < to; age++ {
			ages = append(ages, age)
		}
		return ages
	}
	type scan struct {
		settings  Settings
		at        int   // seconds after the start
		ages      []int // of the connections in TIME_WAIT, in seconds; 20 are closed at once
		low, high int   // of these, those that connect() cannot take over, and those that it may not
	}
	for name, scans := range map[string][]scan{
		"always on": {
			{on, 0, ages(2, 4), 0, 2},
			{on, 15, ages(2, 4), 0, 0},
		},
		"switched on": {
			{off, 0, ages(2, 4), 2, 2},
			{on, 15, []int{2, 18}, 2, 2},
			{on, 30, []int{3, 17, 33}, 2, 2},
			{on, 80, []int{3, 17, 33}, 0, 0},
		},
		"off and on again": {
			{on, 0, nil, 0, 0},
			{off, 15, nil, 0, 0},
			{on, 30, []int{3}, 1, 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var k Knowledge
			for i, s := range scans {
				now := start + time.Duration(s.at)*time.Second
				table := NewTable(s.settings)
				table.Recall(k, now)
				for n, age := range s.ages {
					socket := socket(tcpstate.TimeWait, "10.0.0.1:40000", "10.0.1.1:80")
					socket.Local = netip.AddrPortFrom(socket.Local.Addr(), uint16(40000+2*n))
					socket.Mini, socket.Seen, socket.Expires = true, now, time.Minute-time.Duration(age)*time.Second
					table.Add(&socket)
				}
				table.Infer(&k, everything)
				r := table.Report(everything)
				if low, high := r.MaxUtilization, r.MaxPossibleUtilization; low != float64(s.low)/100 || high != float64(s.high)/100 {
					t.Errorf("scan %d: utilization %v, possibly %v, want %v, %v", i, low, high, s.low, s.high)
				}
			}
		})
	}
}

// TestTimestampsUseProof has scans a second apart. What left TIME_WAIT early had timestamps, and so have those closed
// later.
func TestTimestampsUseProof(t *testing.T) {
	const start = 1000 * time.Second
	scan := func(now time.Duration, perSecond func(age int) int) (u timestampsUse) {
		u.closes.read = now
		for age := range 60 {
			for range perSecond(age) {
				u.closes.add(now-time.Duration(age)*time.Second, time.Duration(age)*time.Second)
			}
		}
		u.since = start
		return u
	}
	all := func(int) int { return 100 }
	for _, tt := range []struct {
		name  string
		then  func(age int) int
		since time.Duration
		all   bool
	}{
		{"none left", all, start, false},
		{"some of all ages left", func(int) int { return 95 }, start - 54*time.Second, true},
		{"of those closed in the last 30 s", func(age int) int { return 100 - 20*min(max(31-age, 0), 1) }, start - 28*time.Second, false},
		{"few", func(age int) int { return 100 - max(age-55, 0) }, start, false},
		{"more than before", func(int) int { return 120 }, start, false},
	} {
		u := scan(start+time.Second, tt.then)
		all := u.learn(scan(start, all))
		if u.since != tt.since || all != tt.all {
			t.Errorf("%s: since %v, all %v, want %v, %v", tt.name, u.since, all, tt.since, tt.all)
		}
	}
}

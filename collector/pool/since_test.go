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
	burst := func(second int) func(int) int {
		return func(age int) int { return 8 * min(max(1-max(age-second, second-age), 0), 1) }
	}
	u := scan(start+time.Second, burst(20))
	if all := u.learn(scan(start, burst(20))); all || u.since != start {
		t.Errorf("of the same closes, which seem to be a second later: since %v, all %v", u.since, all)
	}
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

// TestEarlierConnections has connections that are open when tcp_timestamps is switched on, and so have no timestamps. Those
// of the same ports may be others at each scan.
func TestEarlierConnections(t *testing.T) {
	const start = 1000 * time.Second
	on := reusing(hundredPorts, time.Second)
	off := on
	off.Timestamps = 0
	type conns map[uint16]int // by port: how many seconds ago a connection was closed, or open
	const open = -1
	type scan struct {
		settings  Settings
		at        int // seconds after the start
		conns     conns
		low, high int
	}
	held := scan{off, 0, conns{40000: open, 40002: open}, 2, 2}
	turn := scan{on, 15, conns{40000: open, 40002: open, 40004: open}, 3, 3}
	for name, scans := range map[string][]scan{
		"closed": {
			held, turn,
			{on, 30, conns{40000: 5, 40002: open, 40004: 10}, 1, 3},
			{on, 45, conns{40000: 20, 40002: 2, 40004: 25}, 0, 3},
			{on, 95, conns{40002: 52}, 0, 1},
		},
		"others on other ports": {
			held, turn,
			{on, 30, conns{40000: open, 40002: open, 40006: 5, 40008: 5}, 2, 4}, // nobody told of the peer
			{on, 45, conns{40000: open, 40002: open, 40008: 20, 40010: open}, 3, 3},
		},
		"others later on the same ports": {
			held, turn,
			{on, 30, conns{40000: 2, 40002: open}, 1, 2},
			{on, 95, conns{40000: open, 40002: open, 40004: open}, 3, 3},
			{on, 110, conns{40000: 5, 40002: open, 40004: 5}, 1, 1},
		},
		"taken over": { // in TIME_WAIT at two scans, but not the same
			held, turn,
			{on, 30, conns{40000: 10}, 0, 1},
			{on, 45, conns{40000: 3}, 0, 0},
		},
		"closed while the scan lasted": {
			held, turn,
			{on, 30, conns{40000: 0, 40002: 5}, 1, 2}, // younger than the delay
			{on, 45, conns{40000: 15, 40002: 20}, 0, 2},
		},
		"closed before the first scan after the change": {
			held,
			{on, 15, conns{40000: 10, 40002: open}, 2, 2},
			{on, 76, conns{40002: open}, 1, 1},
			{on, 90, conns{40000: 5, 40002: open, 40006: open}, 2, 2},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var k Knowledge
			for i, s := range scans {
				now := start + time.Duration(s.at)*time.Second
				table := NewTable(s.settings)
				table.Recall(k, now)
				for port, closed := range s.conns {
					socket := socket(tcpstate.Established, "10.0.0.1:40000", "10.0.1.1:80")
					socket.Local, socket.Seen = netip.AddrPortFrom(socket.Local.Addr(), port), now
					if closed != open {
						socket.State, socket.Mini, socket.Expires = tcpstate.TimeWait, true, time.Minute-time.Duration(closed)*time.Second
					}
					table.Add(&socket)
				}
				for _, q := range table.Questions(everything) {
					k.Answer(q, !q.earlier, now, time.Minute) // the peer does
				}
				table.Infer(&k, everything)
				r := table.Report(everything)
				k.Keep(&r)
				if low, high := r.MaxUtilization, r.MaxPossibleUtilization; low != float64(s.low)/100 || high != float64(s.high)/100 {
					t.Errorf("scan %d: utilization %v, possibly %v, want %v, %v", i, low, high, s.low, s.high)
				}
			}
		})
	}
}

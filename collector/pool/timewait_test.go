package pool

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/internal/tcpstate"
)

func TestTimeWaitRule(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	const slot = 2048 * ms // of the timer wheel for 60 s, with the tick below
	tests := []struct {
		reuse, timestamps int
		delay, length     time.Duration
		loopback          bool

		reusable bool
		hold     time.Duration
	}{
		{0, 1, 1 * s, 60 * s, false, false, 60*s + slot},
		{0, 1, 1 * s, 60 * s, true, false, 60*s + slot},
		{1, 1, 1 * s, 60 * s, false, true, 1 * s},
		{1, 0, 1 * s, 60 * s, false, false, 60*s + slot},
		{1, 2, 1 * s, 60 * s, false, true, 1 * s},
		{2, 1, 1 * s, 60 * s, false, false, 60*s + slot},
		{2, 1, 1 * s, 60 * s, true, true, 1 * s},
		{2, 0, 1 * s, 60 * s, true, false, 60*s + slot},
		{1, 1, 0, 60 * s, false, true, 1 * s}, // before 6.14, at most
		{1, 1, 100 * ms, 60 * s, false, true, 100 * ms},
		{1, 1, 30 * s, 60 * s, false, true, 30 * s},
		{1, 1, 60 * s, 60 * s, false, false, 60*s + slot}, // TIME_WAIT ends first
		{1, 1, 90 * s, 60 * s, false, false, 60*s + slot},
		{0, 1, 1 * s, 120 * s, false, false, 120*s + slot},
	}
	for _, tt := range tests {
		settings := Settings{
			TWReuse: tt.reuse, Timestamps: tt.timestamps, TWReuseDelay: tt.delay, TimeWaitLength: tt.length, Tick: 4 * ms,
		}
		reusable, hold := settings.Reusable(tt.loopback), settings.Hold(tt.loopback, Unknown, 0)
		if reusable != tt.reusable || hold != tt.hold.Seconds() {
			t.Errorf("%+v: got reusable %v, hold %v", tt, reusable, hold)
		}
	}
}

// TestHold checks what the hold depends on besides the settings.
func TestHold(t *testing.T) {
	s := Settings{TWReuse: 1, Timestamps: 1, TWReuseDelay: time.Second, FinTimeout: 21 * time.Second, TimeWaitLength: time.Minute}
	off := s
	off.Timestamps = 0
	for _, tt := range []struct {
		name       string
		settings   Settings
		timestamps Fact
		unanswered float64
		want       float64
	}{
		{"the peer has timestamps", s, Yes, 0, 1},
		{"the peer has none", s, No, 0, 60},
		{"the peer has some, which are off here now", off, Yes, 0, 1},
		{"off here", off, Unknown, 0, 60},
		{"the peer does not close", s, Yes, 1, 21},
		{"a quarter of the time", s, Yes, 0.25, 6},
		{"half of the time, and without timestamps", s, No, 0.5, 40.5},
	} {
		if got := tt.settings.Hold(false, tt.timestamps, tt.unanswered); got != tt.want {
			t.Errorf("%s: %v s, want %v s", tt.name, got, tt.want)
		}
	}
}

// TestReusableEachSecond depends on the kernel's version, which its sysctl tells.
func TestReusableEachSecond(t *testing.T) {
	for _, tt := range []struct {
		name     string
		settings Settings
		want     bool
	}{
		{"since 6.14", Settings{TWReuseDelay: time.Second}, false},
		{"4.19 to 6.13", Settings{}, true},
		{"before 4.19", Settings{TWReuseLate: true}, false},
	} {
		if got := tt.settings.ReusableEachSecond(); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}

// TestTimerLateness compares with the table at the top of kernel/time/timer.c.
func TestTimerLateness(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		d, tick, want time.Duration
	}{
		{time.Minute, 10 * ms, 5120 * ms},
		{time.Minute, 4 * ms, 2048 * ms},
		{time.Minute, time.Second / 300, 512 * time.Second / 300},
		{time.Minute, ms, 4096 * ms},
		{30 * time.Second, ms, 512 * ms},
		{2 * time.Minute, 4 * ms, 2048 * ms},
		{62 * ms, ms, ms},
		{63 * ms, ms, 8 * ms},
		{time.Minute, 0, 0},
	}
	for _, tt := range tests {
		if got := timerLateness(tt.d, tt.tick).Round(ms); got != tt.want.Round(ms) {
			t.Errorf("a timer of %v, tick %v: got %v, want %v", tt.d, tt.tick, got, tt.want)
		}
	}
}

// TestFinWait2Length checks how long the kernel keeps a mini-socket in FIN_WAIT2.
func TestFinWait2Length(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{
		0:                 time.Second,
		30 * time.Second:  30 * time.Second,
		60 * time.Second:  60 * time.Second,
		61 * time.Second:  time.Second,
		180 * time.Second: 120 * time.Second,
	} {
		s := Settings{FinTimeout: timeout, TimeWaitLength: time.Minute}
		if got := s.finWait2Length(); got != want {
			t.Errorf("tcp_fin_timeout %v: got %v, want %v", timeout, got, want)
		}
	}
}

// TestTimeWaitReusable checks from which age on a port is reusable.
func TestTimeWaitReusable(t *testing.T) {
	s := tenPorts
	s.TWReuse, s.Timestamps, s.TWReuseDelay = 1, 1, time.Second
	for expires, want := range map[time.Duration]int{
		2 * time.Minute:                   0, // a kernel whose TIME_WAIT is longer than the settings say
		time.Minute:                       0,
		59 * time.Second:                  0, // the age must exceed the delay
		59*time.Second - time.Millisecond: 1,
		0:                                 1, // the kernel is late to free the port
	} {
		old := socket(tcpstate.TimeWait, "10.0.0.1:40000", "10.0.0.2:80")
		old.Expires = expires
		if got := tableOf(s, nil, old).Report(everything).Destinations[0].Reusable; got != want {
			t.Errorf("expires in %v: got %d reusable ports, want %d", expires, got, want)
		}
	}
}

// TestTimeWaitWholeSeconds checks when a port is reusable without tcp_tw_reuse_delay: once the second has
// changed, whatever the age.
func TestTimeWaitWholeSeconds(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name      string
		late      bool
		seen, age time.Duration
		last      uint32
		want      int
	}{
		{"just closed", false, 69060 * ms, 0, 0, 0},
		{"closed in this second", false, 69960 * ms, 950 * ms, 0, 0},
		{"closed at the start of this second", false, 69960 * ms, 960 * ms, 0, 0},
		{"closed in the last second", false, 69060 * ms, 70 * ms, 0, 1},
		{"closed two seconds ago", false, 69060 * ms, 2000 * ms, 0, 1},
		{"last timestamp before it was closed", false, 69960 * ms, 950 * ms, 68, 1},
		{"last timestamp in this second", false, 69960 * ms, 1200 * ms, 69, 0},
		{"the clock has wrapped", false, (1<<32)*time.Second + 500*ms, 600 * ms, 1<<32 - 1, 1},
		{"closed before the host started, says a wrong length", false, 500 * ms, 900 * ms, 0, 0},
		{"before 4.19, in the last second", true, 69060 * ms, 1950 * ms, 0, 0},
		{"before 4.19, two seconds ago", true, 69060 * ms, 2001 * ms, 0, 1},
	}
	for _, tt := range tests {
		s := reusing(tenPorts, 0)
		s.TWReuseLate = tt.late
		old := socket(tcpstate.TimeWait, "10.0.0.1:40000", "10.0.0.2:80")
		old.Expires, old.Seen, old.LastTimestamp = time.Minute-tt.age, tt.seen, tt.last
		if got := tableOf(s, nil, old).Report(everything).Destinations[0].Reusable; got != tt.want {
			t.Errorf("%s: got %d reusable ports, want %d", tt.name, got, tt.want)
		}
	}
}

// TestTimeWaitFinWait2 has mini-sockets in FIN_WAIT2, and kernels of which it is known whether connect()
// takes them over, and others.
func TestTimeWaitFinWait2(t *testing.T) {
	type counts struct {
		reusable, unknown int
		utilization       float64
	}
	for _, tt := range []struct {
		name         string
		kernel       Fact
		reuse        int
		old, bound   bool
		noTimestamps bool
		want         counts
	}{
		{"6.12", No, 1, true, false, false, counts{0, 0, 0.1}},
		{"without the fix, new", Yes, 1, false, false, false, counts{0, 0, 0.1}},
		{"without the fix", Yes, 1, true, false, false, counts{1, 0, 0}},
		{"without the fix, bound", Yes, 1, true, true, false, counts{0, 0, 0.1}},
		{"without the fix, no timestamps", Yes, 1, true, false, true, counts{0, 0, 0.1}},
		{"without the fix, no reuse", Yes, 0, true, false, false, counts{0, 0, 0.1}},
		{"not known, new", Unknown, 1, false, false, false, counts{0, 0, 0.1}},
		{"not known", Unknown, 1, true, false, false, counts{0, 1, 0.1}},
		{"not known, bound", Unknown, 1, true, true, false, counts{0, 0, 0.1}},
		{"not known, no reuse", Unknown, 0, true, false, false, counts{0, 0, 0.1}},
	} {
		s := reusing(tenPorts, 0)
		s.TWReuse, s.ReuseFinWait2, s.FinTimeout = tt.reuse, tt.kernel, time.Minute
		mini := socket(tcpstate.FinWait2, "10.0.0.1:40000", "10.0.0.2:80")
		mini.Mini, mini.Seen, mini.Expires = true, 69500*time.Millisecond, 59600*time.Millisecond
		if tt.old {
			mini.Expires = 59400 * time.Millisecond
		}
		if tt.bound {
			mini.Bound = Yes
		}
		if tt.noTimestamps {
			mini.Timestamps = No
		}
		d := tableOf(s, nil, mini).Report(everything).Destinations[0]
		if got := (counts{d.Reusable, d.ReusableUnknown, d.Utilization}); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
		if d.Held != 1 || tt.want.reusable == 1 && d.Open != 0 {
			t.Errorf("%s: held %d, open %d, want 1 and 0", tt.name, d.Held, d.Open)
		}
	}
}

// TestTimeWaitFinWait2Many has more mini-sockets than there are ports: with SO_BINDTODEVICE, sockets on two
// interfaces have the same addresses and ports.
func TestTimeWaitFinWait2Many(t *testing.T) {
	const n = 1<<16 + 1
	s := reusing(tenPorts, 0)
	s.FinTimeout = time.Minute
	mini := socket(tcpstate.FinWait2, "10.0.0.1:40000", "10.0.0.2:80")
	mini.Mini, mini.Seen, mini.Expires = true, 69500*time.Millisecond, 59400*time.Millisecond
	table := NewTable(s)
	for range n {
		table.Add(&mini)
	}
	if got := table.Report(everything).Destinations[0].ReusableUnknown; got != n {
		t.Errorf("got %d ports of which it is not known, want %d", got, n)
	}
}

// TestTimeWaitDevices has a pool of connections over the network, and sockets that are bound to lo with the same addresses, as
// any user can make them. Where tcp_tw_reuse is 2, connect() takes over the ports of the latter alone.
func TestTimeWaitDevices(t *testing.T) {
	s := reusing(tenPorts, 0)
	s.TWReuse, s.Timestamps = 2, 1
	on := func(device uint32, state tcpstate.State, port uint16) Socket {
		c := socket(state, "10.0.0.1:40000", "10.0.0.2:80")
		c.Interface, c.Local = device, netip.AddrPortFrom(c.Local.Addr(), port)
		if state == tcpstate.TimeWait {
			c.Seen, c.Expires = 69500*time.Millisecond, 30*time.Second
		}
		return c
	}
	sockets := []Socket{on(loopbackInterface, tcpstate.SynSent, 40000), on(loopbackInterface, tcpstate.TimeWait, 40001)}
	for port := uint16(40002); port < 40010; port++ {
		sockets = append(sockets, on(0, tcpstate.TimeWait, port))
	}
	for range 2 { // the sockets on lo come first, and last
		d := tableOf(s, nil, sockets...).Report(everything).Destinations[0]
		if d.Held != 10 || d.Reusable != 1 || d.Utilization != 0.9 {
			t.Errorf("%d ports held, %d reusable, utilization %v, want 10, 1, 0.9", d.Held, d.Reusable, d.Utilization)
		}
		slices.Reverse(sockets)
	}
}

// TestTimeWaitTimestamps checks that the old connection decides whether its port is reusable, and
// the sysctl only where that connection is not known.
func TestTimeWaitTimestamps(t *testing.T) {
	tests := []struct {
		reuse, timestamps int
		old               Fact
		want              int
	}{
		{0, 1, Unknown, 0},
		{0, 1, Yes, 0},
		{1, 0, Unknown, 0},
		{1, 0, No, 0},
		{1, 0, Yes, 1},
		{1, 1, Unknown, 1},
		{1, 1, No, 0},
		{1, 1, Yes, 1},
	}
	for _, tt := range tests {
		s := reusing(tenPorts, time.Second)
		s.TWReuse, s.Timestamps = tt.reuse, tt.timestamps
		old := socket(tcpstate.TimeWait, "10.0.0.1:40000", "10.0.0.2:80")
		old.Timestamps = tt.old
		if got := tableOf(s, nil, old).Report(everything).Destinations[0].Reusable; got != tt.want {
			t.Errorf("tcp_tw_reuse %d, tcp_timestamps %d, timestamps of the old connection %v: got %d reusable ports, want %d",
				tt.reuse, tt.timestamps, tt.old, got, tt.want)
		}
	}
}

func TestUtilization(t *testing.T) {
	tests := []struct {
		used, capacity int
		want           float64
	}{
		{0, 0, 1}, // no port at all: the next connect() fails
		{5, 0, 1},
		{0, 10, 0},
		{5, 10, 0.5},
		{10, 10, 1},
		{11, 10, 1}, // a dump that contains a socket twice
	}
	for _, tt := range tests {
		if got := utilization(tt.used, tt.capacity); got != tt.want {
			t.Errorf("%d of %d: got %v, want %v", tt.used, tt.capacity, got, tt.want)
		}
	}
}

// TestTimeWaitSeen checks what the times that TIME_WAIT had to go show together.
func TestTimeWaitSeen(t *testing.T) {
	every := func(from, to int) (seconds []float64) {
		for s := to; s >= from; s-- {
			seconds = append(seconds, float64(s)+0.5)
		}
		return seconds
	}
	for _, tt := range []struct {
		name    string
		expires []float64 // in seconds
		want    TimeWaitSeen
	}{
		{"none", nil, TimeWaitSeen{}},
		{"less than a second", []float64{0.5}, TimeWaitSeen{Longest: 500 * time.Millisecond}},
		{"one second", []float64{1, 0}, TimeWaitSeen{Longest: time.Second, Steady: true}},
		{"every second", every(0, 59), TimeWaitSeen{Longest: 59500 * time.Millisecond, Steady: true}},
		{"but the first", every(1, 59), TimeWaitSeen{Longest: 59500 * time.Millisecond}},
		{"but one", append(every(0, 29), every(31, 59)...), TimeWaitSeen{Longest: 59500 * time.Millisecond}},
		{"every second of four minutes", every(0, 255), TimeWaitSeen{Longest: 255500 * time.Millisecond, Steady: true}},
		{"too long to tell", every(0, 256), TimeWaitSeen{Longest: 256500 * time.Millisecond}},
	} {
		var w timeWaitSeconds
		for _, s := range tt.expires {
			w.add(time.Duration(s * float64(time.Second)))
		}
		if got := w.report(); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

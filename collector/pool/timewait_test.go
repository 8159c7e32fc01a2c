package pool

import (
	"testing"
	"time"
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
		{1, 1, 0, 60 * s, false, true, 1 * s}, // before 6.14
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
		r := settings.timeWaitRule(tt.loopback)
		if r.reusable != tt.reusable || r.hold(Unknown) != tt.hold {
			t.Errorf("%+v: got reusable %v, hold %v", tt, r.reusable, r.hold(Unknown))
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
		old := socket(TimeWait, "10.0.0.1:40000", "10.0.0.2:80")
		old.Expires = expires
		if got := tableOf(s, nil, old).Report(everything).Destinations[0].Reusable; got != want {
			t.Errorf("expires in %v: got %d reusable ports, want %d", expires, got, want)
		}
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
		s := tenPorts
		s.TWReuse, s.Timestamps = tt.reuse, tt.timestamps
		old := socket(TimeWait, "10.0.0.1:40000", "10.0.0.2:80")
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

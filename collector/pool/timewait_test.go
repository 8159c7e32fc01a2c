package pool

import (
	"math"
	"testing"
	"time"
)

func TestTimeWaitRule(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	tests := []struct {
		reuse, timestamps int
		delay, length     time.Duration
		loopback          bool

		reusable     bool
		hold, window time.Duration
	}{
		{0, 1, 1 * s, 60 * s, false, false, 60 * s, 10 * s},
		{0, 1, 1 * s, 60 * s, true, false, 60 * s, 10 * s},
		{1, 1, 1 * s, 60 * s, false, true, 1 * s, 1 * s},
		{1, 0, 1 * s, 60 * s, false, false, 60 * s, 10 * s},
		{1, 2, 1 * s, 60 * s, false, true, 1 * s, 1 * s},
		{2, 1, 1 * s, 60 * s, false, false, 60 * s, 10 * s},
		{2, 1, 1 * s, 60 * s, true, true, 1 * s, 1 * s},
		{2, 0, 1 * s, 60 * s, true, false, 60 * s, 10 * s},
		{1, 1, 0, 60 * s, false, true, 1 * s, 1 * s}, // before 6.14
		{1, 1, 100 * ms, 60 * s, false, true, 100 * ms, 100 * ms},
		{1, 1, 30 * s, 60 * s, false, true, 30 * s, 10 * s},
		{1, 1, 60 * s, 20 * s, false, true, 20 * s, 10 * s},
		{0, 1, 1 * s, 5 * s, false, false, 5 * s, 5 * s},
		{0, 1, 1 * s, 120 * s, false, false, 120 * s, 10 * s},
	}
	for _, tt := range tests {
		settings := Settings{TWReuse: tt.reuse, Timestamps: tt.timestamps, TWReuseDelay: tt.delay, TimeWaitLength: tt.length}
		r := settings.timeWaitRule(tt.loopback)
		if r.reusable != tt.reusable || r.hold() != tt.hold || r.closeWindow() != tt.window {
			t.Errorf("%+v: got reusable %v, hold %v, window %v", tt, r.reusable, r.hold(), r.closeWindow())
		}
	}
}

func TestTimeWaitAge(t *testing.T) {
	r := timeWaitRule{length: time.Minute, reuse: true, reusable: true, delay: time.Second}
	tests := []struct {
		expires, age time.Duration
		reusable     bool
	}{
		{2 * time.Minute, 0, false}, // a kernel whose TIME_WAIT is longer than the settings say
		{time.Minute, 0, false},
		{59 * time.Second, time.Second, false}, // the age must exceed the delay
		{59*time.Second - time.Millisecond, time.Second + time.Millisecond, true},
		{0, time.Minute, true}, // the kernel is late to free the port
	}
	for _, tt := range tests {
		age := r.age(tt.expires)
		if age != tt.age || r.canReuse(age, Unknown) != tt.reusable {
			t.Errorf("expires in %v: got age %v, reusable %v, want %v, %v", tt.expires, age, r.canReuse(age, Unknown), tt.age, tt.reusable)
		}
	}
}

// TestTimeWaitTimestamps checks that the old connection decides whether its port is reusable, and
// the sysctl only where that connection is not known.
func TestTimeWaitTimestamps(t *testing.T) {
	tests := []struct {
		reuse, timestamps int
		old               Fact
		want              bool
	}{
		{0, 1, Unknown, false},
		{0, 1, Yes, false},
		{1, 0, Unknown, false},
		{1, 0, No, false},
		{1, 0, Yes, true},
		{1, 1, Unknown, true},
		{1, 1, No, false},
		{1, 1, Yes, true},
	}
	for _, tt := range tests {
		r := Settings{TWReuse: tt.reuse, Timestamps: tt.timestamps, TimeWaitLength: time.Minute}.timeWaitRule(false)
		if got := r.canReuse(time.Minute, tt.old); got != tt.want {
			t.Errorf("tcp_tw_reuse %d, tcp_timestamps %d, timestamps of the old connection %v: got %v, want %v", tt.reuse, tt.timestamps, tt.old, got, tt.want)
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

// TestCeiling checks well-known figures.
func TestCeiling(t *testing.T) {
	tests := []struct {
		ports int
		hold  time.Duration
		want  float64
	}{
		{28232, 60 * time.Second, 470.53},
		{28232, 120 * time.Second, 235.27},
		{28232, time.Second, 28232},
		{64512, 60 * time.Second, 1075.2},
		{0, time.Second, 0},
	}
	for _, tt := range tests {
		if got := perSecond(tt.ports, tt.hold); math.Abs(got-tt.want) > 0.01 {
			t.Errorf("%d ports, %v: got %v, want %v", tt.ports, tt.hold, got, tt.want)
		}
	}
}

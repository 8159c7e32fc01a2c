//go:build linux

package scan

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/sockdiag"
)

// kernelTime returns the kernel's coarse clock.
func kernelTime(t *testing.T) time.Duration {
	t.Helper()
	now, err := sockdiag.Now()
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// TestOracleReuseMoment closes connections at any moment of a second, and compares at any other. Before Linux 6.14,
// all ports closed in one second of the kernel's clock are reusable from the next on. Since then, they are after
// tcp_tw_reuse_delay, here 1 s. A comparison counts if no port became reusable while it was made.
func TestOracleReuseMoment(t *testing.T) {
	t.Parallel()
	const rounds = 12
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	reusable, held := map[string]int{}, map[string]int{}
	t.Run("rounds", func(t *testing.T) {
		for round := range rounds {
			for _, read := range readers() {
				closing := time.Duration(random.Int64N(int64(time.Second)))
				age := time.Duration(random.Int64N(int64(900*time.Millisecond))) + time.Duration(round%2)*900*time.Millisecond
				if !hasReuseDelay() && round%2 == 0 { // all within one second, which a slow machine seldom does by chance
					closing, age = 0, age/10
				}
				t.Run(fmt.Sprintf("%d/%s", round, read.name), func(t *testing.T) {
					if hasReuseDelay() {
						t.Parallel()
					}
					granted, ok := compareAt(t, read.collect, closing, age)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case ok && granted > 0:
						reusable[read.name]++
					case ok:
						held[read.name]++
					}
				})
			}
		}
	})
	t.Logf("reusable %v, held %v of %d rounds", reusable, held, rounds)
	for _, read := range readers() {
		if reusable[read.name] < 2 || held[read.name] < 2 {
			t.Errorf("%s: too few comparisons", read.name)
		}
	}
}

// compareAt closes connections on all ports at a time of a second, waits, and compares a report with what connect()
// grants. ok is false if ports became reusable meanwhile.
func compareAt(t *testing.T, collect func(*testing.T) pool.Report, closing, age time.Duration) (granted int, ok bool) {
	t.Helper()
	const ports = 20
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("40000 %d", 40000+ports-1))
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "1")
	setReuseDelay(t, time.Second)
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	listener := netnstest.Listen(t, "198.51.100.7:80", false)

	now := kernelTime(t)
	time.Sleep(now.Truncate(time.Second) + time.Second + tick + closing - now)
	first := kernelTime(t)
	netnstest.TimeWait(t, c.Client, listener, ports)
	last := kernelTime(t)
	time.Sleep(age)

	begin := kernelTime(t)
	r := collect(t)
	granted, _ = c.Fill(t, 2*ports)
	end := kernelTime(t)
	if changes(first, last, begin, end) {
		return granted, false
	}
	if free := freeTo(r, c.source, c.Destination); granted != free {
		t.Errorf("closed from %v to %v: at %v, the report says that %d ports are free, connect() granted %d until %v", first, last, begin, free, granted, end)
	}
	d, _ := destinationOf(r, c.source, c.Destination)
	if (d.Utilization == 1) != (granted == 0) {
		t.Errorf("utilization was %v, but connect() granted %d", d.Utilization, granted)
	}
	return granted, true
}

// changes reports whether ports that were closed in one time become reusable in another.
func changes(first, last, begin, end time.Duration) bool {
	if !hasReuseDelay() {
		return begin/time.Second != end/time.Second || begin-last < time.Second && first/time.Second != last/time.Second
	}
	return end+tick >= first+time.Second && begin-tick <= last+time.Second
}

// TestOracleReuseLastTimestamp has connections whose last timestamp came seconds before they were closed, and others
// that wait in FIN_WAIT2 for seconds. What the report says of their ports is true at any time.
func TestOracleReuseLastTimestamp(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name          string
		idle, waiting time.Duration
	}{{"idle", 2 * time.Second, 0}, {"FIN_WAIT2", 0, 2 * time.Second}} {
		t.Run(tt.name, func(t *testing.T) {
			for _, read := range readers() {
				compared := false
				for try := 0; try < 20 && !compared; try++ {
					compared = compareClosed(t, read.collect, tt.idle, tt.waiting)
				}
				if !compared {
					t.Errorf("%s: the machine is too slow to compare", read.name)
				}
			}
		})
	}
}

// compareClosed closes connections that have been idle, whose peer closes after a further time, and compares a
// report with what connect() grants. ok is false if the machine was too slow to tell.
func compareClosed(t *testing.T, collect func(*testing.T) pool.Report, idle, waiting time.Duration) (ok bool) {
	t.Helper()
	const ports = 10
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("40000 %d", 40000+ports-1))
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "1")
	setReuseDelay(t, time.Second)
	c := clientTo("198.51.100.1", "198.51.100.7:80")
	listener := netnstest.Listen(t, "198.51.100.7:80", false)
	var clients, servers []int
	for range ports {
		client, server := netnstest.Pair(t, c.Client, listener)
		clients, servers = append(clients, client), append(servers, server)
	}
	time.Sleep(idle)
	for _, client := range clients {
		netnstest.Hangup(client)
	}
	time.Sleep(waiting)
	// As early in a second as possible: there is most time to compare.
	now := kernelTime(t)
	time.Sleep(now.Truncate(time.Second) + time.Second + tick - now)
	first := kernelTime(t)
	for _, server := range servers {
		netnstest.Hangup(server)
	}
	last := kernelTime(t)
	r := collect(t)
	granted, _ := c.Fill(t, 2*ports)
	end := kernelTime(t)
	if changes(first, last, last, end) || last/time.Second != first/time.Second {
		return false
	}
	if free := freeTo(r, c.source, c.Destination); granted != free {
		t.Errorf("closed from %v to %v: the report says that %d ports are free, connect() granted %d until %v", first, last, free, granted, end)
	}
	return true
}

package web

import (
	"sync"
	"time"

	"ephemeral_port_exporter/collector/scan"
)

const (
	// minBudget is the least time for a scan. On most hosts a scan takes a few milliseconds, and it takes 100 for
	// 200,000 sockets.
	minBudget = 100 * time.Millisecond

	// paceAge is how long it counts what a scan has taken. Then one with less time may try.
	paceAge = time.Minute
)

// A pace tells how much time a scan needs. With less it has no numbers, and others wait for it.
type pace struct {
	mu   sync.Mutex
	took time.Duration // to read our own network namespace, last time
	at   time.Time
}

// observe takes note of a scan.
func (p *pace) observe(s *scan.Snapshot) {
	self := &s.Namespaces[0].TCP
	if self.Outcome != scan.Collected {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took, p.at = self.Duration, time.Now()
}

// least returns the least time for a scan to begin: half of what the last one took to read our own network
// namespace, as the next one may be faster.
func (p *pace) least() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.at) > paceAge {
		return minBudget
	}
	return max(minBudget, p.took/2)
}

package web

import (
	"fmt"
	"sync"
	"time"

	"ephemeral_port_exporter/collector/scan"
)

const (
	// minBudget is the least time for a scan. On most hosts a scan takes a few milliseconds, and it takes 100 for
	// 200,000 sockets.
	minBudget = 100 * time.Millisecond

	// paceAge is how long it counts what a scan has taken. Then one with less time may try, and the next one after as long.
	paceAge = 5 * time.Second
)

// A pace tells how much time a scan needs. With less it has no numbers, and others wait for it.
type pace struct {
	mu   sync.Mutex
	took time.Duration // to read our own network namespace, last time
	at   time.Time     // of that, or of the last scan with less time than it needs
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

// allow returns an error if a scan is not to begin with a budget: with less than minBudget, or than half of what the last one
// took to read our own network namespace, as the next one may be faster.
func (p *pace) allow(budget time.Duration) error {
	if budget < minBudget {
		return fmt.Errorf("which needs %v at least", minBudget)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if budget >= p.took/2 {
		return nil
	}
	if time.Since(p.at) < paceAge {
		return fmt.Errorf("and the last one took %v", p.took.Round(time.Millisecond))
	}
	p.at = time.Now()
	return nil
}

//go:build linux

package scan

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"ephemeral_port_exporter/collector/pool"
)

// TestBudget checks until when each part may take the time, by the parts that have something to do. Time stands still
// unless the test sleeps.
func TestBudget(t *testing.T) {
	for _, tt := range []struct {
		due  []part
		want [parts]time.Duration
	}{
		{nil, [parts]time.Duration{8, 8, 8, 8, 8, 8}},
		{[]part{tcpPart}, [parts]time.Duration{8, 8, 8, 8, 8, 8}},
		{[]part{udpPart}, [parts]time.Duration{7, 8, 8, 8, 8, 8}},
		{[]part{natPart}, [parts]time.Duration{7, 7, 8, 8, 8, 8}},
		{[]part{surveyPart, socketsPart}, [parts]time.Duration{6, 6, 6, 7, 8, 8}},
		{[]part{udpPart, natPart, surveyPart, socketsPart, flowsPart}, [parts]time.Duration{3, 4, 5, 6, 7, 8}},
	} {
		t.Run(fmt.Sprint(tt.due), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				b := newBudget(start.Add(8 * time.Second))
				for _, p := range tt.due {
					b.due[p] = true
				}
				for p, want := range tt.want {
					time.Sleep(time.Second / 2) // what earlier parts took does not matter
					if got := b.until(part(p)).Sub(start); got != want*time.Second {
						t.Errorf("part %d: until %v, want %v s", p, got, int(want))
					}
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		end := time.Now().Add(8 * time.Second)
		time.Sleep(2 * time.Second)
		if got := end.Sub(half(end)); got != 3*time.Second {
			t.Errorf("half of 6 s leaves %v", got)
		}
	})
}

// TestBudgetScan checks for how long the TCP sockets of our own namespace may be read: parts that have nothing to do
// take no time from them.
func TestBudgetScan(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, s *Scanner)
		want   time.Duration
	}{
		{"nothing else", func(*testing.T, *Scanner) {}, 8 * time.Second},
		{"--snat without flows", func(t *testing.T, s *Scanner) {
			s.cfg.SNAT = true
			writeProc(t, s.cfg.Proc, "sys/net/netfilter/nf_conntrack_count", "0\n")
		}, 8 * time.Second},
		{"--snat without connection tracking", func(t *testing.T, s *Scanner) {
			s.cfg.SNAT = true
			removeProc(t, s.cfg.Proc, "sys/net/netfilter")
		}, 8 * time.Second},
		{"flows without --snat", func(*testing.T, *Scanner) {}, 8 * time.Second},
		{"flows", func(_ *testing.T, s *Scanner) { s.cfg.SNAT = true }, 7 * time.Second},
		{"many UDP sockets", func(t *testing.T, s *Scanner) {
			writeProc(t, s.cfg.Proc, "thread-self/net/sockstat", "TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 0\nUDP: inuse 20000 mem 0\n")
		}, 7 * time.Second},
		{"other namespaces", func(_ *testing.T, s *Scanner) { s.cfg.Scope = ScopeNamed }, 6 * time.Second},
		{"other namespaces with few flows", func(_ *testing.T, s *Scanner) {
			s.cfg.Scope, s.cfg.SNAT = ScopeNamed, true
			s.known = map[uint64]*knownNamespace{7: {}}
		}, 5 * time.Second},
		{"other namespaces with many flows", func(_ *testing.T, s *Scanner) {
			s.cfg.Scope, s.cfg.SNAT = ScopeNamed, true
			s.known = map[uint64]*knownNamespace{7: {natBusy: true}}
		}, 4 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newFakeHost(t, natProc(t)).Scanner
			s.cfg.SNAT = false
			tt.change(t, s)
			synctest.Test(t, func(t *testing.T) {
				s.cfg.Timeout = 8 * time.Second
				var got time.Duration
				s.fill = func(_ *pool.Table, _ pool.PortRange, deadline time.Time) error {
					got = time.Until(deadline)
					time.Sleep(got / 2)
					return nil
				}
				n := s.Scan(t.Context()).Namespaces[0]
				if n.TCP.Outcome != Collected || got != tt.want {
					t.Errorf("TCP is %q after %v, want %v", n.TCP.Outcome, got, tt.want)
				}
			})
		})
	}
}

//go:build linux

package scan

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/conntrack"
	"ephemeral_port_exporter/collector/conntrack/conntracktest"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/snat"
	"ephemeral_port_exporter/collector/snat/nattest"
)

// TestOracleNATCeiling drives connections that are over at once through the ports that others leave: at 90%
// of the ceiling, none is lost, at 110%, some are. What was sent counts, not what was planned.
func TestOracleNATCeiling(t *testing.T) {
	const timeout = 2 * time.Second // of closed connections and of exchanges over UDP
	const open, rest = 14, 50
	to := netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), 80)
	for _, protocol := range []snat.Protocol{snat.TCP, snat.UDP} {
		for _, tt := range []struct {
			name  string
			share float64
		}{{"below", 0.9}, {"above", 1.1}} {
			t.Run(string(protocol)+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				g := nattest.New(t, nattest.Postrouting("masquerade to :"+portsOf(range64)))
				sysctl := "netfilter/nf_conntrack_tcp_timeout_time_wait"
				if protocol == snat.UDP {
					sysctl = "netfilter/nf_conntrack_udp_timeout"
				}
				netnstest.Sysctl(t, sysctl, "2")
				s := natScanner(t, range64)
				s.natTakesOver = false // as before Linux 6.5
				from := hosts(nattest.Clients4, 0, 20000)
				next := 0
				// exchange opens a connection and closes it.
				exchange := func() (granted bool) {
					next++
					if protocol == snat.UDP {
						_, granted = g.Send(nattest.Packet{Protocol: unix.IPPROTO_UDP, Source: from(next), Destination: to})
					} else { // falling sequence numbers: no connection is taken over
						_, granted = g.Open(nattest.TimeWait, from(next), to, uint32(1<<31-1000*next))
					}
					return granted
				}
				err := conntracktest.Open(t).Create(open, func(i int) conntracktest.Flow {
					f := natFlow(0xff00+i, range64.Low+uint16(i), to)
					if protocol == snat.UDP {
						f.Protocol, f.Status = unix.IPPROTO_UDP, uint32(conntrack.SeenReply|conntrack.Assured)
					}
					return f
				})
				if err != nil {
					t.Fatal(err)
				}
				exchange()
				ends := []time.Time{time.Now()} // of the exchanges
				r, _ := scanNAT(t, s)
				p, _ := natPoolOf(r, protocol, nattest.Gateway4, to)
				if want := rest / timeout.Seconds(); p.Ceiling != want {
					t.Fatalf("ceiling %v, want %v", p.Ceiling, want)
				}
				interval := time.Duration(float64(time.Second) / (tt.share * p.Ceiling))

				due := time.Now()
				end := due.Add(3 * timeout)
				if tt.share > 1 {
					end = due.Add(patience)
				}
				for time.Now().Before(end) {
					time.Sleep(time.Until(due))
					start := time.Now()
					granted := exchange()
					due = due.Add(interval) // what was late is made up for
					if tt.share < 1 {
						due = time.Now().Add(interval) // never faster than this
					}
					if tt.share < 1 && !granted {
						t.Fatalf("exchange %d was lost", len(ends))
					}
					if granted {
						ends = append(ends, time.Now())
						continue
					}
					// They must hold all ports.
					held := 0
					for _, end := range ends {
						if start.Sub(end) < timeout+2*tick {
							held++
						}
					}
					if held < rest {
						t.Errorf("an exchange was lost while at most %d of %d ports were held", held, rest)
					}
					return
				}
				if tt.share > 1 {
					t.Errorf("none of %d exchanges was lost in %v", len(ends), patience)
				}
			})
		}
	}
}

// TestOracleNATTakeover drives short connections through 100 ports, as fast as it can. A kernel that takes
// over those that are closed loses none, and no ceiling is reported. Another one grants 100, and the ceiling is
// that of the timeout.
func TestOracleNATTakeover(t *testing.T) {
	takesOver := nattest.TakesOver(t)
	const connections = 1500
	g := nattest.New(t, nattest.Postrouting("masquerade to :"+portsOf(range100)))
	to := netip.AddrPortFrom(nattest.Host(nattest.Servers4, 0), 80)
	s := natScanner(t, range100)
	netnstest.Sysctl(t, "netfilter/nf_conntrack_tcp_timeout_time_wait", "600") // longer than this takes
	granted := 0
	for i := range connections {
		if _, ok := g.Open(nattest.TimeWait, netip.AddrPortFrom(nattest.Host(nattest.Clients4, i), 20000), to, rand.Uint32()); ok {
			granted++
		}
		if !takesOver && i == 2*range100.Size() {
			break // each drop takes as long as a whole connection
		}
	}
	r, _ := scanNAT(t, s)
	p, _ := natPoolOf(r, snat.TCP, nattest.Gateway4, to)
	switch {
	case takesOver && (granted != connections || p.Held != 100 || p.Reusable != 100 || p.Utilization != 0 || !math.IsInf(p.Ceiling, 1) || p.SearchFailure > 1e-6):
		t.Errorf("%d of %d connections granted, got %+v, want all, 100 ports, all reusable, and no ceiling", granted, connections, p)
	case !takesOver && (granted != 100 || p.Held != 100 || p.Reusable != 0 || p.Utilization != 1 || p.Ceiling != 100.0/600 || p.SearchFailure != 1):
		t.Errorf("%d connections granted, got %+v, want 100, all ports held, and the ceiling of 600 s", granted, p)
	}
}

package advice

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/internal/tcpstate"
	"ephemeral_port_exporter/collector/pool"
)

// usual are the defaults of the kernel.
var usual = pool.Settings{
	PortRange: pool.PortRange{Low: 32768, High: 60999}, TWReuse: 2, TWReuseDelay: time.Second, Timestamps: 1,
	FinTimeout: time.Minute, TimeWaitLength: time.Minute, Tick: 4 * time.Millisecond,
}

// with returns settings that are changed.
func with(s pool.Settings, change func(s *pool.Settings)) pool.Settings {
	change(&s)
	return s
}

// An adviceCase is a destination that gets advice.
type adviceCase struct {
	name      string
	settings  pool.Settings
	listeners []uint16

	ports      map[tcpstate.State]int
	reusable   int
	rate       float64 // closes per second
	unanswered float64
	timestamps pool.Fact
	share      float64 // of connections with timestamps, if they differ
	loopback   bool
	bound      int // by others
	own        int // bound by clients of the destination
	halfClosed int // of those in FIN_WAIT2
	failing    bool
	udp        []uint16 // ports of UDP sockets without a peer
	udpUnknown bool

	diagnosis string   // the beginning
	want      []string // the cures, see short
}

// report returns the report of the case and its destination.
func (c adviceCase) report() (*pool.Report, *pool.Destination) {
	table := pool.NewTable(c.settings)
	for _, port := range c.listeners {
		table.Block(pool.Listener{Local: netip.AddrPortFrom(netip.IPv4Unspecified(), port)})
	}
	r := table.Report(pool.Limits{})
	r.BoundPorts, r.BoundKnown = c.bound+c.own, true
	r.UDPServerPorts, r.UDPServersKnown = c.udp, !c.udpUnknown
	d := &pool.Destination{
		Source: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParseAddrPort("10.0.0.2:443"),
		HalfClosed: c.halfClosed, Open: c.halfClosed, Reusable: c.reusable, BoundByOthers: c.bound, Timestamps: c.timestamps, TimestampsShare: c.share, Loopback: c.loopback,
		CloseRate: c.rate, Unanswered: c.unanswered, Exhaustion: math.Inf(1), SureExhaustion: math.Inf(1),
	}
	for state, n := range c.ports {
		d.Ports[slices.Index(pool.States[:], state)] = n
		d.Held += n
		if state != tcpstate.TimeWait && state != tcpstate.FinWait2 {
			d.Open += n
		}
	}
	d.Hold = c.settings.Hold(c.loopback, c.timestamps, c.unanswered)
	d.Ceiling = pool.Ceiling(r.CapacityPorts-d.BoundByOthers, d.Open, d.Hold)
	d.Utilization = 1
	if r.CapacityPorts > 0 {
		d.Utilization = float64(d.Held-d.Reusable+d.BoundByOthers) / float64(r.CapacityPorts)
	}
	return &r, d
}

// short writes a cure in a line.
func short(c Cure) string {
	text := c.Title
	if c.N > 0 {
		text += fmt.Sprintf(", %d", c.N)
	}
	if c.Then.Ports != c.Now.Ports {
		text += fmt.Sprintf(", %d to %d ports", c.Now.Ports, c.Then.Ports)
	}
	if c.Then.Ceiling != c.Now.Ceiling {
		text += fmt.Sprintf(", %.0f to %.0f per second", c.Now.Ceiling, c.Then.Ceiling)
	}
	return text
}

var (
	timeWait20000 = map[tcpstate.State]int{tcpstate.TimeWait: 20000}

	adviceCases = []adviceCase{
		{name: "calm", settings: usual, ports: map[tcpstate.State]int{tcpstate.TimeWait: 14000}, rate: 300},
		{
			name: "TIME_WAIT", settings: usual, ports: timeWait20000, rate: 400,
			diagnosis: "This host is the first to close 400 connections per second; its ports suffice for 455.",
			want: []string{
				"Keep connections alive, 2, 455 to 910 per second",
				"Reuse ports in TIME_WAIT, 455 to 28232 per second",
				"Widen the range, 28232 to 61744 ports, 455 to 995 per second",
				"More source addresses, 1, 28232 to 56464 ports, 455 to 910 per second",
				"More destination addresses or ports, 1, 28232 to 56464 ports, 455 to 910 per second",
				"Let the other side close first, 455 to +Inf per second",
			},
		},
		{
			name: "a rate far above the ceiling", settings: usual, ports: map[tcpstate.State]int{tcpstate.TimeWait: 3000}, rate: 3000, timestamps: pool.No,
			diagnosis: "This host is the first to close 3000 connections per second;",
			want: []string{
				"Keep connections alive, 14, 455 to 6370 per second",
				"Widen the range, 28232 to 61744 ports, 455 to 995 per second",
				"More source addresses, 13, 28232 to 395248 ports, 455 to 6370 per second",
				"More destination addresses or ports, 13, 28232 to 395248 ports, 455 to 6370 per second",
				"Let the other side close first, 455 to +Inf per second",
			},
		},
		{
			name: "closes that ended", settings: usual, ports: timeWait20000,
			diagnosis: "Connections that this host closed first hold most ports, in TIME_WAIT. They hold 20000 of the 20000 ports in use; the pool has 28232.",
			want: []string{
				"Keep connections alive, 2, 455 to 910 per second",
				"Reuse ports in TIME_WAIT, 455 to 28232 per second",
				"Widen the range, 28232 to 61744 ports, 455 to 995 per second",
				"More source addresses, 1, 28232 to 56464 ports, 455 to 910 per second",
				"More destination addresses or ports, 1, 28232 to 56464 ports, 455 to 910 per second",
				"Let the other side close first, 455 to +Inf per second",
			},
		},
		{
			name: "reuse, widest range", settings: with(usual, func(s *pool.Settings) { s.TWReuse, s.PortRange = 1, pool.PortRange{Low: 1024, High: 65535} }),
			ports: map[tcpstate.State]int{tcpstate.TimeWait: 64000}, reusable: 10000, rate: 54000, timestamps: pool.Yes,
			diagnosis: "This host is the first to close 54000 connections per second;",
			want: []string{
				"Keep connections alive, 2, 64512 to 129024 per second",
				"More source addresses, 1, 64512 to 129024 ports, 64512 to 129024 per second",
				"More destination addresses or ports, 1, 64512 to 129024 ports, 64512 to 129024 per second",
				"Let the other side close first, 64512 to +Inf per second",
			},
		},
		{
			name: "reuse without timestamps here", settings: with(usual, func(s *pool.Settings) {
				s.TWReuse, s.Timestamps, s.PortRange = 1, 0, pool.PortRange{Low: 500, High: 65535}
			}),
			ports: map[tcpstate.State]int{tcpstate.TimeWait: 64000}, rate: 1000, timestamps: pool.No,
			want: []string{
				"Keep connections alive, 2, 1048 to 2096 per second",
				"Reuse ports in TIME_WAIT, 1048 to 65036 per second",
				"More source addresses, 1, 65036 to 130072 ports, 1048 to 2096 per second",
				"More destination addresses or ports, 1, 65036 to 130072 ports, 1048 to 2096 per second",
				"Let the other side close first, 1048 to +Inf per second",
			},
		},
		{
			name: "peers that do not close", settings: usual, ports: map[tcpstate.State]int{tcpstate.FinWait2: 20000}, rate: 400, unanswered: 1,
			want: []string{
				"Keep connections alive, 2, 455 to 910 per second",
				"Widen the range, 28232 to 61744 ports, 455 to 995 per second",
				"More source addresses, 1, 28232 to 56464 ports, 455 to 910 per second",
				"More destination addresses or ports, 1, 28232 to 56464 ports, 455 to 910 per second",
				"Let the other side close first, 455 to +Inf per second",
			},
		},
		{
			name: "half of the peers do not close", settings: usual, ports: map[tcpstate.State]int{tcpstate.FinWait2: 10000, tcpstate.TimeWait: 10000}, rate: 200, unanswered: 0.5,
			diagnosis: "Connections that this host closed first hold most ports, in FIN_WAIT2: the destination has not closed them. They hold 10000 of the 20000",
			want: []string{
				"Keep connections alive, 2, 455 to 910 per second",
				"Reuse ports in TIME_WAIT, 455 to 896 per second",
				"Widen the range, 28232 to 61744 ports, 455 to 995 per second",
				"More source addresses, 1, 28232 to 56464 ports, 455 to 910 per second",
				"More destination addresses or ports, 1, 28232 to 56464 ports, 455 to 910 per second",
				"Let the other side close first, 455 to +Inf per second",
			},
		},
		{
			name: "open connections", settings: usual, ports: map[tcpstate.State]int{tcpstate.Established: 20000, tcpstate.TimeWait: 4000}, rate: 64,
			diagnosis: "Open connections hold most ports: look for a connection pool without a limit, and for requests that hang. They hold 20000 of the 24000 ports in use; the pool has 28232.",
			want: []string{
				"Widen the range, 28232 to 61744 ports, 133 to 673 per second",
				"More source addresses, 1, 28232 to 56464 ports, 133 to 588 per second",
				"More destination addresses or ports, 1, 28232 to 56464 ports, 133 to 588 per second",
			},
		},
		{
			name: "open connections on every port", settings: usual, ports: map[tcpstate.State]int{tcpstate.Established: 28232}, timestamps: pool.Yes,
			want: []string{
				"Widen the range, 28232 to 61744 ports, 0 to 540 per second",
				"More source addresses, 2, 28232 to 84696 ports, 0 to 910 per second",
				"More destination addresses or ports, 2, 28232 to 84696 ports, 0 to 910 per second",
			},
		},
		{
			name: "reserved ports and listeners", settings: with(usual, func(s *pool.Settings) {
				s.ReservedPorts = []pool.PortRange{{Low: 80, High: 80}, {Low: 20000, High: 20099}, {Low: 40000, High: 41000}}
			}),
			listeners: append(portsOf(50000, 50299), 22, 8080, 20007, 40007), ports: map[tcpstate.State]int{tcpstate.Established: 26000},
			want: []string{
				"Widen the range, 26931 to 60342 ports, 15 to 553 per second",
				"Move listeners out of the range, 26931 to 27231 ports, 15 to 20 per second",
				"More source addresses, 1, 26931 to 53862 ports, 15 to 449 per second",
				"More destination addresses or ports, 1, 26931 to 53862 ports, 15 to 449 per second",
				"Give back reserved ports, 1000, 26931 to 27931 ports, 15 to 31 per second",
			},
		},
		{
			name: "a few reserved ports and listeners", settings: with(usual, func(s *pool.Settings) { s.ReservedPorts = []pool.PortRange{{Low: 40000, High: 40099}} }),
			listeners: []uint16{50051}, ports: map[tcpstate.State]int{tcpstate.Established: 15000},
			want: []string{
				"Widen the range, 28131 to 61643 ports, 212 to 752 per second",
				"More source addresses, 1, 28131 to 56262 ports, 212 to 665 per second",
				"More destination addresses or ports, 1, 28131 to 56262 ports, 212 to 665 per second",
			},
		},
		{
			name: "ports bound by others", settings: usual, ports: map[tcpstate.State]int{tcpstate.Established: 5000}, bound: 15000,
			diagnosis: "Other sockets hold most ports: their clients bind before they connect. They hold 15000 of the 20000 ports in use; the pool has 28232.",
			want: []string{
				"Widen the range, 13232 to 46744 ports, 133 to 673 per second",
				"Connect without binding a port, 13232 to 28232 ports, 133 to 374 per second",
				"More source addresses, 1, 13232 to 26464 ports, 133 to 346 per second",
				"More destination addresses or ports, 1, 13232 to 26464 ports, 133 to 346 per second",
			},
		},
		{
			name: "clients that bind first", settings: usual, ports: timeWait20000, rate: 300, own: 20000,
			want: []string{
				"Keep connections alive, 2, 455 to 910 per second",
				"Widen the range, 28232 to 61744 ports, 455 to 995 per second",
				"More source addresses, 2, 28232 to 44696 ports, 455 to 720 per second",
				"More destination addresses or ports, 2, 28232 to 44696 ports, 455 to 720 per second",
				"Let the other side close first, 455 to +Inf per second",
			},
		},
		{
			name: "half-closed", settings: usual, ports: map[tcpstate.State]int{tcpstate.FinWait2: 16000}, halfClosed: 15000,
			diagnosis: "Connections that this host closed first hold most ports, in FIN_WAIT2: the destination has not closed them. They hold 16000 of the 16000 ports in use; the pool has 28232. 15000 are half-closed, and a process on this host still holds them:",
			want:      []string{"Close both directions, 15000, 213 to 455 per second"},
		},
		{
			name: "half-closed beside others", settings: usual, ports: map[tcpstate.State]int{tcpstate.FinWait2: 2000, tcpstate.Established: 13000}, halfClosed: 2000,
			diagnosis: "Open connections hold most ports: look for a connection pool without a limit, and for requests that hang. They hold 13000 of the 15000 ports in use; the pool has 28232.",
			want: []string{
				"Widen the range, 28232 to 61744 ports, 213 to 753 per second",
				"More source addresses, 1, 28232 to 56464 ports, 213 to 668 per second",
				"More destination addresses or ports, 1, 28232 to 56464 ports, 213 to 668 per second",
			},
		},
		{
			name: "loopback", settings: usual, ports: map[tcpstate.State]int{tcpstate.Established: 15000}, loopback: true,
			want: []string{
				"Widen the range, 28232 to 61744 ports, 13232 to 46744 per second",
				"More source addresses, 1, 28232 to 56464 ports, 13232 to 41464 per second",
				"More destination addresses or ports, 1, 28232 to 56464 ports, 13232 to 41464 per second",
				"Use a Unix socket, 28232 to 0 ports, 13232 to 0 per second",
			},
		},
		{
			name: "CLOSE_WAIT", settings: usual, ports: map[tcpstate.State]int{tcpstate.CloseWait: 15000, tcpstate.Established: 200},
			diagnosis: "Connections that the destination closed hold most ports, in CLOSE_WAIT: an application on this host has not closed them. They hold 15000 of",
			want:      []string{"Close what the destination has closed, 15000, 210 to 452 per second"},
		},
		{
			name: "a share of CLOSE_WAIT and SYN_SENT", settings: usual, ports: map[tcpstate.State]int{tcpstate.CloseWait: 5000, tcpstate.SynSent: 4000, tcpstate.Established: 11000},
			want: []string{
				"Close what the destination has closed, 5000, 133 to 213 per second",
				"Give up earlier without an answer, 4000, 133 to 197 per second",
				"Widen the range, 28232 to 61744 ports, 133 to 673 per second",
				"More source addresses, 1, 28232 to 56464 ports, 133 to 588 per second",
				"More destination addresses or ports, 1, 28232 to 56464 ports, 133 to 588 per second",
			},
		},
		{
			name: "CLOSE_WAIT on a fifth of the ports", settings: with(usual, func(s *pool.Settings) { s.PortRange = pool.PortRange{Low: 40000, High: 40999} }),
			ports:     map[tcpstate.State]int{tcpstate.CloseWait: 200, tcpstate.Established: 210},
			diagnosis: "Open connections hold most ports: look for a connection pool without a limit, and for requests that hang. They hold 210 of the 410 ports in use; the pool has 1000. 200 are in CLOSE_WAIT: an application on this host has not closed them.",
			want:      []string{"Close what the destination has closed, 200, 10 to 13 per second"},
		},
		{name: "CLOSE_WAIT on fewer", settings: with(usual, func(s *pool.Settings) { s.PortRange = pool.PortRange{Low: 40000, High: 40999} }), ports: map[tcpstate.State]int{tcpstate.CloseWait: 199}},
		{
			name: "SYN_SENT on a fifth of the ports", settings: with(usual, func(s *pool.Settings) { s.PortRange = pool.PortRange{Low: 40000, High: 40999} }),
			ports: map[tcpstate.State]int{tcpstate.SynSent: 200}, failing: true,
			diagnosis: "Attempts to connect hold most ports, in SYN_SENT: the destination does not answer. They hold 200 of the 200 ports in use; the pool has 1000. Connects failed although",
			want:      []string{"Give up earlier without an answer, 200, 13 to 16 per second"},
		},
		{
			name: "SYN_SENT", settings: usual, ports: map[tcpstate.State]int{tcpstate.SynSent: 15000, tcpstate.TimeWait: 300}, rate: 5,
			diagnosis: "Attempts to connect hold most ports, in SYN_SENT: the destination does not answer.",
			want:      []string{"Give up earlier without an answer, 15000, 213 to 455 per second"},
		},
		{
			name: "no ports", settings: with(usual, func(s *pool.Settings) { s.ReservedPorts = []pool.PortRange{{Low: 32768, High: 60999}} }),
			diagnosis: "No port of the range is left: each one is reserved or has a listener.",
			want: []string{
				"Widen the range, 0 to 33512 ports, 0 to 540 per second",
				"Give back reserved ports, 28232, 0 to 28232 ports, 0 to 455 per second",
			},
		},
		{
			name: "more listeners than the kernel reads", settings: usual, ports: map[tcpstate.State]int{tcpstate.Established: 15000}, failing: true,
			listeners: everyOther(1025, 5025),
			want: []string{
				"More source addresses, 1, 28232 to 56464 ports, 213 to 668 per second",
				"More destination addresses or ports, 1, 28232 to 56464 ports, 213 to 668 per second",
			},
		},
		{
			name: "failing without danger", settings: with(usual, func(s *pool.Settings) { s.PortRange = pool.PortRange{Low: 1024, High: 65535} }), ports: map[tcpstate.State]int{tcpstate.Established: 300}, failing: true,
			diagnosis: "Open connections hold most ports: look for a connection pool without a limit, and for requests that hang. They hold 300 of the 300 ports in use; the pool has 64512. Connects failed although",
			want: []string{
				"Let clients use the whole range, 300 to 64512 ports, 0 to 1035 per second",
				"More source addresses, 1, 64512 to 129024 ports, 1035 to 2075 per second",
				"More destination addresses or ports, 1, 64512 to 129024 ports, 1035 to 2075 per second",
			},
		},
	}
)

// portsOf returns the ports from low to high.
func portsOf(low, high uint16) (ports []uint16) {
	for port := low; port <= high; port++ {
		ports = append(ports, port)
	}
	return ports
}

// everyOther returns every second of these ports.
func everyOther(low, high uint16) (ports []uint16) {
	for port := low; port <= high; port += 2 {
		ports = append(ports, port)
	}
	return ports
}

// TestTCP checks which cures are shown, and their numbers.
func TestTCP(t *testing.T) {
	for _, tt := range adviceCases {
		t.Run(tt.name, func(t *testing.T) {
			r, d := tt.report()
			advice := TCP(r, d, tt.failing)
			if advice == nil {
				advice = &Advice{}
			}
			var got []string
			for _, c := range advice.Cures {
				got = append(got, short(c))
				if c.Sentence == "" {
					t.Errorf("%s has no sentence", c.Title)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if strings.Contains(advice.Diagnosis, "Connects failed") && !tt.failing {
				t.Errorf("nothing failed, but: %q", advice.Diagnosis)
			}
			if !strings.HasPrefix(advice.Diagnosis, tt.diagnosis) || (advice.Diagnosis == "") != (tt.want == nil) {
				t.Errorf("diagnosis: got %q, want %q", advice.Diagnosis, tt.diagnosis)
			}
		})
	}
}

// cureOf returns the cure with that title. There must be one.
func cureOf(t *testing.T, c adviceCase, title string) Cure {
	t.Helper()
	r, d := c.report()
	for _, cure := range TCP(r, d, true).Cures {
		if cure.Title == title {
			return cure
		}
	}
	t.Fatalf("no cure %q", title)
	return Cure{}
}

// findReserved finds out who reserved ports.
const findReserved = "grep -rs ip_local_reserved_ports /etc/sysctl.conf /etc/sysctl.d /run/sysctl.d /usr/lib/sysctl.d"

// TestCureText checks the commands, and what the numbers depend on.
func TestCureText(t *testing.T) {
	const none = "none"
	busy := adviceCase{settings: usual, ports: timeWait20000, rate: 400}
	tests := []struct {
		name                         string
		change                       func(c *adviceCase)
		title                        string
		sentence, command, condition string // parts of them, all of the command
	}{
		{
			"timestamps unknown", func(*adviceCase) {}, "Reuse ports in TIME_WAIT",
			"for 1 s instead of 62 s", "sysctl -w net.ipv4.tcp_tw_reuse=1", "it is not known whether it does",
		},
		{
			"some connections with timestamps", func(c *adviceCase) { c.share = 0.25 }, "Reuse ports in TIME_WAIT",
			"for 1 s instead of 62 s", "sysctl -w net.ipv4.tcp_tw_reuse=1", "All servers behind the destination use TCP timestamps: of the connections that were asked, 25% do.",
		},
		{
			"timestamps known", func(c *adviceCase) { c.timestamps = pool.Yes }, "Reuse ports in TIME_WAIT",
			"instead of 62 s. The destination uses TCP timestamps, which this needs.", "sysctl -w net.ipv4.tcp_tw_reuse=1", none,
		},
		{
			"a kernel before 6.14", func(c *adviceCase) { c.settings.TWReuseDelay = 0 }, "Reuse ports in TIME_WAIT",
			"for 1 s at most instead of 62 s", "sysctl -w net.ipv4.tcp_tw_reuse=1", "",
		},
		{
			"no timestamps here", func(c *adviceCase) { c.settings.Timestamps, c.timestamps = 0, pool.No }, "Reuse ports in TIME_WAIT",
			"for 1 s", "sysctl -w net.ipv4.tcp_timestamps=1 && sysctl -w net.ipv4.tcp_tw_reuse=1 || { sysctl -w net.ipv4.tcp_timestamps=0; false; }", "from then on only: those before hold their ports for 62 s",
		},
		{
			"no timestamps here, reuse set", func(c *adviceCase) { c.settings.Timestamps, c.settings.TWReuse = 0, 1 }, "Reuse ports in TIME_WAIT",
			"for 1 s", "sysctl -w net.ipv4.tcp_timestamps=1", "from then on only: those before hold their ports for 62 s",
		},
		{
			"loopback", func(c *adviceCase) { c.settings.TWReuse, c.loopback = 0, true }, "Reuse ports in TIME_WAIT",
			"for 1 s", "sysctl -w net.ipv4.tcp_tw_reuse=1", "",
		},
		{
			"nothing listens", func(*adviceCase) {}, "Widen the range",
			"61744 of the ports 1024-65535. The node ports of Kubernetes stay out.",
			`r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && { sysctl -w net.ipv4.ip_local_reserved_ports="30000-32767,$r" && sysctl -w net.ipv4.ip_local_port_range="1024 65535" || { sysctl -w net.ipv4.ip_local_reserved_ports="$r"; false; }; }`, "IPVS",
		},
		{
			"node ports in the range", func(c *adviceCase) { c.settings.PortRange = pool.PortRange{Low: 15000, High: 60999} }, "Widen the range",
			"64512 of the ports 1024-65535.", `sysctl -w net.ipv4.ip_local_port_range="1024 65535"`, "IPVS",
		},
		{
			"privileged ports", func(c *adviceCase) { c.settings.UnprivilegedPort = 5000 }, "Widen the range",
			"57768 of the ports 5000-65535.",
			`r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && { sysctl -w net.ipv4.ip_local_reserved_ports="30000-32767,$r" && sysctl -w net.ipv4.ip_local_port_range="5000 65535" || { sysctl -w net.ipv4.ip_local_reserved_ports="$r"; false; }; }`, "",
		},
		{
			"no privileged ports", func(c *adviceCase) { c.settings.UnprivilegedPort = 80 }, "Widen the range",
			"61744 of the ports 1024-65535.",
			`r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && { sysctl -w net.ipv4.ip_local_reserved_ports="30000-32767,$r" && sysctl -w net.ipv4.ip_local_port_range="1024 65535" || { sysctl -w net.ipv4.ip_local_reserved_ports="$r"; false; }; }`, "",
		},
		{
			"UDP servers", func(c *adviceCase) { c.udp = []uint16{53, 8472, 40001} }, "Widen the range",
			"61742 of the ports 1024-65535. Programs wait on these, so reserve them first: 8472, 40001.",
			`r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && { sysctl -w net.ipv4.ip_local_reserved_ports="8472,30000-32767,40001,$r" && sysctl -w net.ipv4.ip_local_port_range="1024 65535" || { sysctl -w net.ipv4.ip_local_reserved_ports="$r"; false; }; }`, "",
		},
		{
			"UDP clients without a peer", func(c *adviceCase) { c.udp = append(portsOf(40000, 40032), 8472) }, "Widen the range",
			"61743 of the ports 1024-65535. Programs wait on these, so reserve them first: 8472.",
			`r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && { sysctl -w net.ipv4.ip_local_reserved_ports="8472,30000-32767,$r" && sysctl -w net.ipv4.ip_local_port_range="1024 65535" || { sysctl -w net.ipv4.ip_local_reserved_ports="$r"; false; }; }`, "",
		},
		{
			"unknown UDP servers", func(c *adviceCase) { c.udpUnknown = true }, "Widen the range",
			"61744 of the ports 1024-65535.", "", "not all could be read",
		},
		{
			"listeners", func(c *adviceCase) {
				c.listeners = append(portsOf(2000, 2011), 22, 8080, 20000, 40000)
				c.settings.ReservedPorts = []pool.PortRange{{Low: 20000, High: 20001}, {Low: 41000, High: 41000}}
			}, "Widen the range",
			"61727 of the ports 1024-65535. Programs wait on these, so reserve them first: 2000, 2001, 2002, 2003, 2004, 2005, 2006, 2007, 2008, 2009 and 4 more.",
			`r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && { sysctl -w net.ipv4.ip_local_reserved_ports="2000-2011,8080,30000-32767,40000,$r" && sysctl -w net.ipv4.ip_local_port_range="1024 65535" || { sysctl -w net.ipv4.ip_local_reserved_ports="$r"; false; }; }`, "",
		},
		{
			"low range", func(c *adviceCase) { c.settings.PortRange = pool.PortRange{Low: 100, High: 20000} }, "Widen the range",
			"62668 of the ports 100-65535",
			`r=$(sysctl -n net.ipv4.ip_local_reserved_ports) && { sysctl -w net.ipv4.ip_local_reserved_ports="30000-32767,$r" && sysctl -w net.ipv4.ip_local_port_range="100 65535" || { sysctl -w net.ipv4.ip_local_reserved_ports="$r"; false; }; }`, "",
		},
		{
			"all reserved", func(c *adviceCase) { c.settings.ReservedPorts = []pool.PortRange{{Low: 40000, High: 40999}} }, "Give back reserved ports",
			"1000 ports of the range", findReserved, "no rule leads their packets elsewhere",
		},
		{
			"some of them needed", func(c *adviceCase) {
				c.settings.ReservedPorts = []pool.PortRange{{Low: 80, High: 80}, {Low: 40000, High: 40999}}
				c.listeners = []uint16{40007}
			}, "Give back reserved ports",
			"999 ports of the range", findReserved, "",
		},
		{
			"listeners in the range", func(c *adviceCase) { c.listeners = append(portsOf(50000, 50300), 8080) }, "Move listeners out of the range",
			"in the range 32768-60999: 50000, 50001, 50002, 50003, 50004, 50005, 50006, 50007, 50008, 50009 and 291 more.", "ss -Htlnp sport ge :32768 sport le :60999", "",
		},
		{
			"clients that bind first", func(c *adviceCase) { c.own, c.bound = 20000, 5000 }, "Connect without binding a port",
			"Clients bound 25000 ports", "", "",
		},
		{"keep alive", func(c *adviceCase) { c.rate = 700 }, "Keep connections alive", "at least 4 times as many requests", "", "too"},
		{"sources", func(c *adviceCase) { c.rate = 700 }, "More source addresses", "at least 3 more", "", "connect without binding a port"},
		{"destinations", func(c *adviceCase) { c.rate = 700 }, "More destination addresses or ports", "at least 3 more", "", "all of them alike"},
		{"other side", func(*adviceCase) {}, "Let the other side close first", "holds no ephemeral port", "", "wait"},
		{
			"leak", func(c *adviceCase) { c.ports = map[tcpstate.State]int{tcpstate.CloseWait: 20000} }, "Close what the destination has closed",
			"has not closed 20000 connections", "", "",
		},
		{
			"no answer", func(c *adviceCase) { c.ports = map[tcpstate.State]int{tcpstate.SynSent: 20000} }, "Give up earlier without an answer",
			"20000 attempts", "", "",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := busy
			tt.change(&c)
			got := cureOf(t, c, tt.title)
			if !strings.Contains(got.Sentence, tt.sentence) {
				t.Errorf("sentence: got %q, want %q", got.Sentence, tt.sentence)
			}
			if got.Command != tt.command {
				t.Errorf("command: got %q, want %q", got.Command, tt.command)
			}
			if !strings.Contains(got.Condition, tt.condition) && (tt.condition != none || got.Condition != "") {
				t.Errorf("condition: got %q, want %q", got.Condition, tt.condition)
			}
		})
	}
}

// TestNoReuse checks that tcp_tw_reuse is not shown where it does not help.
func TestNoReuse(t *testing.T) {
	for name, change := range map[string]func(c *adviceCase){
		"it is set":                func(c *adviceCase) { c.settings.TWReuse = 1 },
		"it is set, no timestamps": func(c *adviceCase) { c.settings.TWReuse, c.timestamps = 1, pool.No },
		"loopback":                 func(c *adviceCase) { c.loopback = true },
		"peer without timestamps":  func(c *adviceCase) { c.timestamps = pool.No },
		"clients that bind first":  func(c *adviceCase) { c.own = 20000 },
		"open connections": func(c *adviceCase) {
			c.ports, c.rate = map[tcpstate.State]int{tcpstate.Established: 26000, tcpstate.TimeWait: 500}, 8
		},
		"open on every port":        func(c *adviceCase) { c.ports, c.rate = map[tcpstate.State]int{tcpstate.Established: 28232}, 0 },
		"peers that do not close":   func(c *adviceCase) { c.ports, c.unanswered = map[tcpstate.State]int{tcpstate.FinWait2: 20000}, 1 },
		"a delay of a minute":       func(c *adviceCase) { c.settings.TWReuseDelay = time.Minute },
		"an answer after TIME_WAIT": func(c *adviceCase) { c.settings.TWReuseDelay, c.timestamps = time.Hour, pool.Yes },
	} {
		c := adviceCase{settings: usual, ports: timeWait20000, rate: 400}
		change(&c)
		r, d := c.report()
		for _, cure := range TCP(r, d, true).Cures {
			if strings.Contains(cure.Command, "tcp_tw_reuse") || cure.Title == "Reuse ports in TIME_WAIT" {
				t.Errorf("%s: got %+v", name, cure)
			}
		}
	}
}

// TestNoGiveBack checks that reserved ports are not given back where rules may lead their packets elsewhere, and where
// nothing else helps.
func TestNoGiveBack(t *testing.T) {
	for name, change := range map[string]func(c *adviceCase){
		"rules": func(c *adviceCase) {
			c.settings.ReservedPorts, c.settings.MayRedirect = []pool.PortRange{{Low: 40000, High: 41000}}, true
		},
		"nothing else": func(c *adviceCase) { c.settings.PortRange, c.ports = pool.PortRange{Low: 1024, High: 65535}, nil },
	} {
		c := adviceCase{settings: with(usual, func(s *pool.Settings) { s.ReservedPorts = []pool.PortRange{{Low: 1024, High: 65535}} }), ports: timeWait20000}
		change(&c)
		r, d := c.report()
		for i, cure := range TCP(r, d, false).Cures {
			if cure.Title == "Give back reserved ports" {
				t.Errorf("%s: cure %d is %+v", name, i, cure)
			}
		}
	}
}

// TestReuse has reuse where it would help.
func TestReuse(t *testing.T) {
	for name, change := range map[string]func(c *adviceCase){
		"usual":                                func(*adviceCase) {},
		"half of the clients bind first":       func(c *adviceCase) { c.own = 10000 },
		"most ports that are bound, elsewhere": func(c *adviceCase) { c.bound, c.own = 6000, 6000 },
		"no timestamps here":                   func(c *adviceCase) { c.timestamps, c.settings.Timestamps = pool.No, 0 },
	} {
		c := adviceCase{settings: usual, ports: timeWait20000, rate: 400}
		change(&c)
		r, d := c.report()
		if !slices.ContainsFunc(TCP(r, d, true).Cures, func(cure Cure) bool { return cure.Title == "Reuse ports in TIME_WAIT" }) {
			t.Errorf("%s: no reuse in %+v", name, TCP(r, d, true).Cures)
		}
	}
}

// TestConnectWithoutBinding checks that clients that bind first gain reuse as well.
func TestConnectWithoutBinding(t *testing.T) {
	c := adviceCase{settings: with(usual, func(s *pool.Settings) { s.TWReuse = 1 }), ports: timeWait20000, own: 20000}
	r, d := c.report()
	d.Hold = 62.048 // none of the ports is reusable
	d.Ceiling = pool.Ceiling(r.CapacityPorts, 0, d.Hold)
	for _, cure := range TCP(r, d, false).Cures {
		if cure.Title == "Connect without binding a port" {
			if got, want := short(cure), "Connect without binding a port, 455 to 28232 per second"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			return
		}
	}
	t.Error("not shown")
}

// TestDiagnosis has one state hold most ports.
func TestDiagnosis(t *testing.T) {
	for state, want := range map[tcpstate.State]string{
		tcpstate.Established: "Open connections hold most ports: look for a connection pool without a limit, and for requests that hang.",
		tcpstate.SynSent:     "Attempts to connect hold most ports, in SYN_SENT: the destination does not answer.",
		tcpstate.SynRecv:     "Connections in SYN_RECV hold most ports.",
		tcpstate.FinWait1:    "Connections that this host closed first hold most ports, in FIN_WAIT1: the destination has not closed them.",
		tcpstate.FinWait2:    "Connections that this host closed first hold most ports, in FIN_WAIT2: the destination has not closed them.",
		tcpstate.TimeWait:    "Connections that this host closed first hold most ports, in TIME_WAIT.",
		tcpstate.CloseWait:   "Connections that the destination closed hold most ports, in CLOSE_WAIT: an application on this host has not closed them.",
		tcpstate.LastAck:     "Connections in LAST_ACK hold most ports.",
		tcpstate.Closing:     "Connections that this host closed first hold most ports, in CLOSING: the destination has not closed them.",
	} {
		c := adviceCase{settings: usual, ports: map[tcpstate.State]int{state: 20000, tcpstate.SynRecv: 1}}
		r, d := c.report()
		if got := TCP(r, d, false).Diagnosis; !strings.HasPrefix(got, want) {
			t.Errorf("%v: got %q, want %q", state, got, want)
		}
	}
	for _, tt := range []struct {
		name string
		c    adviceCase
		want string
	}{
		{"nothing", adviceCase{settings: usual, failing: true}, "No port is in use now. Connects failed although ports are free"},
		{"few closes in a small range", adviceCase{
			settings: with(usual, func(s *pool.Settings) { s.PortRange = pool.PortRange{Low: 40000, High: 40299} }), rate: 4.25, ports: map[tcpstate.State]int{tcpstate.TimeWait: 200},
		}, "This host is the first to close 4.2 connections per second; its ports suffice for 4.8."},
		{"open ones hold more than closes do", adviceCase{settings: usual, rate: 200, ports: map[tcpstate.State]int{tcpstate.Established: 16000, tcpstate.TimeWait: 11000}}, "Open connections hold most ports"},
	} {
		r, d := tt.c.report()
		if got := TCP(r, d, tt.c.failing).Diagnosis; !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestTooLong has more reserved ports than the kernel reads: no cure that writes them all is shown.
func TestTooLong(t *testing.T) {
	c := adviceCase{settings: usual, ports: map[tcpstate.State]int{tcpstate.Established: 20000}}
	for _, port := range everyOther(1025, 5025) {
		c.settings.ReservedPorts = append(c.settings.ReservedPorts, pool.PortRange{Low: port, High: port})
	}
	c.settings.ReservedPorts = append(c.settings.ReservedPorts, pool.PortRange{Low: 40000, High: 41000})
	r, d := c.report()
	for _, cure := range TCP(r, d, false).Cures {
		if strings.Contains(cure.Command+cure.Undo, "reserved_ports=") {
			t.Errorf("%s: a command of %d bytes", cure.Title, len(cure.Command))
		}
	}
}

// TestHolders orders what makes ports unavailable.
func TestHolders(t *testing.T) {
	c := adviceCase{settings: usual, ports: map[tcpstate.State]int{tcpstate.Established: 9000, tcpstate.TimeWait: 12000, tcpstate.FinWait1: 3, tcpstate.CloseWait: 0}, reusable: 4000, bound: 9500}
	r, d := c.report()
	want := []holder{{"bound_by_others", 9500}, {"established", 9000}, {"time_wait", 8000}, {"fin_wait1", 3}}
	if diff := cmp.Diff(want, newTCPPool(r, d, nil).holders(), cmp.AllowUnexported(holder{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestRunbook checks that advice and runbook have the same cures, in the same order and words.
func TestRunbook(t *testing.T) {
	b, err := os.ReadFile("../../deploy/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	if number := regexp.MustCompile(`\bcures? \d`).Find(b); number != nil {
		t.Errorf("the runbook has %q: cures have names", number)
	}
	_, cures, ok := strings.Cut(string(b), "\n## Cures\n")
	if !ok {
		t.Fatal("the runbook has no chapter Cures")
	}
	cures, _, ok = strings.Cut(cures, "\n### Make a sysctl last")
	if !ok {
		t.Fatal("the runbook does not say how to make a sysctl last")
	}
	var titles []string
	chapters := map[string]string{}
	for _, chapter := range strings.Split(cures, "\n### ")[1:] {
		title, text, _ := strings.Cut(chapter, "\n")
		titles = append(titles, title)
		chapters[title] = text
	}

	sysctl := regexp.MustCompile(`net\.ipv4\.\w+`)
	shown := map[string]bool{}
	advices := map[string]*Advice{}
	for _, tt := range adviceCases {
		r, d := tt.report()
		advices[tt.name] = TCP(r, d, tt.failing)
	}
	for name, tt := range udpAdviceCases() {
		report := udpReport(tt.settings, tt.sockets...)
		advices["UDP "+name] = UDP(&report, &report.Pools[0])
	}
	advices["TIME_WAIT"] = FullTimeWait(&pool.Report{Settings: usual, CapacityPorts: 28232}, TimeWaitSockets{Overflows: 1, Recent: 1, Window: time.Second})
	for name, advice := range advices {
		if advice == nil {
			continue
		}
		last := -1
		for _, c := range advice.Cures {
			i := slices.Index(titles, c.Title)
			if i <= last {
				t.Errorf("%s: %q is chapter %d of the runbook, and the cure before it %d", name, c.Title, i, last)
			}
			last = i
			shown[c.Title] = true
			if anchor := strings.ToLower(strings.ReplaceAll(c.Title, " ", "-")); c.Anchor() != anchor {
				t.Errorf("%s: anchor %q, want %q", c.Title, c.Anchor(), anchor)
			}
			if changes := strings.Contains(c.Command, "sysctl -w"); changes && c.Undo == "" || c.Command == "" && c.Undo != "" {
				t.Errorf("%s: the command is %q, the undo %q", c.Title, c.Command, c.Undo)
			}
			for _, name := range sysctl.FindAllString(c.Command, -1) {
				if !strings.Contains(chapters[c.Title], name) {
					t.Errorf("%s: the runbook does not have %s", c.Title, name)
				}
			}
		}
	}
	// Here the cause comes before what takes a command.
	for _, c := range Bound(&pool.Report{CapacityPorts: 100, BoundPorts: 100, BoundKnown: true}).Cures {
		shown[c.Title] = true
	}
	if c, ok := ReserveListeners(&pool.Report{Settings: usual, ListenerPorts: []uint16{40003}}); ok {
		shown[c.Title] = true
	}
	for _, title := range titles {
		if !shown[title] {
			t.Errorf("the runbook has a cure %q that no advice has", title)
		}
	}
}

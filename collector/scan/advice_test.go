//go:build linux

package scan

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/netns/netnstest"
)

// A cureTest is a pool of 100 ports that has failed, and the cure of it.
type cureTest struct {
	*traffic
	scanner *Scanner
	cure    advice.Cure

	perConnection int         // requests
	fail          func() bool // has connects fail
	undo          func()      // what setUp did
}

const (
	testedPorts = 100
	testedHold  = time.Second // also that of kernels without tcp_tw_reuse_delay
)

// TestAdvice drives pools until connects fail, applies a cure, and drives them below and above the
// ceiling that it was to have. Then connect() grants as many ports as it was to have.
func TestAdvice(t *testing.T) {
	shell := func(tr *cureTest) { tr.shell(tr.cure.Command) }
	undo := func(tr *cureTest) { tr.undo() }
	tests := []struct {
		title string
		reuse bool
		setUp func(tr *cureTest) // before the traffic
		apply func(tr *cureTest)
		want  advice.Outlook
	}{
		{
			"Keep connections alive", true, nil,
			func(tr *cureTest) { tr.perConnection = tr.cure.N },
			advice.Outlook{Ports: 100, Ceiling: 300},
		},
		{"Reuse ports in TIME_WAIT", false, nil, shell, advice.Outlook{Ports: 100, Ceiling: 100}},
		{
			"Widen the range", true,
			func(tr *cureTest) {
				netnstest.Sysctl(tr.t, "ipv4/ip_local_reserved_ports", "1024-39999,40200-65535")
				netnstest.Listen(tr.t, "127.0.0.9:40150", false)
				netnstest.Listen(tr.t, "[::]:40160", false)
			},
			func(tr *cureTest) {
				tr.shell(tr.cure.Command)
				if got, want := tr.shell("sysctl -n net.ipv4.ip_local_reserved_ports"), "1024-39999,40150,40160,40200-65535\n"; got != want {
					tr.t.Errorf("reserved ports: got %q, want %q", got, want)
				}
			},
			advice.Outlook{Ports: 198, Ceiling: 198},
		},
		{
			"Give back reserved ports", true,
			func(tr *cureTest) {
				netnstest.Sysctl(tr.t, "ipv4/ip_local_reserved_ports", "8080,40080-40099")
				netnstest.Listen(tr.t, "127.0.0.9:40085", false)
			},
			func(tr *cureTest) { netnstest.Sysctl(tr.t, "ipv4/ip_local_reserved_ports", "8080,40085") },
			advice.Outlook{Ports: 99, Ceiling: 99},
		},
		{"Move listeners out of the range", true, setUpListeners, undo, advice.Outlook{Ports: 100, Ceiling: 100}},
		{"Connect without binding a port", true, setUpBound, undo, advice.Outlook{Ports: 100, Ceiling: 100}},
		{
			"More source addresses", true, nil,
			func(tr *cureTest) {
				tr.client = tr.client.bind(netnstest.BindNoPort)
				for i := range tr.cure.N {
					tr.others = append(tr.others, clientTo(fmt.Sprintf("198.51.100.%d", 100+i), tr.client.Destination.String()).bind(netnstest.BindNoPort))
				}
			},
			advice.Outlook{Ports: 100, Ceiling: 100},
		},
		{
			"More destination addresses or ports", true, nil,
			func(tr *cureTest) {
				for i := range tr.cure.N {
					tr.others = append(tr.others, clientTo(tr.client.source.String(), fmt.Sprintf("198.51.100.%d:81", 100+i)))
				}
			},
			advice.Outlook{Ports: 100, Ceiling: 100},
		},
		{
			"Let the other side close first", true, nil,
			func(tr *cureTest) { tr.serverFirst = true },
			advice.Outlook{Ports: 100, Ceiling: math.Inf(1)},
		},
		{"Close what the destination has closed", true, setUpCloseWait, undo, advice.Outlook{Ports: 100, Ceiling: 100}},
		{"Give up earlier without an answer", true, setUpSynSent, undo, advice.Outlook{Ports: 100, Ceiling: 100}},
	}
	var wg sync.WaitGroup
	for _, tt := range tests {
		// Not parallel subtests: of these, only as many run as there are CPUs.
		wg.Go(func() {
			t.Run(tt.title, func(t *testing.T) {
				tr := newCureTest(t, tt.reuse)
				if tt.setUp != nil {
					tt.setUp(tr)
				}
				tr.diagnose(tt.title)
				want := tt.want
				if strings.HasPrefix(tt.title, "More ") { // each has a pool
					want.Ports *= tr.cure.N + 1
					want.Ceiling *= float64(tr.cure.N + 1)
				}
				if then := tr.cure.Then; then.Ports != want.Ports || math.Abs(then.Ceiling/want.Ceiling-1) > 1e-9 && then.Ceiling != want.Ceiling {
					t.Errorf("got %+v, want %+v", then, want)
				}
				tt.apply(tr)
				tr.check()
			})
		})
	}
	wg.Wait()
}

// newCureTest returns the traffic of a new namespace, to a server on each address.
func newCureTest(t *testing.T, reuse bool) *cureTest {
	t.Helper()
	tr := &cureTest{traffic: newTraffic(t, testedPorts, reuse, testedHold), scanner: newScanner(t, testConfig()), perConnection: 1}
	tr.client = clientTo("198.51.100.1", "198.51.100.7:81")
	tr.listener = netnstest.Listen(t, "0.0.0.0:81", false)
	tr.catchUp = 0
	tr.nextScan = time.Now().Add(time.Hour) // never
	tr.fail = func() bool { return tr.run(2*testedPorts, time.Minute) }
	return tr
}

// setUpListeners has a fifth of the ports blocked.
func setUpListeners(tr *cureTest) {
	listen := func(first int) (closeAll func()) {
		var listeners []net.Listener
		for i := range testedPorts / 5 {
			l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.9:%d", first+i))
			if err != nil {
				tr.t.Fatal(err)
			}
			listeners = append(listeners, l)
		}
		return func() {
			for _, l := range listeners {
				l.Close()
			}
		}
	}
	closeInRange := listen(40000)
	tr.undo = func() {
		if got := strings.Count(tr.shell(tr.cure.Command), "127.0.0.9:400"); got != testedPorts/5 {
			tr.t.Errorf("%s lists %d listeners, want %d", tr.cure.Command, got, testedPorts/5)
		}
		closeInRange()
		tr.t.Cleanup(listen(20000))
	}
}

// setUpBound has clients of another address bind 40 ports before they connect.
func setUpBound(tr *cureTest) {
	l := newLoad(tr.t)
	other := clientTo("203.0.113.1", "198.51.100.8:80")
	selfReport(tr.t, tr.scanner) // those from before the first scan stay unknown
	l.connect(other.bind(netnstest.BindFirst).Client, 1)
	selfReport(tr.t, tr.scanner)
	l.connect(other.bind(netnstest.BindFirst).Client, 39)
	selfReport(tr.t, tr.scanner)
	tr.undo = func() {
		if now := tr.cure.Now.Ports; now != 60 {
			tr.t.Errorf("%d ports now, want 60", now)
		}
		l.close(len(l.open))
		l.connect(other.bind(netnstest.BindNoPort).Client, 40)
	}
}

// setUpCloseWait has the server close all connections, and not the client.
func setUpCloseWait(tr *cureTest) {
	tr.hold(func() {
		server, _, err := unix.Accept4(tr.listener, unix.SOCK_CLOEXEC)
		if err != nil {
			tr.t.Fatal(err)
		}
		netnstest.Hangup(server)
	})
}

// setUpSynSent has a server that does not answer, until undo.
func setUpSynSent(tr *cureTest) {
	tr.client = clientTo("198.51.100.1", "192.0.2.7:81").bind(netnstest.BindNoPort)
	tr.hold(func() {})
	hangup := tr.undo
	tr.undo = func() {
		hangup()
		netnstest.IP(tr.t, "addr add 192.0.2.7/32 dev lo")
	}
}

// hold has fail open connections until none is possible, and undo close them. It calls accept for
// each.
func (tr *cureTest) hold(accept func()) {
	var open []int
	tr.undo = func() {
		for _, fd := range open {
			netnstest.Hangup(fd)
		}
		open = nil
	}
	tr.t.Cleanup(tr.undo)
	tr.fail = func() bool {
		for {
			fd, err := tr.client.Dial()
			if errors.Is(err, unix.EADDRNOTAVAIL) {
				return true
			}
			if err != nil {
				tr.t.Fatal(err)
			}
			open = append(open, fd)
			accept()
		}
	}
}

// drive makes requests at a rate, see traffic.run.
func (tr *cureTest) drive(perSecond float64, d time.Duration) (failed bool) {
	tr.t.Helper()
	return tr.run(perSecond/float64(tr.perConnection), d)
}

// shell runs a command in the namespace of the test.
func (tr *cureTest) shell(command string) (output string) {
	tr.t.Helper()
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if err != nil {
		tr.t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

// diagnose has the pool fail, and finds the cure in a report right after that. It tries again: if the
// machine is busy, ports may be free again.
func (tr *cureTest) diagnose(title string) {
	tr.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); {
		if !tr.fail() {
			tr.t.Fatal("no connection failed")
		}
		r := selfReport(tr.t, tr.scanner)
		for i := range r.Destinations {
			if d := &r.Destinations[i]; d.Address == tr.client.Destination && d.Utilization > 0.9 {
				for _, c := range advice.TCP(&r, d, true).Cures {
					if c.Title == title {
						tr.cure = c
						return
					}
				}
				tr.t.Fatalf("%q is not in the advice: %+v", title, advice.TCP(&r, d, true))
			}
		}
	}
	tr.t.Fatal("the pool was never full")
}

// check compares the pool with the prediction.
func (tr *cureTest) check() {
	tr.t.Helper()
	settle := func() { time.Sleep(testedHold + 5*tick) }
	settle()
	then := tr.cure.Then
	if math.IsInf(then.Ceiling, 1) {
		if tr.drive(3*tr.cure.Now.Ceiling, 3*testedHold) {
			tr.t.Errorf("a connection failed, and there was to be no ceiling")
		}
	} else {
		if tr.drive(0.95*then.Ceiling, 3*testedHold) {
			tr.t.Errorf("a connection failed at 0.95 × the ceiling of %v", then.Ceiling)
		}
		for deadline := time.Now().Add(10 * time.Minute); !tr.drive(1.1*then.Ceiling, testedHold*2); {
			if time.Now().After(deadline) {
				tr.t.Fatalf("no connection failed at 1.1 × the ceiling of %v", then.Ceiling)
			}
		}
	}

	tr.closeDue()
	settle()
	granted := 0
	for _, c := range append(tr.others, tr.client) {
		n, refusal := c.Fill(tr.t, then.Ports+1)
		if !errors.Is(refusal, unix.EADDRNOTAVAIL) {
			tr.t.Errorf("connect() ended with %v, want EADDRNOTAVAIL", refusal)
		}
		granted += n
	}
	if granted != then.Ports {
		tr.t.Errorf("connect() granted %d ports, want %d", granted, then.Ports)
	}
}

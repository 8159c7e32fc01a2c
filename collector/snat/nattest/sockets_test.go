//go:build linux

package nattest_test

import (
	"net/netip"
	"strconv"
	"testing"
	"time"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/snat/nattest"

	"golang.org/x/sys/unix"
)

// patience is longer than anything takes on any busy host.
const patience = time.Minute

// TestSockets tests what programs see: connect() takes its time, and no error tells why.
func TestSockets(t *testing.T) {
	const few = 8
	g := nattest.New(t, nattest.Postrouting("masquerade to :40000-40007"))
	for _, server := range []netip.Addr{nattest.Server4, nattest.Server6} {
		to := netip.AddrPortFrom(server, 80)
		g.InServer(func() { netnstest.Listen(t, to.String(), server.Is6()) })
		dial := func() (fd int) {
			var err error
			g.InClient(func() { fd, err = netnstest.Client{Destination: to}.Dial() })
			if err != nil {
				t.Fatalf("connect to %v: %v", to, err)
			}
			t.Cleanup(func() { unix.Close(fd) })
			return fd
		}
		for i := range few {
			fd := dial()
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(patience.Milliseconds())); n != 1 {
				t.Fatalf("connection %d to %v is not established after %v: %v", i, to, patience, err)
			}
		}
		before := nattest.ReadStatistics(t)
		fd := dial()
		waitFor(t, "a failed insert", func() bool { return nattest.ReadStatistics(t).InsertFailed > before.InsertFailed })
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0); n != 0 {
			t.Errorf("connection %d to %v got an answer", few, to)
		}
	}
}

// TestTimeout tests that ports are free as soon as the flow's time is over.
func TestTimeout(t *testing.T) {
	g := nattest.New(t, nattest.Postrouting("masquerade to :"+portRange))
	for _, step := range []struct{ first, timeout int }{{0, 3}, {1 << 8, 600}} {
		waitFor(t, "the end of all flows", func() bool { return len(nattest.Flows(t, "udp")) == 0 })
		netnstest.Sysctl(t, "netfilter/nf_conntrack_udp_timeout", strconv.Itoa(step.timeout))
		if n := len(fill(t, g, unix.IPPROTO_UDP, clients(step.first, 20000), server, ports)); n != ports {
			t.Errorf("%d of %d ports were granted to clients from %d on", n, ports, step.first)
		}
	}
}

func waitFor(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !happened(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

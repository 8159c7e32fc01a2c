//go:build linux

package scan

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/pool"
)

// BenchmarkScrape has 300k connections to 20 destinations and tells, per socket, the
// CPU time of the least that a dump can cost, of ours with the fold into pools, and of
// all that a scrape does, each measured in turn in the same process; and the memory of
// the real binary.
//
//	go test ./collector -run '^$' -bench . -benchtime 20x
func BenchmarkScrape(b *testing.B) {
	const destinations, children = 20, 15
	netnstest.Sysctl(b, "ipv4/ip_local_port_range", "1024 65535")
	for range children {
		var holdings []netnstest.Holding
		for i := range destinations {
			holdings = append(holdings, netnstest.Holding{
				Client: netnstest.Client{Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 443)},
				Count:  19900 / destinations,
			})
		}
		netnstest.HoldInChild(b, holdings...)
	}

	s := newScanner(b, testConfig())
	settings := benchSettings(b, s)

	var bare, fold, scrape cost
	for b.Loop() {
		bare.measure(b, func() int { return bareDump(b, 1024, 65535) })
		fold.measure(b, func() int {
			table, err := s.fillTable(settings, time.Now().Add(time.Minute))
			if err != nil {
				b.Fatal(err)
			}
			return table.Report(testConfig().Limits).Sockets
		})
		scrape.measure(b, func() int {
			return s.Scan(b.Context()).Namespaces[0].Report.Sockets
		})
	}
	if bare.sockets != fold.sockets || bare.sockets < 100_000 {
		b.Fatalf("%d sockets in the bare dump, %d in ours", bare.sockets, fold.sockets)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(bare.sockets), "sockets")
	b.ReportMetric(bare.perSocket(), "bare-cpu-ns/socket")
	b.ReportMetric(fold.perSocket(), "fold-cpu-ns/socket")
	b.ReportMetric(scrape.perSocket(), "scrape-cpu-ns/socket")
	b.ReportMetric(fold.perSocket()/bare.perSocket(), "fold/bare")
	b.ReportMetric(scrape.perSocket()/bare.perSocket(), "scrape/bare")
	b.ReportMetric(fold.mallocsPerSocket(), "fold-allocs/socket")
	b.ReportMetric(scrape.mallocsPerSocket(), "scrape-allocs/socket")
	b.ReportMetric(binaryRSS(b), "binary-RSS-MB")
}

// BenchmarkDestinations has 119400 connections, each to a destination of its own, and
// tells the memory of the real binary.
func BenchmarkDestinations(b *testing.B) {
	netnstest.Sysctl(b, "ipv4/ip_local_port_range", "1024 65535")
	for i := range 6 {
		netnstest.HoldInChild(b, netnstest.Holding{
			Client:              netnstest.Client{Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 10000)},
			Count:               19900,
			NextDestinationPort: true,
		})
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(binaryRSS(b), "binary-RSS-MB")
}

// BenchmarkInbound has 20k inbound connections to one listener and 2k outbound ones. It
// compares our dump with one that does not filter by port.
func BenchmarkInbound(b *testing.B) {
	const inbound, outbound = 20000, 2000
	netnstest.Sysctl(b, "ipv4/ip_local_port_range", "32768 60999")
	out := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:443")}
	netnstest.HoldInChild(b, netnstest.Holding{Client: out, Count: outbound})
	in := netnstest.Client{
		Bind:        netnstest.BindReuseAddr,
		Source:      netip.MustParseAddrPort("198.51.100.1:8080"),
		Destination: netip.MustParseAddrPort("192.0.2.2:10000"),
	}
	for range 2 {
		netnstest.HoldInChild(b, netnstest.Holding{Client: in, Count: inbound / 2, NextDestinationPort: true})
		in.Destination = netip.MustParseAddrPort("192.0.2.3:10000")
	}

	s := newScanner(b, testConfig())
	settings := benchSettings(b, s)
	var filtered, unfiltered cost
	for b.Loop() {
		unfiltered.measure(b, func() int {
			settings := settings
			settings.PortRange = pool.PortRange{Low: 0, High: 65535}
			table, err := s.fillTable(settings, time.Now().Add(time.Minute))
			if err != nil {
				b.Fatal(err)
			}
			return table.Report(testConfig().Limits).Sockets
		})
		filtered.measure(b, func() int {
			table, err := s.fillTable(settings, time.Now().Add(time.Minute))
			if err != nil {
				b.Fatal(err)
			}
			return table.Report(testConfig().Limits).Sockets
		})
	}
	// Scrapes of the other benchmark can be in TIME_WAIT still.
	if filtered.sockets < outbound || unfiltered.sockets < inbound+filtered.sockets {
		b.Fatalf("%d and %d sockets, want %d and %d", filtered.sockets, unfiltered.sockets, outbound, inbound+outbound)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(unfiltered.cpu.Seconds()*1000/float64(unfiltered.runs), "unfiltered-cpu-ms/dump")
	b.ReportMetric(filtered.cpu.Seconds()*1000/float64(filtered.runs), "filtered-cpu-ms/dump")
	b.ReportMetric(filtered.cpu.Seconds()/unfiltered.cpu.Seconds(), "filtered/unfiltered")
}

// benchSettings are those of the namespace that the benchmarks run in.
func benchSettings(b *testing.B, s *Scanner) pool.Settings {
	b.Helper()
	ns, err := s.proc.Namespace()
	if err != nil {
		b.Fatal(err)
	}
	defer ns.Close()
	settings, err := s.readSettings(ns)
	if err != nil {
		b.Fatal(err)
	}
	return settings
}

// A cost sums up what several runs of one thing took.
type cost struct {
	runs    int
	sockets int // of each run
	cpu     time.Duration
	mallocs uint64
}

// measure adds one run, which returns its number of sockets.
func (c *cost) measure(b *testing.B, run func() int) {
	b.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := processCPU(b)
	c.sockets = run()
	c.cpu += processCPU(b) - start
	runtime.ReadMemStats(&after)
	c.mallocs += after.Mallocs - before.Mallocs
	c.runs++
}

func (c *cost) perSocket() float64 {
	return float64(c.cpu.Nanoseconds()) / float64(c.runs) / float64(c.sockets)
}

func (c *cost) mallocsPerSocket() float64 {
	return float64(c.mallocs) / float64(c.runs) / float64(c.sockets)
}

// processCPU returns the user and system time of all threads.
func processCPU(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// bareDump asks for the same sockets as we do and throws the answer away. It returns
// their number.
func bareDump(b *testing.B, low, high uint16) (sockets int) {
	b.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)

	const getSock, states = 18, 0xb7e // TCPDIAG_GETSOCK; all but TCP_CLOSE and TCP_LISTEN
	req := make([]byte, 16+60)
	binary.NativeEndian.PutUint32(req[0:], 16+60+20)
	binary.NativeEndian.PutUint16(req[4:], getSock)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(req[16+52:], states)
	for _, n := range []uint16{20, 1, 8<<8 | 2, 20, 0, low, 8<<8 | 3, 12, 0, high} {
		req = binary.NativeEndian.AppendUint16(req, n)
	}
	if _, err := unix.Write(fd, req); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			b.Fatal(err)
		}
		for m := buf[:n]; len(m) >= 16; m = m[(binary.NativeEndian.Uint32(m)+3)&^3:] {
			switch binary.NativeEndian.Uint16(m[4:]) {
			case getSock:
				sockets++
			case unix.NLMSG_DONE:
				return sockets
			default:
				b.Fatalf("message of type %d", binary.NativeEndian.Uint16(m[4:]))
			}
		}
	}
}

// binaryRSS runs the real binary, scrapes it 20 times and returns its greatest resident
// memory in MB.
func binaryRSS(b *testing.B) float64 {
	b.Helper()
	binary := filepath.Join(b.TempDir(), "ephemeral_port_exporter")
	if out, err := exec.Command("go", "build", "-o", binary, "ephemeral_port_exporter/cmd/ephemeral_port_exporter").CombinedOutput(); err != nil {
		b.Fatalf("go build: %v: %s", err, out)
	}
	cmd := exec.Command(binary, "--web.listen-address=127.0.0.1:999", "--log.level=error")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	})
	for range 20 {
		scrapeBinary(b, "http://127.0.0.1:999/metrics")
	}

	f, err := os.Open(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); fields[0] == "VmHWM:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kib) * 1024 / 1e6
		}
	}
	b.Fatal("no VmHWM")
	return 0
}

// scrapeBinary gets a page, for as long as the server does not listen yet.
func scrapeBinary(b *testing.B, url string) {
	b.Helper()
	var err error
	for range 100 {
		var resp *http.Response
		if resp, err = http.Get(url); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				b.Fatalf("%s: %s", url, resp.Status)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.Fatal(err)
}

// BenchmarkNamespaces has 119400 connections in one namespace and 299 namespaces that are
// idle, four of five with a few sockets. It tells what those cost beside the one.
func BenchmarkNamespaces(b *testing.B) {
	busy, idle := b.TempDir(), b.TempDir()
	netnstest.Mount(b, filepath.Join(busy, "busy"), func() {
		netnstest.Sysctl(b, "ipv4/ip_local_port_range", "1024 65535")
		for i := range 6 {
			netnstest.HoldInChild(b, netnstest.Holding{
				Client: netnstest.Client{Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 443)},
				Count:  19900,
			})
		}
	})
	const n = 299
	for i := range n {
		netnstest.Mount(b, filepath.Join(idle, fmt.Sprint(i)), func() {
			netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:443")}.Hold(b, i%5)
		})
	}

	one, all := namedScanner(b, busy), namedScanner(b, busy, idle)
	scan := func(s *Scanner, others int) func() int {
		return func() int {
			namespaces := s.Scan(b.Context()).Namespaces
			if len(namespaces) != others+1 {
				b.Fatalf("%d namespaces, want %d", len(namespaces), others+1)
			}
			return len(namespaces)
		}
	}
	var alone, together cost
	for b.Loop() {
		alone.measure(b, scan(one, 1))
		together.measure(b, scan(all, n+1))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(alone.cpu.Seconds()*1000/float64(alone.runs), "one-cpu-ms/scrape")
	b.ReportMetric(together.cpu.Seconds()*1000/float64(together.runs), "all-cpu-ms/scrape")
	b.ReportMetric((together.cpu-alone.cpu).Seconds()*1e6/float64(alone.runs)/n, "cpu-us/idle-namespace")
	b.ReportMetric(together.cpu.Seconds()/alone.cpu.Seconds(), "all/one")
}

//go:build linux

package main

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
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/web"
)

// The benchmarks measure the real process from outside: the CPU time of all its threads
// for a scrape over HTTP. The process to compare with is the yardstick. The two take turns.
//
//	go test ./cmd/ephemeral_port_exporter -run '^$' -bench . -benchtime 20x
const benchAddress = "127.0.0.1:999"

// holdMany keeps connections open: children times 19,900, spread over destinations.
func holdMany(b *testing.B, children, destinations int) {
	b.Helper()
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
}

// BenchmarkIdle has 20 connections. It also tells what a scrape costs without the metrics of Go and the process, and how long it
// takes from the start of the exporter to its first answer.
func BenchmarkIdle(b *testing.B) {
	c := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:443")}
	c.Hold(b, 20)
	var first, cpu []float64
	for range 10 {
		start := time.Now()
		p := runBench(b, "127.0.0.1:998")
		p.scrape(b)
		first = append(first, time.Since(start).Seconds()*1000)
		p.stop()
	}
	e := startBench(b, "127.0.0.1:995", "--web.disable-exporter-metrics")
	for range 50 {
		used, _ := e.scrape(b)
		cpu = append(cpu, used.Seconds()*1000)
	}
	compareWithBareLoop(b)
	b.ReportMetric(median(cpu), "cpu-ms/scrape-without-exporter-metrics")
	b.ReportMetric(median(first), "wall-ms-to-first-answer")
}

// BenchmarkScrape has 298,500 connections to 20 destinations. The yardstick is the least cost of a
// dump: a loop that receives the same answer and discards it.
func BenchmarkScrape(b *testing.B) {
	holdMany(b, 15, 20)
	compareWithBareLoop(b)
}

// BenchmarkMillion has 1,014,900 connections to 100 destinations. It also tells how long a
// scrape takes that has 100 ms for them, and so must fail; what 200 namespaces with a full range of
// one port cost beside them; 40 scrapes at once; and connects of others meanwhile.
func BenchmarkMillion(b *testing.B) {
	holdMany(b, 51, 100)
	const timeout = "--collect.timeout=100ms"
	e := runBench(b, "127.0.0.1:998", timeout)
	var wall []float64
	for range 5 {
		start := time.Now()
		if _, metrics := e.scrape(b); !strings.Contains(metrics, "\nephemeral_port_collect_success{netns=\"self\"} 0\n") {
			b.Fatalf("%s: not cut short:\n%.500s", timeout, metrics)
		}
		wall = append(wall, time.Since(start).Seconds()*1000)
	}
	compareWithBareLoop(b)
	b.ReportMetric(median(wall), "wall-ms-if-cut-at-100-ms")

	small := startBench(b, "127.0.0.1:995", "--namespaces=named", "--namespaces.dir="+smallNamespaces(b, 200))
	var cpu []float64
	for range 5 {
		used, _ := small.scrape(b)
		cpu = append(cpu, used.Seconds()*1000)
	}
	b.ReportMetric(median(cpu), "cpu-ms/scrape-with-200-one-port-namespaces")

	full := startBench(b, "127.0.0.1:997")
	b.ReportMetric(quantile(scrapesAtOnce(b, full.url, 40, 5), 0.99), "wall-ms-p99-of-40-at-once")
	b.ReportMetric(full.rss(b), "RSS-MB-40-at-once")

	quiet := connectTimes(b)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				full.scrape(b)
			}
		}
	}()
	busy := connectTimes(b)
	close(stop)
	<-stopped
	for q, name := range map[float64]string{0.5: "p50", 0.99: "p99"} {
		b.ReportMetric(quantile(quiet, q), "connect-us-"+name)
		b.ReportMetric(quantile(busy, q), "connect-us-"+name+"-while-scraped")
	}
}

// smallNamespaces makes namespaces with a range of one port, which a socket holds. It returns the
// directory of their mounts.
func smallNamespaces(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	for i := range n {
		netnstest.Mount(b, filepath.Join(dir, fmt.Sprint(i)), func() {
			netnstest.Sysctl(b, "ipv4/ip_local_port_range", "40000 40000")
			c := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:443")}
			c.Hold(b, 1)
		})
	}
	return dir
}

// BenchmarkDestinations has 119,400 connections, each to a destination of its own. It also tells what --trace adds, and what owners do.
func BenchmarkDestinations(b *testing.B) {
	holdCrawler(b)
	exporters := startModes(b)
	exporters["without-owners-"] = startBench(b, "127.0.0.1:994", "--path.cgroup=/nonexistent")
	if netnstest.IsHostRoot() {
		netnstest.LockTraces(b)
		exporters["trace-"] = startBench(b, "127.0.0.1:993", "--trace")
	}
	compare(b, exporters, "tcp")
}

// holdCrawler keeps 119,400 connections open, each to a destination of its own.
func holdCrawler(b *testing.B) {
	b.Helper()
	netnstest.Sysctl(b, "ipv4/ip_local_port_range", "1024 65535")
	for i := range 6 {
		netnstest.HoldInChild(b, netnstest.Holding{
			Client:              netnstest.Client{Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 10000)},
			Count:               19900,
			NextDestinationPort: true,
		})
	}
}

// BenchmarkSteady tells how much scrapes vary: one a second, from the one that is the first to see 119,400 connections, each to a
// destination of its own. The yardstick tells how much the machine varies. With -benchtime 30x, it takes half a minute.
func BenchmarkSteady(b *testing.B) {
	e := startBench(b, benchAddress)
	loop := startBareLoop(b, "tcp")
	holdCrawler(b)
	figures := map[string][]float64{}
	add := func(name string, value time.Duration) { figures[name] = append(figures[name], value.Seconds()*1000) }
	for second := time.Tick(time.Second); b.Loop(); <-second {
		start := time.Now()
		cpu, _ := e.scrape(b)
		add("wall-ms", time.Since(start))
		add("cpu-ms", cpu)
		start = time.Now()
		cpu, _ = loop.dump(b)
		add("bare-wall-ms", time.Since(start))
		add("bare-cpu-ms", cpu)
	}
	b.ReportMetric(0, "ns/op")
	for name, values := range figures {
		first := values[0] // median sorts them
		b.ReportMetric(first/median(values), name+"-first/median")
		b.ReportMetric(slices.Max(values)/median(values), name+"-slowest/median")
		b.ReportMetric(median(values), name)
	}
	b.ReportMetric(e.rss(b), "RSS-MB")
}

// BenchmarkGrowth has a connection to each of more and more destinations, and then a second one.
func BenchmarkGrowth(b *testing.B) {
	netnstest.Sysctl(b, "ipv4/ip_local_port_range", "1024 65535")
	const most = 500_000
	var held, children int
	hold := func(n int) {
		for left := n - held; left > 0; left = n - held {
			each := min(19900, left)
			netnstest.HoldInChild(b, netnstest.Holding{
				Client:              netnstest.Client{Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(children%26 + 1)}), 10000)},
				Count:               each,
				NextDestinationPort: true,
			})
			held += each
			children++
		}
	}
	for _, destinations := range []int{10_000, 30_000, 100_000, 300_000, most} {
		hold(destinations)
		b.Run(fmt.Sprint(destinations), compareWithBareLoop)
	}
	children = 26
	hold(2 * most)
	b.Run("twice", compareWithBareLoop)
}

// BenchmarkEleven has 990,000 connections, 11 to each of 90,000 destinations, and then 50 whose client binds first: so each of the others
// has to be judged.
func BenchmarkEleven(b *testing.B) {
	netnstest.Sysctl(b, "ipv4/ip_local_port_range", "1024 65535")
	for range 11 {
		for i := range 5 {
			netnstest.HoldInChild(b, netnstest.Holding{
				Client:              netnstest.Client{Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 10000)},
				Count:               18000,
				NextDestinationPort: true,
			})
		}
	}
	b.Run("plain", compareWithBareLoop)
	netnstest.HoldInChild(b, netnstest.Holding{
		Client: netnstest.Client{Bind: netnstest.BindFirst, Source: netip.MustParseAddrPort("198.51.100.1:0"), Destination: netip.MustParseAddrPort("192.0.2.77:443")},
		Count:  50,
	})
	b.Run("beside-bound", compareWithBareLoop)
}

// BenchmarkInbound has 20,000 inbound connections to one listener and 2,000 outbound ones.
// The kernel filters by port for the exporter and for the yardstick.
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
	compare(b, startModes(b), "outbound")
}

// BenchmarkNamespaces has 10 namespaces with 11,940 connections each, and 1,990 idle ones,
// of which four of five have a few sockets. The yardstick is an exporter that sees only the 10.
func BenchmarkNamespaces(b *testing.B) {
	const busy, idle = 10, 1990
	busyDir, allDir := b.TempDir(), b.TempDir()
	for i := range busy + idle {
		path := filepath.Join(allDir, fmt.Sprint(i))
		if i < busy {
			path = filepath.Join(busyDir, fmt.Sprint("busy", i))
		}
		netnstest.Mount(b, path, func() {
			c := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:443")}
			if i >= busy {
				c.Hold(b, i%5)
				return
			}
			netnstest.HoldInChild(b, netnstest.Holding{Client: c, Count: 11940})
		})
	}

	few := startBench(b, "127.0.0.1:998", "--namespaces=named", "--namespaces.dir="+busyDir)
	all := startBench(b, benchAddress, "--namespaces=named", "--namespaces.dir="+busyDir, "--namespaces.dir="+allDir, "--namespaces.limit=2000")
	var fewCPU, allCPU, wall, perIdle []float64
	for b.Loop() {
		without, _ := few.scrape(b)
		start := time.Now()
		with, metrics := all.scrape(b)
		wall = append(wall, time.Since(start).Seconds()*1000)
		if n := strings.Count(metrics, "ephemeral_port_max_utilization_ratio{"); n < busy {
			b.Fatalf("%d namespaces were read, want %d", n, busy)
		}
		if n := strings.Count(metrics, "ephemeral_port_netns_info{"); n < busy+idle {
			b.Fatalf("%d namespaces in the answer, want %d", n, busy+idle)
		}
		fewCPU = append(fewCPU, without.Seconds()*1000)
		allCPU = append(allCPU, with.Seconds()*1000)
		perIdle = append(perIdle, (with-without).Seconds()*1e6/idle)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(fewCPU), "busy-cpu-ms/scrape")
	b.ReportMetric(median(allCPU), "all-cpu-ms/scrape")
	b.ReportMetric(median(perIdle), "cpu-us/idle-namespace")
	b.ReportMetric(median(wall), "wall-ms/scrape")
	b.ReportMetric(all.rss(b), "RSS-MB")
}

// compareWithBareLoop compares the modes with a loop that receives the same dump and discards it.
func compareWithBareLoop(b *testing.B) { compare(b, startModes(b), "tcp") }

// startModes starts an exporter, and one with --exact. The keys are what their figures begin with.
func startModes(b *testing.B) map[string]benchProcess {
	b.Helper()
	exporters := map[string]benchProcess{"": startBench(b, benchAddress)}
	if netnstest.IsHostRoot() {
		exporters["exact-"] = startBench(b, "127.0.0.1:996", "--exact")
	}
	return exporters
}

// compare scrapes exporters, and runs a yardstick of bareRequests, in turns.
func compare(b *testing.B, exporters map[string]benchProcess, yardstick string) {
	b.Helper()
	loop := startBareLoop(b, yardstick)
	figures := map[string][]float64{}
	add := func(name string, value float64) { figures[name] = append(figures[name], value) }
	sockets := 0
	for b.Loop() {
		var loopCPU time.Duration
		loopCPU, sockets = loop.dump(b)
		add("bare-cpu-ms", loopCPU.Seconds()*1000)
		for mode, e := range exporters {
			start := time.Now()
			cpu, _ := e.scrape(b)
			add(mode+"wall-ms/scrape", time.Since(start).Seconds()*1000)
			add(mode+"cpu-ms/scrape", cpu.Seconds()*1000)
			add(mode+"cpu/bare", cpu.Seconds()/loopCPU.Seconds())
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(sockets), "sockets")
	for name, values := range figures {
		b.ReportMetric(median(values), name)
	}
	for mode, e := range exporters {
		b.ReportMetric(e.rss(b), mode+"RSS-MB")
		cpu := figures[mode+"cpu-ms/scrape"]
		b.ReportMetric(slices.Max(cpu)/median(cpu), mode+"slowest/median")
	}
}

// scrapesAtOnce returns how long scrapes took, in ms, of rounds of n at once.
func scrapesAtOnce(b *testing.B, url string, n, rounds int) []float64 {
	b.Helper()
	var (
		mu    sync.Mutex
		times []float64
	)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range rounds {
		var scrapes sync.WaitGroup
		for range n {
			scrapes.Go(func() {
				start := time.Now()
				resp, err := client.Get(url)
				if err != nil {
					b.Error(err)
					return
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
					b.Errorf("%s, %v", resp.Status, err)
				}
				mu.Lock()
				defer mu.Unlock()
				times = append(times, time.Since(start).Seconds()*1000)
			})
		}
		scrapes.Wait()
	}
	return times
}

// connectTimes returns how long connects to a destination of their own took, in µs, over three
// seconds.
func connectTimes(b *testing.B) []float64 {
	b.Helper()
	c := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.200:443")}
	var times []float64
	for start := time.Now(); time.Since(start) < 3*time.Second; {
		before := time.Now()
		fd, err := c.Connect()
		if err != nil {
			b.Fatal(err)
		}
		times = append(times, float64(time.Since(before).Nanoseconds())/1000)
		netnstest.CloseRepaired(fd)
	}
	return times
}

func median(values []float64) float64 { return quantile(values, 0.5) }

func quantile(values []float64, q float64) float64 {
	slices.Sort(values)
	return values[int(q*float64(len(values)))]
}

// A benchProcess is a running process.
type benchProcess struct {
	cmd *exec.Cmd
	url string

	stdin  io.Writer
	stdout *bufio.Reader
}

// startBench runs an exporter with runBench. Its scrapes must not fail. The first scrapes are not
// measured.
func startBench(b *testing.B, address string, args ...string) benchProcess {
	b.Helper()
	p := runBench(b, address, args...)
	if _, metrics := p.scrape(b); !strings.Contains(metrics, "\nephemeral_port_collect_success{netns=\"self\"} 1\n") {
		b.Fatalf("the scrape failed:\n%.500s", metrics)
	}
	return p
}

// runBench runs the exporter until the benchmark ends.
func runBench(b *testing.B, address string, args ...string) benchProcess {
	b.Helper()
	cmd := exec.Command(netnstest.ProgramPath(name), append(args, "--web.listen-address="+address, "--log.level=error")...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	p := benchProcess{cmd: cmd, url: "http://" + address + "/metrics"}
	b.Cleanup(p.stop)
	for range 10_000 {
		if resp, err := http.Get("http://" + address + web.HealthyPath); err == nil {
			resp.Body.Close()
			return p
		}
		time.Sleep(time.Millisecond)
	}
	b.Fatal("the exporter does not listen")
	return p
}

// stop ends the process, which can have ended before.
func (p benchProcess) stop() {
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	_ = p.cmd.Wait()
}

// scrape returns the CPU time of a scrape, and its answer.
func (p benchProcess) scrape(b *testing.B) (time.Duration, string) {
	b.Helper()
	start := p.cpu(b)
	resp, err := http.Get(p.url)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("%s, %v:\n%.500s", resp.Status, err, body)
	}
	return p.cpu(b) - start, string(body)
}

// cpu returns the CPU time of all threads of the process, including those that have ended.
func (p benchProcess) cpu(b *testing.B) time.Duration {
	b.Helper()
	// MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of linux/posix-timers_types.h.
	const cpuClockSched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|cpuClockSched), &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// rss returns the peak resident memory of the process, in MB.
func (p benchProcess) rss(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); fields[0] == "VmHWM:" {
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

// envBareLoop makes the test binary the yardstick, of one of bareRequests.
const envBareLoop = "BENCH_BARE_LOOP"

// startBareLoop runs the yardstick until the benchmark ends.
func startBareLoop(b *testing.B, protocol string) benchProcess {
	b.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envBareLoop+"="+protocol, "GOGC=off")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	p := benchProcess{cmd: cmd, stdin: stdin, stdout: bufio.NewReader(stdout)}
	p.dump(b)
	return p
}

// dump lets the yardstick receive one dump. It returns the CPU time and the number of sockets.
func (p benchProcess) dump(b *testing.B) (cpu time.Duration, sockets int) {
	b.Helper()
	start := p.cpu(b)
	if _, err := p.stdin.Write([]byte{'\n'}); err != nil {
		b.Fatal(err)
	}
	if _, err := fmt.Fscanln(p.stdout, &sockets); err != nil {
		b.Fatal(err)
	}
	return p.cpu(b) - start, sockets
}

// bareLoopMain is the yardstick: for each line of its input, one dump and a line with the
// number of sockets or flows. Its loop is one thread that blocks in recvfrom(2), without the poller of the
// runtime.
func bareLoopMain() {
	runtime.LockOSThread()
	buf := make([]byte, 64<<10)
	for in := bufio.NewReader(os.Stdin); ; {
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		rows, err := 0, error(nil)
		for _, request := range bareRequests[os.Getenv(envBareLoop)] {
			var n int
			if n, err = bareDump(request, buf); err != nil {
				break
			}
			rows += n
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bare loop:", err)
			os.Exit(1)
		}
		fmt.Println(rows)
	}
}

// bareRequests are what the yardstick asks for: all TCP sockets except listeners, those on ports of the default range, all UDP sockets, or all
// flows of connection tracking.
var bareRequests = map[string][]bareRequest{
	"tcp":      {{unix.NETLINK_SOCK_DIAG, tcpdiagGetSock, tcpdiagGetSock, 60, 0, 0, 52, 0xb7e, 0, 0}}, // all but TCP_CLOSE and TCP_LISTEN
	"outbound": {{unix.NETLINK_SOCK_DIAG, tcpdiagGetSock, tcpdiagGetSock, 60, 0, 0, 52, 0xb7e, 32768, 60999}},
	"udp": {
		{unix.NETLINK_SOCK_DIAG, unix.SOCK_DIAG_BY_FAMILY, unix.SOCK_DIAG_BY_FAMILY, 56, unix.AF_INET, unix.IPPROTO_UDP, 4, ^uint32(0), 0, 0},
		{unix.NETLINK_SOCK_DIAG, unix.SOCK_DIAG_BY_FAMILY, unix.SOCK_DIAG_BY_FAMILY, 56, unix.AF_INET6, unix.IPPROTO_UDP, 4, ^uint32(0), 0, 0},
	},
	"flows": {{unix.NETLINK_NETFILTER, ctGet, ctNew, 4, 0, 0, 0, 0, 0, 0}},
}

// Types of messages: TCPDIAG_GETSOCK of linux/inet_diag.h, IPCTNL_MSG_CT_GET and _NEW of
// linux/netfilter/nfnetlink_conntrack.h.
const (
	tcpdiagGetSock = 18
	ctGet          = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	ctNew          = unix.NFNL_SUBSYS_CTNETLINK << 8
)

// A bareRequest is a request for a dump, of the type struct inet_diag_req, inet_diag_req_v2 or nfgenmsg.
type bareRequest struct {
	netlink          int    // family
	typ, row         uint16 // of the request, and of a row of the answer
	size             int
	family, protocol byte // the first bytes
	statesAt         int
	states           uint32
	low, high        uint16 // local ports; 0 for all
}

// filter returns the attribute INET_DIAG_REQ_BYTECODE with two struct inet_diag_bc_op of linux/inet_diag.h, each with a port, if
// there is a range.
func (r bareRequest) filter() []byte {
	if r.high == 0 {
		return nil
	}
	const sourceAtLeast, sourceAtMost = 2, 3 // INET_DIAG_BC_S_GE, INET_DIAG_BC_S_LE
	var b []byte
	for i, op := range []struct {
		code byte
		port uint16
	}{{sourceAtLeast, r.low}, {sourceAtMost, r.high}} {
		left := uint16(16 - 8*i)
		b = append(b, op.code, 8) // to the next one if it holds
		b = binary.NativeEndian.AppendUint16(b, left+4)
		b = append(b, 0, 0)
		b = binary.NativeEndian.AppendUint16(b, op.port)
	}
	attr := binary.NativeEndian.AppendUint16(nil, uint16(4+len(b)))
	return append(binary.NativeEndian.AppendUint16(attr, 1), b...)
}

// bareDump requests rows and discards the answer.
func bareDump(r bareRequest, buf []byte) (rows int, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, r.netlink)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)

	req := append(make([]byte, 16+r.size), r.filter()...)
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], r.typ)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req[16], req[17] = r.family, r.protocol
	binary.NativeEndian.PutUint32(req[16+r.statesAt:], r.states)
	if _, err := unix.Write(fd, req); err != nil {
		return 0, err
	}
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0, 0)
		if errno != 0 {
			return 0, errno
		}
		for m := buf[:n]; len(m) >= 16; m = m[(binary.NativeEndian.Uint32(m)+3)&^3:] {
			switch binary.NativeEndian.Uint16(m[4:]) {
			case r.row:
				rows++
			case unix.NLMSG_DONE:
				return rows, nil
			default:
				return 0, fmt.Errorf("message of type %d", binary.NativeEndian.Uint16(m[4:]))
			}
		}
	}
}

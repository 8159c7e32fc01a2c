//go:build linux

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

const (
	source        = "198.51.100.1" // that the kernel chooses for connections to origins
	scrapeAddress = "127.0.0.1:10149"
	limit         = time.Minute // no answer takes that long
)

// A host is a network namespace with the exporter and programs that make connections to origins.
type host struct {
	scrapes  *caller
	programs int
}

// newHost makes a host whose range has size ports.
func newHost(t *testing.T, size int, flags ...string) *host {
	t.Helper()
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("40000 %d", 40000+size-1))
	netnstest.Sysctl(t, "ipv4/tcp_tw_reuse", "0")
	start(t, command(t, append(flags, "--trace", "--destination.min-ports=1", "--web.listen-address="+scrapeAddress)...), "")
	h := &host{scrapes: &caller{to: scrapeAddress, port: 10200}}
	t.Cleanup(h.scrapes.close)
	return h
}

// A running is a program on a host.
type running struct {
	program
	site
	origin   *origin
	requests *caller
	held     []net.Conn // to the program, that wait for an answer
	trace    *netnstest.Trace
	output   *logBuffer
}

// A site is what a program is told.
type site struct {
	dir         string         // its own directory
	listen      netip.AddrPort // where it listens
	destination netip.AddrPort // where its origin is
}

// run starts a program and its origin.
func (h *host) run(t *testing.T, p program, destination netip.AddrPort, kind originKind) *running {
	t.Helper()
	h.programs++
	r := &running{
		program: p,
		site:    site{openTempDir(t), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(8000+h.programs)), destination},
		origin:  startOrigin(t, destination, kind),
		output:  &logBuffer{},
	}
	r.requests = &caller{to: r.listen.String(), port: 10000 + 1000*h.programs}
	t.Cleanup(func() {
		r.requests.close()
		for _, c := range r.held {
			c.Close()
		}
	})
	cmd := p.command(t, r.site)
	cmd.Stdout, cmd.Stderr = r.output, r.output
	// As the first process of a namespace, it takes its children with it when it is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	r.trace = netnstest.TraceCalls(t, cmd, "bind", "connect")
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", p.name, r.said(t))
		}
	})
	until(t, "the program listens", func() bool { return sockets(t, procAddress(r.listen), "", "0A") == 1 })
	return r
}

// said returns what the program logged, to its output and to the file "log".
func (r *running) said(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return r.output.String() + string(b)
}

// until waits until a condition holds.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v, not yet: %s", limit, what)
		}
	}
}

// sockets counts the sockets of the test with these beginnings of their local address, remote address and
// state, as /proc/net/tcp writes them.
func sockets(t *testing.T, local, remote, state string) (n float64) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		// sl local_address rem_address st, see Documentation/networking/proc_net_tcp.rst
		f := strings.Fields(line)
		if len(f) > 3 && strings.HasPrefix(f[1], local) && strings.HasPrefix(f[2], remote) && strings.HasPrefix(f[3], state) {
			n++
		}
	}
	return n
}

// procAddress returns an address as /proc/net/tcp writes it on a little-endian machine.
func procAddress(a netip.AddrPort) string {
	b := a.Addr().As4()
	return fmt.Sprintf("%08X:%04X", binary.LittleEndian.Uint32(b[:]), a.Port())
}

// scrape returns the metrics.
func (h *host) scrape(t *testing.T) scrape {
	t.Helper()
	status, body, err := h.scrapes.get("/metrics")
	if err != nil || status != http.StatusOK {
		t.Fatalf("/metrics: status %d: %v", status, err)
	}
	s := scrape(body)
	if s.of(t, "collect_success", netip.AddrPort{}) != 1 {
		t.Fatalf("the namespace was not read:\n%s", s)
	}
	return s
}

// A scrape is the text of the metrics of a host.
type scrape string

// of returns the value of a series of the destination, the source or the namespace, whichever the metric is about.
// A state can follow the name, after a slash. It is 0 if the series is not there: the destination holds no
// port.
func (s scrape) of(t *testing.T, name string, destination netip.AddrPort) float64 {
	t.Helper()
	name, state, _ := strings.Cut(name, "/")
	name = "ephemeral_port_" + name
	to := fmt.Sprintf(`{destination_ip="%v",destination_port="%d",`, destination.Addr(), destination.Port())
	for _, labels := range []string{
		to + `netns="self",source_ip="` + source + `"} `,
		to + `netns="self",source_ip="` + source + `",state="` + state + `"} `,
		`{netns="self",source_ip="` + source + `"} `,
		`{netns="self"} `,
	} {
		if strings.Contains(string(s), "\n"+name+labels) {
			return sample(t, string(s), name+labels)
		}
	}
	return 0
}

// A caller sends requests to a server, one after the other. It binds ports outside of the range, so its
// connections are no part of what is measured.
type caller struct {
	to   string
	port int // that it used last
	conn net.Conn
	read *bufio.Reader
}

// dial opens a new connection.
func (c *caller) dial() error {
	for {
		c.port++
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: c.port}}
		conn, err := dialer.Dial("tcp", c.to)
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err == nil {
			c.conn, c.read = conn, bufio.NewReader(conn)
		}
		return err
	}
}

// get sends a request on the open connection, if there is one, and returns status and body of the answer.
func (c *caller) get(target string) (status int, body string, err error) {
	for range 2 {
		fresh := c.conn == nil
		if fresh {
			if err := c.dial(); err != nil {
				return 0, "", err
			}
		}
		if err := c.conn.SetDeadline(time.Now().Add(limit)); err != nil {
			return 0, "", err
		}
		if status, body, err = c.try(target); err == nil || fresh {
			break
		}
	}
	return status, body, err
}

func (c *caller) try(target string) (status int, body string, err error) {
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: origin\r\n\r\n", target); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(c.read, nil)
	if err != nil {
		return 0, "", err
	}
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.Close {
		c.close()
	}
	return resp.StatusCode, string(b), err
}

// close closes the connection, if one is open.
func (c *caller) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// An originKind says when an origin closes connections.
type originKind string

const (
	keeps  originKind = "keeps"  // never: it waits until the program closes
	closes originKind = "closes" // after the answer, which ends with the connection: no program can be faster
	races  originKind = "races"  // after the answer, which has a length: a program may be faster
	holds  originKind = "holds"  // it never answers
)

// An origin is the HTTP server to which a program connects.
type origin struct {
	kind  originKind
	asked chan struct{} // of kind holds, for each request
	end   chan struct{}
}

// startOrigin runs an origin until the test ends.
func startOrigin(t *testing.T, destination netip.AddrPort, kind originKind) *origin {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(netnstest.Listen(t, destination.String(), false)), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{kind: kind, asked: make(chan struct{}, 1000), end: make(chan struct{})}
	t.Cleanup(func() {
		close(o.end)
		l.Close()
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go o.serve(conn)
		}
	}()
	return o
}

func (o *origin) serve(conn net.Conn) {
	defer conn.Close()
	requests := bufio.NewReader(conn)
	for {
		if _, err := http.ReadRequest(requests); err != nil {
			return
		}
		switch o.kind {
		case keeps:
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
		case closes:
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nOK")
			return
		case races:
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nOK")
			return
		case holds:
			o.asked <- struct{}{}
			<-o.end
			return
		}
	}
}

// config writes a configuration and returns its path. DIR, LISTEN and ORIGIN stand for what the site says.
// Every user may write the directory.
func (s site) config(t *testing.T, text string) (path string) {
	t.Helper()
	if err := os.Chmod(s.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(s.dir, "config")
	text = strings.NewReplacer("DIR", s.dir, "LISTEN", s.listen.String(), "ORIGIN", s.destination.String()).Replace(text)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// tool returns the path of a program of a Debian package. If it is not installed, the test is skipped,
// except in CI.
func tool(t *testing.T, program, debianPackage string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "" {
		t.Skipf("no %s: install the package %s", program, debianPackage)
	}
	t.Fatalf("no %s: install the package %s", program, debianPackage)
	return ""
}

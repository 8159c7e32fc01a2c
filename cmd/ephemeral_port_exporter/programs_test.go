//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// A program is a client of an origin in one configuration: what decides which ports it takes, and what it
// does when none is left.
type program struct {
	name    string
	command func(*testing.T, site) *exec.Cmd
	kind    proxyKind
	ports   portChoice
	closes  closing

	// What happens to a request when no port is left.
	tries    int    // system calls that fail
	log      string // what the program logs, with … for what differs
	messages int    // how often
}

// A proxyKind says how requests reach the origin, if not by the configuration.
type proxyKind int

const (
	_       proxyKind = iota
	forward           // a request names its origin
	tunnel            // each connection to the program is one to the origin
)

// A portChoice is who chooses the port of a connection.
type portChoice string

const (
	byConnect portChoice = "`connect()`"
	byBind    portChoice = "`bind(ip, 0)`"
	byProgram portChoice = "itself"
)

// A closing is what becomes of a connection after a request, if the origin does not close it.
type closing string

const (
	closesFirst closing = "closes it: TIME_WAIT"
	resets      closing = "resets it: no TIME_WAIT"
	reuses      closing = "keeps it for the next request"
)

// programs are the rows of the table in programs.md.
var programs = []program{
	{"HAProxy", haproxy("", ""), 0, byConnect, reuses, 4, haproxyNoPort, 8},
	{"HAProxy, `option http-server-close`", haproxy("option http-server-close", ""), 0, byConnect, resets, 4, haproxyNoPort, 8},
	{"HAProxy, `mode tcp`", haproxy("mode tcp", ""), tunnel, byConnect, closesFirst, 4, haproxyNoPort, 8},
	{"HAProxy, `mode tcp`, `source IP`", haproxy("mode tcp", "source "+source), tunnel, byConnect, closesFirst, 4, haproxyNoPort, 8},
	{"HAProxy, `mode tcp`, `source IP:range`", haproxy("mode tcp", "source "+source+":40000-40099"), tunnel,
		byProgram, closesFirst, 0, "Cannot bind to source address before connect() for backend …", 8},

	{"nginx", nginx("", ""), 0, byConnect, closesFirst, 1, nginxNoPort, 1},
	{"nginx, `proxy_bind`", nginx("", "proxy_bind "+source+";"), 0, byConnect, closesFirst, 1, nginxNoPort, 1},
	{"nginx, `proxy_http_version 1.1`, `proxy_set_header Connection \"\"`", nginx("", http11), 0, byConnect, closesFirst, 1, nginxNoPort, 1},
	{"nginx, HTTP 1.1, `keepalive`", nginx("keepalive 1;", http11), 0, byConnect, reuses, 1, nginxNoPort, 1},

	{"Squid", squid(""), forward, byConnect, reuses, 1, "TCP_MISS/503", 1},
	{"Squid, `server_persistent_connections off`", squid("server_persistent_connections off"), forward, byConnect, closesFirst, 1, "TCP_MISS/503", 1},
	{"Squid, `server_persistent_connections off`, `tcp_outgoing_address`", squid("server_persistent_connections off\ntcp_outgoing_address " + source), forward,
		byBind, closesFirst, 1, "commBind Cannot bind socket FD … to …: (98) Address already in use", 1},

	{"Apache", apache("", ""), 0, byConnect, reuses, 1, apacheNoPort, 1},
	{"Apache, `disablereuse=on`", apache("", "disablereuse=on"), 0, byConnect, closesFirst, 1, apacheNoPort, 1},
	{"Apache, `disablereuse=on`, `ProxySourceAddress`", apache("ProxySourceAddress "+source, "disablereuse=on"), 0,
		byBind, closesFirst, 2, "(98)Address already in use: AH00956: http: failed to bind socket to local address", 1},

	{"Caddy", caddy(""), 0, byConnect, reuses, 3, caddyNoPort, 1},
	{"Caddy, `keepalive off`", caddy("keepalive off"), 0, byConnect, closesFirst, 3, caddyNoPort, 1},

	{"Go", goProxy(""), 0, byConnect, reuses, 3, goNoPort, 1},
	{"Go, `DisableKeepAlives`", goProxy("DisableKeepAlives"), 0, byConnect, closesFirst, 3, goNoPort, 1},
	{"Go, `DisableKeepAlives`, `LocalAddr`", goProxy("DisableKeepAlives LocalAddr"), 0, byBind, closesFirst, 1, "bind: address already in use", 1},
}

const (
	haproxyNoPort = "Connect() failed for backend …: no free ports"
	nginxNoPort   = "connect() to … failed (99: Cannot assign requested address) while connecting to upstream"
	apacheNoPort  = "(99)Cannot assign requested address: AH00957: http: attempt to connect to … failed"
	caddyNoPort   = `"msg":"dial tcp …: connect: cannot assign requested address"`
	goNoPort      = "connect: cannot assign requested address"
	http11        = `proxy_http_version 1.1; proxy_set_header Connection "";`
)

// row returns the row of the table in programs.md.
func (p *program) row() string {
	return fmt.Sprintf("| %s | %s | %s | %d | `%s` |", p.name, p.ports, p.closes, p.tries, p.log)
}

// logged counts the messages of log.
func (p *program) logged(text string) int {
	literal := strings.Split(p.log, "…")
	for i := range literal {
		literal[i] = regexp.QuoteMeta(literal[i])
	}
	return len(regexp.MustCompile(strings.Join(literal, ".*")).FindAllString(text, -1))
}

func haproxy(defaults, server string) func(*testing.T, site) *exec.Cmd {
	return func(t *testing.T, s site) *exec.Cmd {
		return exec.Command(tool(t, "haproxy", "haproxy"), "-db", "-f", s.config(t, `
global
	log stdout format raw local0 err
	maxconn 1000
defaults
	mode http
	log global
	timeout connect 10m
	timeout client 10m
	timeout server 10m
	`+defaults+`
listen proxy
	bind LISTEN
	server origin ORIGIN `+server+"\n"))
	}
}

func nginx(upstream, location string) func(*testing.T, site) *exec.Cmd {
	return func(t *testing.T, s site) *exec.Cmd {
		return exec.Command(tool(t, "nginx", "nginx"), "-e", "stderr", "-c", s.config(t, `
user root;
daemon off;
pid DIR/pid;
error_log stderr;
worker_processes 1;
events { worker_connections 1000; }
http {
	access_log off;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	keepalive_requests 100000;
	proxy_read_timeout 10m;
	upstream origin {
		server ORIGIN;
		`+upstream+`
	}
	server {
		listen LISTEN;
		location / {
			proxy_pass http://origin;
			`+location+`
		}
	}
}
`))
	}
}

func squid(config string) func(*testing.T, site) *exec.Cmd {
	return func(t *testing.T, s site) *exec.Cmd {
		return exec.Command(tool(t, "squid", "squid"), "-N", "-f", s.config(t, `
http_port LISTEN
http_access allow all
cache deny all
max_filedescriptors 1024
cache_log /dev/stderr
access_log stdio:DIR/log
pid_filename none
coredump_dir DIR
netdb_filename none
pinger_enable off
`+config+"\n"))
	}
}

func apache(config, worker string) func(*testing.T, site) *exec.Cmd {
	return func(t *testing.T, s site) *exec.Cmd {
		const modules = "/usr/lib/apache2/modules/"
		return exec.Command(tool(t, "apache2", "apache2-bin"), "-D", "FOREGROUND", "-f", s.config(t, `
LoadModule mpm_event_module `+modules+`mod_mpm_event.so
LoadModule authz_core_module `+modules+`mod_authz_core.so
LoadModule proxy_module `+modules+`mod_proxy.so
LoadModule proxy_http_module `+modules+`mod_proxy_http.so
ServerName proxy
DefaultRuntimeDir DIR
PidFile DIR/pid
User www-data
Group www-data
ErrorLog /dev/stderr
Listen LISTEN
MaxKeepAliveRequests 0
Timeout 600
ServerLimit 1
StartServers 1
ThreadLimit 200
ThreadsPerChild 200
MaxRequestWorkers 200
ProxyPass / http://ORIGIN/ `+worker+`
`+config+"\n"))
	}
}

func caddy(transport string) func(*testing.T, site) *exec.Cmd {
	return func(t *testing.T, s site) *exec.Cmd {
		cmd := exec.Command(tool(t, "caddy", "caddy"), "run", "--adapter", "caddyfile", "--config", s.config(t, `
{
	admin off
	auto_https off
}
http://:`+strconv.Itoa(int(s.listen.Port()))+` {
	bind `+s.listen.Addr().String()+`
	reverse_proxy ORIGIN {
		transport http {
			`+transport+`
		}
	}
}
`))
		cmd.Env = append(os.Environ(), "HOME="+s.dir)
		return cmd
	}
}

// envGoProxy tells a re-executed test binary to be a proxy: where it listens, its origin, and settings.
const envGoProxy = "EPHEMERAL_PORT_EXPORTER_GO_PROXY"

func goProxy(settings string) func(*testing.T, site) *exec.Cmd {
	return func(_ *testing.T, s site) *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%v %v %s", envGoProxy, s.listen, s.destination, settings))
		return cmd
	}
}

// goProxyMain is the proxy of goProxy. It returns the exit code.
func goProxyMain(spec string) int {
	words := strings.Fields(spec)
	listen, origin, settings := words[0], words[1], words[2:]
	var dialer net.Dialer
	if slices.Contains(settings, "LocalAddr") {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	client := http.Client{Transport: &http.Transport{
		DialContext:       dialer.DialContext,
		DisableKeepAlives: slices.Contains(settings, "DisableKeepAlives"),
	}}
	err := http.ListenAndServe(listen, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A request that holds survives its client, as with the others.
		req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), http.MethodGet, "http://"+origin, nil)
		if err != nil {
			panic(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			fmt.Println(err)
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		_, _ = io.Copy(w, resp.Body)
	}))
	fmt.Println(err)
	return 1
}

// request lets the program make a request of the origin, and reports whether it could.
func (r *running) request(t *testing.T) bool {
	t.Helper()
	target := "/"
	if r.kind == forward {
		target = "http://" + r.destination.String() + "/"
	}
	if r.origin.kind == holds {
		return r.hold(t, target)
	}
	status, _, err := r.requests.get(target)
	if r.kind == tunnel && err == nil {
		r.requests.close()
	}
	if err != nil && r.kind != tunnel {
		t.Fatalf("request: %v", err)
	}
	return err == nil && status == http.StatusOK
}

// hold is request for an origin that does not answer: the connections stay open until the test ends.
func (r *running) hold(t *testing.T, target string) bool {
	t.Helper()
	c := &caller{to: r.requests.to, port: r.requests.port}
	if err := c.dial(); err != nil {
		t.Fatal(err)
	}
	r.requests.port = c.port
	r.held = append(r.held, c.conn)
	failed := make(chan struct{})
	go func() {
		_, _, _ = c.try(target)
		close(failed)
	}()
	select {
	case <-r.origin.asked:
		return true
	case <-failed:
		return false
	case <-time.After(limit):
		t.Fatalf("no answer after %v", limit)
		return false
	}
}

// failures counts the calls so far that failed because no port was left.
func (r *running) failures(t *testing.T) (connect, bind int) {
	t.Helper()
	for _, c := range r.trace.Calls(t) {
		switch {
		case c.Name == "connect" && c.Result == -int(unix.EADDRNOTAVAIL):
			connect++
		case c.Name == "bind" && c.Result == -int(unix.EADDRINUSE):
			bind++
		}
	}
	return connect, bind
}

// TestPrograms lets real programs take the ports of a small range one by one, with a scrape before each.
// The origin keeps connections open, closes them first, or does not answer.
func TestPrograms(t *testing.T) {
	netnstest.LockTraces(t)
	tests := []struct {
		kind originKind
		test func(*testing.T, *host, *running)
	}{{keeps, testKeeps}, {closes, testCloses}, {races, testRaces}, {holds, testHolds}}
	for i, p := range programs {
		for j, tt := range tests {
			t.Run(p.name+"/"+string(tt.kind), func(t *testing.T) {
				t.Parallel()
				destination := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)}), uint16(8001+j))
				h := newHost(t, poolSize)
				tt.test(t, h, h.run(t, p, destination, tt.kind))
			})
		}
	}
}

const poolSize = 100

// testCloses: ports that the origin's side closes first are free at once.
func testCloses(t *testing.T, h *host, r *running) {
	for i := range poolSize + poolSize/5 {
		if !r.request(t) {
			t.Fatalf("request %d failed", i)
		}
		if i%10 == 0 {
			s := h.scrape(t)
			if s.of(t, "destination_closes_per_second", r.destination) != 0 || s.of(t, "destination_ports/time_wait", r.destination) != 0 {
				t.Fatalf("after request %d: this host closed first:\n%s", i, s)
			}
			if got := s.of(t, "destination_utilization_ratio", r.destination) * poolSize; math.Round(got) > 2 {
				t.Fatalf("after request %d: %v ports are in use", i, got)
			}
		}
	}
	checkFailures(t, h, r, 0)
	checkCloses(t, h, r, 0)
}

// checkCloses compares what the exporter counted with the connections that the program has closed first.
func checkCloses(t *testing.T, h *host, r *running, want float64) {
	t.Helper()
	if got := closesTo(t, string(h.scrape(t)), r.destination.String()); got != want {
		t.Errorf("counted %v closes, want %v", got, want)
	}
}

// testRaces: the exporter shows how many the program closed first.
func testRaces(t *testing.T, h *host, r *running) {
	begin := time.Now()
	for i := range poolSize / 2 {
		if !r.request(t) {
			t.Fatalf("request %d failed", i)
		}
	}
	to := procAddress(r.destination)
	until(t, "all connections are closed", func() bool {
		return sockets(t, "", to, "") == sockets(t, "", to, "06") && sockets(t, to, "", "") == sockets(t, to, "", "06")+1
	})
	s, here, there := h.scrape(t), sockets(t, "", to, "06"), sockets(t, to, "", "06")
	// Connections can be reset at their end, when packets overtake each other on two CPUs.
	if got := s.of(t, "destination_ports/time_wait", r.destination); got != here || r.closes == resets && here != 0 || here+there > 2*poolSize {
		t.Errorf("%v ports in TIME_WAIT, want %v; on the other side %v:\n%s", got, here, there, s)
	}
	// The rate is that of the last 10 s.
	if got := math.Round(10 * s.of(t, "destination_closes_per_second", r.destination)); got != here && (got > here || time.Since(begin) < 9*time.Second) {
		t.Errorf("%v closes, want %v", got, here)
	}
	// Some that it closed first can be reset.
	if got := closesTo(t, string(s), r.destination.String()); got < here || got > poolSize/2 || r.closes == resets && got != 0 {
		t.Errorf("counted %v closes, %v are in TIME_WAIT", got, here)
	}
	checkFailures(t, h, r, 0)
}

// testKeeps: the program closes first, if it does.
func testKeeps(t *testing.T, h *host, r *running) {
	switch r.closes {
	case closesFirst:
		if r.ports == byProgram {
			testTakesOver(t, h, r)
			return
		}
		testExhausts(t, h, r, 0, false, "time_wait")
	default:
		for i := range poolSize + poolSize/5 {
			if !r.request(t) {
				t.Fatalf("request %d failed", i)
			}
			if i%10 != 0 {
				continue
			}
			s := h.scrape(t)
			if s.of(t, "destination_closes_per_second", r.destination) != 0 || s.of(t, "destination_ports/time_wait", r.destination) != 0 {
				t.Fatalf("after request %d: this host leaves TIME_WAIT:\n%s", i, s)
			}
			got := s.of(t, "destination_utilization_ratio", r.destination) * poolSize
			if r.closes == reuses && s.of(t, "destination_ports/established", r.destination) != 1 || math.Round(got) > 2 {
				t.Fatalf("after request %d: %v ports are in use", i, got)
			}
		}
		checkFailures(t, h, r, 0)
		checkCloses(t, h, r, 0)
	}
}

// testHolds: the pool is full of connections that are open.
func testHolds(t *testing.T, h *host, r *running) { testExhausts(t, h, r, 0, false, "established") }

// testTakesOver: HAProxy goes on at utilization 1, because bind() to a port of its choice and connect() take over
// TIME_WAIT.
func testTakesOver(t *testing.T, h *host, r *running) {
	for i := range 2 * poolSize {
		if !r.request(t) {
			t.Fatalf("request %d failed", i)
		}
	}
	checkFailures(t, h, r, 0)
	until(t, "all connections are closed", func() bool { return sockets(t, "", procAddress(r.destination), "06") == poolSize })
	checkCloses(t, h, r, 2*poolSize)
}

// testExhausts makes requests until 5 failed. Other programs bound some ports before, of bind() or, starvedByList, of a list of their own:
// half of these may be bound, for all that shows. Utilization is 1 before the
// first request that fails, and never before.
func testExhausts(t *testing.T, h *host, r *running, bound int, starvedByList bool, state string) {
	const wantFailed = 5
	for i := range poolSize - bound + wantFailed {
		// What is learned of a client that binds depends on how often it is looked at.
		if r.ports == byConnect && i%4 != 0 && i < poolSize-bound-4 {
			if !r.request(t) {
				t.Fatalf("request %d failed", i)
			}
			continue
		}
		s := h.scrape(t)
		used := math.Round(s.of(t, "destination_utilization_ratio", r.destination) * poolSize)
		possible := math.Round(s.of(t, "max_possible_utilization_ratio", netip.AddrPort{}) * poolSize)
		sourceUsed := math.Round(s.of(t, "source_utilization_ratio", r.destination) * poolSize)
		ok := r.request(t)
		if ok != (i < poolSize-bound) || ok && used == poolSize || !ok && (used < poolSize-1 && !starvedByList || possible < poolSize-1) {
			t.Fatalf("request %d: granted %v, and utilization before it was %v/%d, possibly %v:\n%s", i, ok, used, poolSize, possible, s)
		}
		if i > 0 && used != sourceUsed && (!starvedByList || used > sourceUsed || possible < sourceUsed) {
			t.Errorf("request %d: %v ports are not free for the destination, possibly %v, %v on the source", i, used, possible, sourceUsed)
		}
		wantBound := bound
		if r.ports != byConnect {
			wantBound += min(i, poolSize)
		}
		// Without --exact, it takes some connections to see that a program binds, and more of one that
		// chooses the ports by itself.
		if got, more := s.of(t, "bound_ports", netip.AddrPort{}), s.of(t, "bound_unknown_ports", netip.AddrPort{}); starvedByList || r.ports == byProgram {
			if i > 50 && (got > float64(wantBound) || got+more < float64(wantBound-1)) { // the first one looks like those of connect()
				t.Errorf("request %d: %v bound ports, and %v that may be, want %d", i, got, more, wantBound)
			}
		} else if got != float64(wantBound) && (r.ports == byConnect || i > 10) {
			t.Errorf("request %d: %v bound ports, want %d", i, got, wantBound)
		}
	}
	checkFailures(t, h, r, wantFailed)
	until(t, "all ports are in state "+state, func() bool {
		return h.scrape(t).of(t, "destination_ports/"+state, r.destination) == float64(poolSize-bound)
	})
	want := 0. // as many as are in TIME_WAIT
	if state == "time_wait" {
		want = float64(poolSize - bound)
	}
	checkCloses(t, h, r, want)
}

// checkFailures compares the calls that failed with the program's log and the exporter.
func checkFailures(t *testing.T, h *host, r *running, requests int) {
	t.Helper()
	connect, bind := r.failures(t)
	if got, want := connect+bind, r.tries*requests; got != want {
		t.Errorf("%d connect() and %d bind() failed for %d requests, want %d: %v", connect, bind, requests, want, r.trace.Calls(t))
	}
	if got := failuresTo(t, string(h.scrape(t)), r.destination.String()); got != float64(connect) {
		t.Errorf("counted %v failures, really %d", got, connect)
	}
	until(t, "the program logged each of them", func() bool {
		return r.logged(r.said(t)) == r.messages*requests
	})
}

//go:build linux

package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/netns/netnstest"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/web"
)

// TestStatusOnce checks --status: the text is all that it prints, and the exit status tells whether
// the collection failed.
func TestStatusOnce(t *testing.T) {
	tests := []struct {
		args           []string
		exit           int
		stdout, stderr string
	}{
		{nil, 0, "Settings of this host\n", ""},
		{[]string{"--path.procfs=/nonexistent"}, 78, "The ports of this host could not be read: nothing is known about them.", "--path.procfs=/nonexistent must be a mounted proc file system"},
		{[]string{"--collect.timeout=1ns"}, 1, "could not be read", "i/o timeout"},
		{[]string{"--namespaces=named", "--namespaces.dir=/nonexistent"}, 0, "1 place could not be searched for network namespaces", ""}, // not in the log
		{[]string{"--trace"}, 78, "", "--trace: has no effect with --status"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			cmd := command(t, append(tt.args, "--status")...)
			if !strings.HasPrefix(strings.Join(tt.args, ""), "--namespaces") {
				unprivileged(t, cmd)
			}
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != tt.exit {
				t.Errorf("exit status %d, want %d", got, tt.exit)
			}
			if !strings.Contains(strings.ReplaceAll(stdout.String(), "\n", " "), strings.TrimSpace(tt.stdout)) || !strings.Contains(stderr.String(), tt.stderr) || tt.exit == 0 && stderr.Len() > 0 {
				t.Errorf("stdout:\n%s\nstderr:\n%s", stdout.String(), stderr.String())
			}
		})
	}
}

// TestFailOn checks the exit status of a check, and that the JSON has the same level.
func TestFailOn(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	hold := func(port uint16, n int) {
		netnstest.Client{Destination: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), port)}.Hold(t, n)
	}
	run := func(args ...string) (stdout string, code int) {
		t.Helper()
		cmd := command(t, append(args, "--status")...)
		out, err := cmd.Output()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	check := func(level string, warning, critical int, args ...string) {
		t.Helper()
		for failOn, want := range map[string]int{"--fail-on=warning": warning, "--fail-on=critical": critical} {
			if out, code := run(append(args, failOn)...); code != want {
				t.Errorf("%s %q: exit status %d, want %d:\n%s", failOn, args, code, want, out)
			}
		}
		out, _ := run(append(args, "--format=json")...)
		var d struct{ Level string }
		if err := json.Unmarshal([]byte(out), &d); err != nil || d.Level != level {
			t.Errorf("%q: %v, level %q, want %q", args, err, d.Level, level)
		}
	}
	hold(81, 12)
	check("calm", 0, 0)
	hold(80, 60)
	check("warning", 1, 0)
	check("warning", 1, 0, "--destination=198.51.100.7")
	check("calm", 0, 0, "--destination=198.51.100.7:81")
	check("unknown", 3, 3, "--namespaces=named", "--namespaces.dir=/nonexistent") // some may be worse
	hold(80, 40)
	check("exhausted", 2, 2)
	check("exhausted", 2, 2, "--destination=198.51.100.7:80")
	check("exhausted", 2, 2, "--namespaces=named", "--namespaces.dir=/nonexistent")
	if netnstest.IsHostRoot() { // without --exact, it is not known whether others lack the ports too
		check("calm", 0, 0, "--exact", "--destination=198.51.100.7:81")
		check("calm", 0, 0, "--exact", "--destination=198.51.100.9:80")
		if out, _ := run("--exact", "--destination=198.51.100.9:80"); !strings.Contains(out, "198.51.100.9:80 is not among the destinations here: it holds few ports now, or none.") {
			t.Errorf("a destination that holds no port:\n%s", out)
		}
	}
	check("unknown", 3, 3, "--path.procfs=/nonexistent")
	check("unknown", 3, 3, "--path.procfs=/nonexistent", "--destination=198.51.100.9:80")
	for _, wrong := range []string{"--destination=x", "--no-such-flag", "--fail-on=error", "--watch=2s"} {
		if _, code := run("--fail-on=warning", wrong); code != 3 {
			t.Errorf("%s: exit status %d, want 3", wrong, code)
		}
	}
	denyNetlink(t, unix.EPERM)
	check("unknown", 3, 3)
}

// TestExitCode checks that what is known to be critical is not hidden by what failed.
func TestExitCode(t *testing.T) {
	failed := errors.New("failed")
	for _, tt := range []struct {
		failOn string
		level  advice.Level
		err    error
		want   int
	}{
		{"", advice.Exhausted, nil, 0}, {"", advice.Unknown, failed, 1}, {"", advice.Unknown, fmt.Errorf("start: %w", &scan.PermanentError{Err: failed}), 78},
		{"critical", advice.Calm, &scan.PermanentError{Err: failed}, 3},
		{"warning", advice.Calm, nil, 0}, {"warning", advice.Warning, nil, 1}, {"warning", advice.Unknown, nil, 3}, {"warning", advice.Critical, nil, 2}, {"warning", advice.Exhausted, nil, 2},
		{"critical", advice.Calm, nil, 0}, {"critical", advice.Warning, nil, 0}, {"critical", advice.Unknown, nil, 3}, {"critical", advice.Critical, nil, 2}, {"critical", advice.Exhausted, nil, 2},
		{"critical", advice.Calm, failed, 3}, {"critical", advice.Warning, failed, 3}, {"warning", advice.Warning, failed, 3}, {"warning", advice.Exhausted, failed, 2},
	} {
		if got := exitCode(tt.failOn, tt.level, tt.err); got != tt.want {
			t.Errorf("--fail-on=%s, %v, %v: %d, want %d", tt.failOn, tt.level, tt.err, got, tt.want)
		}
	}
}

// TestStatusUnsure has clients that bind all ports. One collection cannot tell that of them.
func TestStatusUnsure(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	for i := range 10 {
		netnstest.Client{
			Bind: netnstest.BindFirst, Source: netip.MustParseAddrPort("198.51.100.1:0"), Destination: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), uint16(80+i)),
		}.Hold(t, 10)
	}
	for arg, want := range map[string]string{
		"--log.level=error": "has 10% or 100% of its ports in use: which clients bind before they connect is not known yet; --exact tells now",
		"--exact":           "is out of ports",
	} {
		if arg == "--exact" && !netnstest.IsHostRoot() {
			continue
		}
		out, err := command(t, "--status", arg).Output()
		if got := strings.Join(strings.Fields(string(out)), " "); err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: %v, got %s, want %q", arg, err, got, want)
		}
	}
}

// TestStatusTwice has a client that binds new ports all the time: two collections tell of these.
func TestStatusTwice(t *testing.T) {
	netnstest.New(t)
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40099")
	plain := netnstest.Client{Destination: netip.MustParseAddrPort("198.51.100.9:443")}
	plain.Hold(t, 12)
	client := netnstest.Client{
		Bind: netnstest.BindFirst, Source: netip.MustParseAddrPort("198.51.100.1:0"), Destination: netip.MustParseAddrPort("198.51.100.7:80"),
	}
	connect := func() (fd int) {
		t.Helper()
		fd, err := client.Connect()
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	var open []int
	for range 20 {
		open = append(open, connect())
	}
	cmd := command(t, "--status")
	var stdout strings.Builder
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if got := stdout.String(); err != nil || !regexp.MustCompile(`bound ports +[1-9]\d* +of them lost to connect\(\), because bind\(\) took them`).MatchString(got) {
				t.Errorf("%v, got:\n%s", err, got)
			}
			return
		case <-time.After(5 * time.Millisecond):
			netnstest.CloseRepaired(open[0])
			open = append(open[1:], connect())
		}
	}
}

// TestPageURL checks the URLs of the page that the log names.
func TestPageURL(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		network, address string
		tls              bool
		want             string // with PORT
	}{
		{"unix", filepath.Join(t.TempDir(), "socket"), false, ""},
		{"tcp", "127.0.0.1:0", false, "http://127.0.0.1:PORT/"},
		{"tcp", "[::1]:0", false, "http://[::1]:PORT/"},
		{"tcp", "[::1]:0", true, "https://[::1]:PORT/"},
		{"tcp", ":0", false, "http://" + host + ":PORT/"},
		{"tcp4", "0.0.0.0:0", true, "https://" + host + ":PORT/"},
	} {
		listener, err := net.Listen(tt.network, tt.address)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		listener = web.Listener{Listener: listener}
		if tt.tls {
			listener = tls.NewListener(listener, nil)
		}
		if got, want := pageURL(listener), strings.ReplaceAll(tt.want, "PORT", port); got != want {
			t.Errorf("%s %s: %q, want %q", tt.network, tt.address, got, want)
		}
	}
}

// TestStatusPage checks the page of the real program for a real pool that is full: the text and the JSON
// name it, and the command that they show lists its ports.
func TestStatusPage(t *testing.T) {
	// Ports that no other test has had: they stay bound as long as its connections last.
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "20300 20399")
	t.Cleanup(func() { netnstest.Sysctl(t, "ipv4/ip_local_port_range", "32768 60999") })
	client := netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:443")}
	client.Hold(t, 100)
	e := start(t, command(t, "--web.listen-address=127.0.0.1:10159"), "http://127.0.0.1:10159")
	_, text := e.get(t, "/")
	if !strings.Contains(text, "1 destination in danger: 192.0.2.1:443 is out of ports") {
		t.Errorf("text:\n%s", text)
	}
	_, line, ok := strings.Cut(strings.ReplaceAll(text, " \\\n", " "), "\n  ss -Htan ")
	line, _, _ = strings.Cut(line, "\n")
	if out, err := exec.Command("sh", "-c", "ss -Htan "+line).CombinedOutput(); !ok || err != nil || strings.TrimSpace(string(out)) != "100 ESTAB" {
		t.Errorf("ss -Htan %s: %v: %s", line, err, out)
	}
	var d struct{ Destinations []struct{ Level string } }
	if _, body := e.get(t, "/?format=json&destination=192.0.2.1:443"); json.Unmarshal([]byte(body), &d) != nil || len(d.Destinations) != 1 || d.Destinations[0].Level != "exhausted" {
		t.Errorf("JSON:\n%s", body)
	}
	// Each link of the page leads somewhere.
	_, _, page := get(t, e.url+"/", "Accept", "text/html")
	links := 0
	for link := range strings.SplitSeq(page, `href="`) {
		link, _, _ = strings.Cut(link, `"`)
		if !strings.HasPrefix(link, "/") {
			continue
		}
		links++
		if status, _ := e.get(t, strings.ReplaceAll(link, "&amp;", "&")); status != http.StatusOK {
			t.Errorf("%s: status %d", link, status)
		}
	}
	if links < 8 {
		t.Errorf("%d links in\n%s", links, page)
	}
}

// TestStatusSmall has destinations that hold 3 ports each, far too few for series: the 20 in most danger are listed all the same, and all
// count as unreported.
func TestStatusSmall(t *testing.T) {
	const destinations = 25
	for i := range destinations {
		client := netnstest.Client{Destination: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:443", 100+i))}
		client.Hold(t, 3)
	}
	e := start(t, command(t, "--web.listen-address=127.0.0.1:10159"), "http://127.0.0.1:10159")
	_, metrics := e.get(t, "/metrics")
	if n := sample(t, metrics, `ephemeral_port_unreported_destinations{netns="self"} `); n < destinations || strings.Contains(metrics, "ephemeral_port_destination_") {
		t.Errorf("%v destinations are unreported:\n%s", n, metrics)
	}
	_, page := e.get(t, "/?format=json")
	var d struct {
		Destinations []struct {
			IP    string `json:"destination_ip"`
			Ports map[string]int
		}
	}
	if err := json.Unmarshal([]byte(page), &d); err != nil {
		t.Fatal(err)
	}
	ours := 0
	for _, to := range d.Destinations {
		if strings.HasPrefix(to.IP, "192.0.2.1") && to.Ports["established"] == 3 {
			ours++
		}
	}
	if all := len(d.Destinations); all < 20 || ours < 15 || ours > 20 { // other tests leave some, too
		t.Errorf("%d destinations, %d with 3 ports, want about 20", all, ours)
	}
	for _, text := range []string{
		"No destination is in danger: the worst, ", "\n192.0.2.110:443 ", " of them are not listed. See --destination.min-ports",
	} {
		if _, page := e.get(t, "/"); !strings.Contains(page, text) {
			t.Errorf("no %q in\n%s", text, page)
		}
	}
	if out, err := command(t, "--status").Output(); err != nil || !strings.Contains(string(out), "\n192.0.2.110:443 ") {
		t.Errorf("--status: %v:\n%s", err, out)
	}
}

// TestAllPortsBound has clients bind all ports of the host: a client that has a connection to the exporter goes on, one that needs a new one
// gets no port. What the runbook names then works: --status --exact, and curl with a port outside of the range.
func TestAllPortsBound(t *testing.T) {
	netnstest.HostRoot(t)
	e := start(t, command(t, "--web.listen-address=127.0.0.1:10159"), "http://127.0.0.1:10159")
	scrape := func(c *http.Client) error {
		resp, err := c.Get(e.url + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	prometheus := &http.Client{Transport: &http.Transport{}}
	if err := scrape(prometheus); err != nil {
		t.Fatal(err)
	}
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "22000 22039") // as in TestStatusPage
	t.Cleanup(func() { netnstest.Sysctl(t, "ipv4/ip_local_port_range", "32768 60999") })
	for i := range 40 {
		netnstest.Client{
			Bind: netnstest.BindFirst, Source: netip.MustParseAddrPort("198.51.100.1:0"), Destination: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1000+i)),
		}.Hold(t, 1)
	}
	for range 3 {
		if err := scrape(prometheus); err != nil {
			t.Errorf("over the connection that is there: %v", err)
		}
	}
	if err := scrape(&http.Client{Transport: &http.Transport{}}); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("over a new connection: %v, want EADDRNOTAVAIL", err)
	}
	const headline = "Every plain connect() of this namespace fails: 40 of 40 ports are bound."
	if out, err := command(t, "--status", "--exact").Output(); err != nil || !strings.Contains(string(out), headline) {
		t.Errorf("--status --exact: %v:\n%s", err, out)
	}
	if out, err := exec.Command("curl", "-sS", "--local-port", "20000-20999", "127.0.0.1:10159/").CombinedOutput(); err != nil || !strings.Contains(string(out), "Settings of this host") {
		t.Errorf("curl: %v:\n%s", err, out)
	}
}

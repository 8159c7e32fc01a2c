//go:build linux

package main

import (
	"errors"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// A pausedProc is a procfs in which each collection waits, after it has read the other settings and
// before it asks for sockets, until the test lets it go on.
type pausedProc struct {
	dir  string
	fifo string
}

func newPausedProc(t *testing.T) pausedProc {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"sys/net/ipv4/ip_local_port_range":        "32768\t60999\n",
		"sys/net/ipv4/ip_local_reserved_ports":    "\n",
		"sys/net/ipv4/ip_unprivileged_port_start": "1024\n",
		"sys/net/ipv4/tcp_tw_reuse":               "2\n",
		"sys/net/ipv4/tcp_tw_reuse_delay":         "1000\n",
		"sys/net/ipv4/tcp_timestamps":             "1\n",
		"sys/net/ipv4/tcp_max_tw_buckets":         "131072\n",
		"thread-self/net/sockstat":                "TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 0\nUDP: inuse 0 mem 0\n",
		"thread-self/net/netstat":                 "TcpExt: TCPTimeWaitOverflow\nTcpExt: 0\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := pausedProc{dir, filepath.Join(dir, "sys/net/ipv4/tcp_fin_timeout")}
	if err := unix.Mkfifo(p.fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// pause waits until a collection has begun. It goes on when goOn is called.
func (p pausedProc) pause(t *testing.T) (goOn func()) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		fd, err := unix.Open(p.fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENXIO) {
			continue // nobody reads
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			if _, err := unix.Write(fd, []byte("60\n")); err != nil {
				t.Error(err)
			}
			unix.Close(fd)
		}
	}
	t.Fatal("no collection")
	return nil
}

// startPaused starts an exporter whose collections wait, except for the first.
func startPaused(t *testing.T, address string, args ...string) (*exporter, pausedProc) {
	t.Helper()
	proc := newPausedProc(t)
	first := make(chan struct{})
	go func() {
		defer close(first)
		proc.pause(t)()
	}()
	e := start(t, command(t, append(args, "--path.procfs="+proc.dir, "--web.listen-address="+address)...), "http://"+address)
	<-first
	return e, proc
}

// A scrapeResult is the answer to a scrape, or an error.
type scrapeResult struct {
	status int
	body   string
	err    error
}

// scrapeLater makes a scrape in the background, on a connection of its own.
func scrapeLater(url string) <-chan scrapeResult {
	result := make(chan scrapeResult, 1)
	go func() {
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get(url + "/metrics")
		if err != nil {
			result <- scrapeResult{err: err}
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		result <- scrapeResult{resp.StatusCode, string(body), err}
	}()
	return result
}

const (
	selfSucceeded = `ephemeral_port_collect_success{netns="self"} 1`
	selfFailed    = `ephemeral_port_collect_success{netns="self"} 0`
)

// checkNoNumbers checks that a collection of TCP that failed has no measured values. UDP and connection
// tracking have values of their own.
func checkNoNumbers(t *testing.T, metrics string) {
	t.Helper()
	for line := range strings.Lines(metrics) {
		name, ok := strings.CutPrefix(line, "ephemeral_port_")
		if !ok || strings.HasPrefix(name, "udp_") || strings.HasPrefix(name, "conntrack_") || strings.HasPrefix(name, "exporter_build_info{") {
			continue
		}
		if !strings.HasPrefix(line, selfFailed) {
			t.Errorf("a collection that failed has %s", line)
		}
	}
}

// TestTerminateMidScrape sends SIGTERM in the middle of a scrape. It is answered if that does not take
// too long. The exporter ends in any case, with exit status 0.
func TestTerminateMidScrape(t *testing.T) {
	for i, answered := range []bool{true, false} {
		t.Run("answered "+strconv.FormatBool(answered), func(t *testing.T) {
			e, proc := startPaused(t, "127.0.0.1:"+strconv.Itoa(10280+i))
			scrape := scrapeLater(e.url)
			goOn := proc.pause(t)
			if err := e.cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			for !strings.Contains(e.log.String(), "Stopping on a signal") {
				time.Sleep(time.Millisecond)
			}
			if answered {
				goOn()
				if got := <-scrape; got.err != nil || got.status != http.StatusOK || !strings.Contains(got.body, selfSucceeded) {
					t.Errorf("status %d, %v:\n%s", got.status, got.err, got.body)
				}
			}
			if err := e.wait(); err != nil {
				t.Errorf("ended with %v, want exit status 0:\n%s", err, e.log)
			}
			if !answered {
				if got := <-scrape; got.err == nil {
					t.Errorf("status %d of a scrape that was not answered:\n%s", got.status, got.body)
				}
			}
			if got := strings.Contains(e.log.String(), "Stopped before all scrapes were answered"); got == answered {
				t.Errorf("log:\n%s", e.log)
			}
		})
	}
}

// TestStopMidCollection stops the process in the middle of a collection, for longer than
// --collect.timeout. That collection fails. The next one is not affected.
func TestStopMidCollection(t *testing.T) {
	e, proc := startPaused(t, "127.0.0.1:10282", "--collect.timeout=1s")
	scrape := scrapeLater(e.url)
	goOn := proc.pause(t)
	if err := e.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond)
	if err := e.cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	goOn()
	got := <-scrape
	if got.err != nil || got.status != http.StatusOK || !strings.Contains(got.body, selfFailed) {
		t.Errorf("status %d, %v:\n%s", got.status, got.err, got.body)
	}
	checkNoNumbers(t, got.body)

	for deadline := time.Now().Add(time.Minute); ; { // a busy machine can miss the timeout again
		scrape = scrapeLater(e.url)
		proc.pause(t)()
		if got = <-scrape; strings.Contains(got.body, selfSucceeded) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("status %d, %v:\n%s", got.status, got.err, got.body)
		}
	}
}

// TestSignalsWhileScraping stops and continues the process, and interrupts the system calls of its
// threads, at any moments of scrapes. Each scrape has all sockets or no numbers.
func TestSignalsWhileScraping(t *testing.T) {
	const sockets, port = 8000, "7140"
	netnstest.HoldInChild(t, netnstest.Holding{Client: netnstest.Client{Destination: netip.MustParseAddrPort("192.0.2.1:" + port)}, Count: sockets})
	established := `ephemeral_port_destination_ports{destination_ip="192.0.2.1",destination_port="` + port + `",netns="self",source_ip="198.51.100.1",state="established"} `

	tests := []struct {
		name    string
		disturb func(pid, n int) error
	}{
		{"stop", func(pid, n int) error {
			if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
				return err
			}
			time.Sleep([]time.Duration{0, 10 * time.Millisecond, 400 * time.Millisecond}[n%3]) // also beyond the timeout
			err := unix.Kill(pid, unix.SIGCONT)
			time.Sleep(time.Duration(n%20) * time.Millisecond)
			return err
		}},
		{"interrupt", func(pid, _ int) error {
			tasks, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
			if err != nil {
				return err
			}
			for _, task := range tasks {
				thread, err := strconv.Atoi(task.Name())
				if err != nil {
					return err
				}
				// Go's runtime uses SIGURG itself and does nothing with one too many.
				if err := unix.Tgkill(pid, thread, unix.SIGURG); err != nil && !errors.Is(err, unix.ESRCH) {
					return err
				}
			}
			time.Sleep(50 * time.Microsecond)
			return nil
		}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			address := "127.0.0.1:" + strconv.Itoa(10283+i)
			e := start(t, command(t, "--collect.timeout=300ms", "--web.listen-address="+address), "http://"+address)
			end := make(chan struct{})
			disturbed := make(chan error, 1)
			go func() {
				for n := 0; ; n++ {
					select {
					case <-end:
						disturbed <- nil
						return
					default:
					}
					if err := tt.disturb(e.cmd.Process.Pid, n); err != nil {
						disturbed <- err
						return
					}
				}
			}()
			complete := 0
			for scrape := 0; scrape < 30 || complete == 0; scrape++ {
				status, metrics := e.get(t, "/metrics")
				switch {
				case status != http.StatusOK:
					t.Fatalf("status %d:\n%s", status, metrics)
				case strings.Contains(metrics, selfFailed):
					checkNoNumbers(t, metrics)
				default:
					complete++
					if got := sample(t, metrics, established); got != sockets {
						t.Errorf("%v sockets, want %d", got, sockets)
					}
				}
			}
			close(end)
			if err := <-disturbed; err != nil {
				t.Error(err)
			}
			if _, metrics := e.get(t, "/metrics"); tt.name == "interrupt" && !strings.Contains(metrics, selfSucceeded) {
				t.Errorf("after the signals:\n%s", metrics)
			}
			if err := e.stop(t); err != nil {
				t.Errorf("SIGTERM: %v", err)
			}
		})
	}
}

//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// brokenProc returns a procfs for a flag. Collections fail once it is broken.
func brokenProc(t *testing.T) (flag string, breakIt func()) {
	t.Helper()
	proc := newPausedProc(t)
	if err := os.Remove(proc.fifo); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(proc.fifo, []byte("60\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return "--path.procfs=" + proc.dir, func() {
		if err := os.Remove(filepath.Join(proc.dir, "sys/net/ipv4/ip_local_port_range")); err != nil {
			t.Error(err)
		}
	}
}

// tlsConfig returns a --web.config.file that asks for TLS.
func tlsConfig(t *testing.T) (flag string) {
	t.Helper()
	dir := t.TempDir()
	certificate(t, dir)
	config := filepath.Join(dir, "web.yml")
	if err := os.WriteFile(config, []byte("tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return "--web.config.file=" + config
}

// TestLogFlood lets a client cause as many lines as it can. The log has the first ones, and how many it leaves
// out.
func TestLogFlood(t *testing.T) {
	const n, most = 300, 20
	proc, breakProc := brokenProc(t)
	tests := []struct {
		name    string
		flag    string
		message string // that each request causes, if any
		request func(t *testing.T, address string)
	}{
		{"no time to collect", "--log.level=info", "", func(t *testing.T, address string) {
			if status, _, body := get(t, "http://"+address+"/metrics", "X-Prometheus-Scrape-Timeout-Seconds", "1e-300"); status != http.StatusServiceUnavailable ||
				!strings.Contains(body, "raise scrape_timeout") {
				t.Errorf("status %d: %.200s", status, body)
			}
		}},
		{"collection fails", proc, "Collection failed", func(t *testing.T, address string) {
			if _, _, body := get(t, "http://"+address+"/metrics"); !strings.Contains(body, selfFailed) {
				t.Errorf("no failure:\n%s", body)
			}
		}},
		{"no TLS", tlsConfig(t), "HTTP connection failed", func(t *testing.T, address string) {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			_, _ = io.ReadAll(conn)
		}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			address := "127.0.0.1:" + strconv.Itoa(10230+i)
			e := start(t, command(t, tt.flag, "--web.listen-address="+address), "http://"+address)
			before := e.log.String()
			if tt.flag == proc {
				breakProc()
			}
			for range n {
				tt.request(t, address)
			}
			if err := e.stop(t); err != nil {
				t.Errorf("SIGTERM: %v", err)
			}
			log := strings.TrimPrefix(e.log.String(), before)
			if lines := strings.Count(log, "\n"); lines > most {
				t.Errorf("%d lines, want %d at most:\n%.2000s", lines, most, log)
			}
			if tt.message == "" {
				return
			}
			logged, leftOut := strings.Count(log, `msg="`+tt.message+`"`), 0
			for _, m := range regexp.MustCompile(`msg="Lines are left out of the log" of="`+tt.message+`".* lines=(\d+)`).FindAllStringSubmatch(log, -1) {
				lines, err := strconv.Atoi(m[1])
				if err != nil {
					t.Fatal(err)
				}
				leftOut += lines
			}
			if tt.flag == proc && !regexp.MustCompile(`msg="Collection failed" netns=self after=\d+m?s err=`).MatchString(log) {
				t.Errorf("the log does not say how long a collection has tried:\n%.2000s", log)
			}
			if logged == 0 || logged+leftOut != n {
				t.Errorf("%d lines and %d left out, want %d in all:\n%.2000s", logged, leftOut, n, log)
			}
		})
	}
}

// startLogging runs the binary with a file as its log, and waits until it listens.
func startLogging(t *testing.T, cmd *exec.Cmd, address string, log *os.File) *exporter {
	t.Helper()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e := &exporter{cmd: cmd, url: "http://" + address, wait: sync.OnceValue(cmd.Wait)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = e.wait()
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return e
		}
		if time.Now().After(deadline) {
			t.Fatal("the exporter does not listen")
		}
	}
}

// TestLogUnread has a log that nobody reads, a full pipe, from the start on. The exporter starts, answers
// scrapes that have something to log, and ends at SIGTERM.
func TestLogUnread(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	full, err := unix.FcntlInt(writer.Fd(), unix.F_SETPIPE_SZ, 4096) // Fd makes it block
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Write(bytes.Repeat([]byte("x"), full-1)); err != nil {
		t.Fatal(err)
	}
	proc, breakProc := brokenProc(t)
	const address = "127.0.0.1:10233"
	e := startLogging(t, command(t, proc, "--web.listen-address="+address), address, writer)
	breakProc()
	statuses := scrapeAtOnce(t, e.url+"/metrics", 20, selfFailed)
	checkStatuses(t, statuses, 20, http.StatusOK)
	ended := make(chan error, 1)
	go func() { ended <- e.stop(t) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("SIGTERM: %v, want exit status 0", err)
		}
	case <-time.After(patience):
		t.Fatal("SIGTERM does not end it")
	}
}

// TestLogDiskFull has a log on a file system that is full for a while. Scrapes are answered. At the end, the log says
// how many lines are missing.
func TestLogDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path, fill := filepath.Join(dir, "log"), filepath.Join(dir, "fill")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	proc, breakProc := brokenProc(t)
	const address, n = "127.0.0.1:10234", 30
	e := startLogging(t, command(t, proc, "--log.level=error", "--web.listen-address="+address), address, log)
	if err := os.WriteFile(fill, make([]byte, 1<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	breakProc()
	for range n {
		checkStatuses(t, scrapeAtOnce(t, e.url+"/metrics", 1, selfFailed), 1, http.StatusOK)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if err := e.stop(t); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	got := readDocument(t, path)
	if m := regexp.MustCompile(`(?m)^time=.* level=ERROR .* msg="Lines are left out of the log" of="Collection failed" lines=(\d+) netns=self$`).FindStringSubmatch(got); m == nil || m[1] != strconv.Itoa(n) {
		t.Errorf("want %d lines that are left out:\n%s", n, got)
	}
}

// TestSecrets sends passwords where clients put them, and has one in --web.config.file. They are neither in the log nor in an answer.
func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "web.yml")
	const hash = "$2a$04$JxYPWr0djqEs5o6UGuZP3OggPDos30.vkpvW2mbiMc3wreLmtsWmK" // bcrypt of "secret"
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("basic_auth_users:\n  prometheus: " + hash + "\n")
	const address = "127.0.0.1:10239"
	e := start(t, command(t, "--log.level=debug", "--web.listen-address="+address, "--web.config.file="+config), "http://"+address)
	var answers strings.Builder
	ask := func(url string, headers ...string) {
		t.Helper()
		_, header, body := get(t, url, headers...)
		fmt.Fprint(&answers, header, body)
	}
	for _, user := range []string{"", "prometheus:hunter2@", "hunter2:secret@", "prometheus:secret@"} {
		for _, page := range []string{"/", "/metrics", "/docs/", "/hunter2", "/?format=html&token=hunter2", "/?format=json&hunter2", "/-/ready"} {
			ask("http://"+user+address+page, "Cookie", "hunter2", "X-Prometheus-Scrape-Timeout-Seconds", "hunter2")
		}
	}
	write("basic_auth_users:\n  prometheus: " + hash + "\n  - hunter2\n")
	ask("http://prometheus:secret@" + address + "/metrics")
	if err := e.stop(t); err != nil {
		t.Error(err)
	}
	for where, text := range map[string]string{"log": e.log.String(), "answers": answers.String()} {
		for _, secret := range []string{"hunter2", "secret", hash[:20]} {
			if at := strings.Index(text, secret); at >= 0 {
				t.Errorf("%s: %q in …%.200s", where, secret, text[max(at-100, 0):])
			}
		}
	}
	if !strings.Contains(e.log.String(), "Unable to parse configuration") {
		t.Errorf("the log does not say what is wrong:\n%s", e.log)
	}
}

//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// accept accepts connections until the test ends, and closes each when its client has.
func accept(t *testing.T, destination string) {
	t.Helper()
	listener := netnstest.Listen(t, destination, false)
	ended := make(chan struct{})
	t.Cleanup(func() {
		_ = unix.Shutdown(listener, unix.SHUT_RD)
		<-ended
	})
	go func() {
		defer close(ended)
		for {
			fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			go func() {
				_, _ = unix.Read(fd, make([]byte, 1))
				unix.Close(fd)
			}()
		}
	}()
}

// TestTraceCloses has a proxy that keeps its connections, and a job that closes one after the other. The proxy owns all that are open. The job
// has closed nearly all that are in TIME_WAIT.
func TestTraceCloses(t *testing.T) {
	netnstest.LockTraces(t)
	const kept, ofProxy, ofJob = 20, 3, 200
	destination := netip.MustParseAddrPort("198.51.100.7:7120")
	mount := netnstest.Cgroups(t)
	slice := fmt.Sprintf("/closes_%d.slice", os.Getpid())
	proxy, job := slice+"/proxy.service", slice+"/job.service"
	for _, path := range []string{slice, proxy, job} {
		netnstest.NewCgroup(t, mount+path)
	}
	h := newHost(t, 1000, "--path.cgroup="+mount)
	accept(t, destination.String())
	// run starts a script in a control group. It ends when its input does, at the latest.
	run := func(cgroup, script string) (cmd *exec.Cmd, wait func()) {
		t.Helper()
		attr, dir, err := netnstest.InCgroup(mount + cgroup)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd = exec.Command("bash", "-c", fmt.Sprintf("open() { exec {fd}<>/dev/tcp/%v/%d; }\n%s\nread\nexit 0", destination.Addr(), destination.Port(), script))
		cmd.SysProcAttr = attr
		stdin, err := cmd.StdinPipe()
		if err := errors.Join(err, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		return cmd, func() {
			stdin.Close()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		}
	}
	keeps, end := run(proxy, fmt.Sprintf("for i in {1..%d}; do open; exec {fd}>&-; done; for i in {1..%d}; do open; done", ofProxy, kept))
	defer end()
	closes, wait := run(job, fmt.Sprintf("for i in {1..%d}; do open; exec {fd}>&-; done", ofJob))
	wait()
	until(t, "all connections are open or closed", func() bool {
		to := procAddress(destination)
		return sockets(t, "", to, "01") == kept && sockets(t, "", to, "") == kept+sockets(t, "", to, "06")
	})

	s := string(h.scrape(t))
	// Some can be reset at their end, when packets overtake each other on two CPUs.
	if got, here := closesTo(t, s, destination.String()), sockets(t, "", procAddress(destination), "06"); got != ofProxy+ofJob || here > got || here == 0 {
		t.Errorf("counted %v closes, want %d, %v are in TIME_WAIT", got, ofProxy+ofJob, here)
	}
	for series, value := range map[string]int{
		`destination_owner_ports{cgroup="` + proxy: kept, `destination_closes_total{cgroup="` + proxy: ofProxy, `destination_closes_total{cgroup="` + job: ofJob,
	} {
		if !regexp.MustCompile(`(?m)^ephemeral_port_` + regexp.QuoteMeta(series) + `",.* ` + fmt.Sprint(value) + `$`).MatchString(s) {
			t.Errorf("no %s with %d in\n%s", series, value, s)
		}
	}
	if regexp.MustCompile(`(?m)^ephemeral_port_.*bash`).MatchString(s) {
		t.Errorf("a command is in a label:\n%s", s)
	}

	status, body, err := h.scrapes.get("/?format=json")
	if err != nil || status != http.StatusOK {
		t.Fatalf("status %d: %v", status, err)
	}
	var page struct {
		Closes []struct {
			Cgroup, Command       string
			PID                   int
			Closes, Recent_Closes uint64 //nolint:revive // as in the document
		}
	}
	if err := json.Unmarshal([]byte(body), &page); err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, c := range page.Closes {
		want, n := keeps.Process.Pid, uint64(ofProxy)
		if c.Cgroup == job {
			want, n = closes.Process.Pid, ofJob
		}
		if c.Cgroup != job && c.Cgroup != proxy {
			continue
		}
		found++
		if c.Command != "bash" || c.PID != want || c.Closes != n || c.Recent_Closes != n {
			t.Errorf("got %+v, want %d closes of bash, %d", c, n, want)
		}
	}
	if found != 2 {
		t.Errorf("got %+v, want two control groups", page.Closes)
	}

	_, text, err := h.scrapes.get("/?format=text&destination=" + destination.String())
	if err != nil {
		t.Fatal(err)
	}
	named := fmt.Sprintf(`Closed first in the last [0-9a-z ]+ by %s \(9[5-9]%%, last bash with pid %d\), %s \(1%%`, job, closes.Process.Pid, proxy)
	if !regexp.MustCompile(named).MatchString(strings.Join(strings.Fields(text), " ")) {
		t.Errorf("the page does not name %s first:\n%s", job, text)
	}
}

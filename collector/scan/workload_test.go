//go:build linux

package scan

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/cgroup"
)

// A fakeProcess has a command, a container and a number of sockets.
type fakeProcess struct {
	command, container string
	sockets            int
}

func writeProcess(t *testing.T, proc string, pid int, p fakeProcess) {
	t.Helper()
	dir := filepath.Join(proc, strconv.Itoa(pid))
	if err := os.MkdirAll(filepath.Join(dir, "fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"comm": p.command + "\n", "cgroup": "0::/docker/" + p.container + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range p.sockets + 2 {
		link := "pipe:[7]"
		if i < p.sockets {
			link = fmt.Sprintf("socket:[%d]", i)
		}
		if err := os.Symlink(link, filepath.Join(dir, "fd", strconv.Itoa(i))); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
}

// TestAssignWorkloads checks that the command is that of the process with most sockets, and that it
// stays the same.
func TestAssignWorkloads(t *testing.T) {
	const container = "9b1c7a0de4f35a6b8c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b"
	proc := t.TempDir()
	writeProcess(t, proc, 7, fakeProcess{"pause", container, 0})
	writeProcess(t, proc, 8, fakeProcess{"nginx", container, 30})
	writeProcess(t, proc, 9, fakeProcess{"agent", container, 3})

	s := newScanner(t, testConfig())
	s.cfg.Proc = proc
	known := s.recall(1, 4026532000)
	workload := func(outcome Outcome, pids ...int) Workload {
		candidates := []candidate{{known: known}}
		c := &candidates[0]
		c.TCP.Outcome, c.found.PIDs = outcome, pids
		s.assignWorkloads(candidates)
		s.assignCommands(candidates, time.Now().Add(time.Minute))
		return c.Workload
	}
	steps := []struct {
		name    string
		outcome Outcome
		pids    []int
		change  func()
		command string
	}{
		{"idle", Idle, []int{7, 8, 9}, nil, ""},
		{"busy", Collected, []int{7, 8, 9}, nil, "nginx"},
		{"idle again", Idle, []int{7, 8, 9}, nil, "nginx"},
		{"renamed", Collected, []int{7, 8, 9}, func() { writeProcess(t, proc, 8, fakeProcess{"other", container, 30}) }, "nginx"},
		{"ended", Collected, []int{7, 9}, nil, "agent"},
		{"not read", Deadline, []int{7, 9}, nil, "agent"},
		{"without sockets", Collected, []int{7}, nil, ""},
		{"not examined again", Collected, []int{7}, func() { writeProcess(t, proc, 7, fakeProcess{"pause", container, 1}) }, ""},
		{"another process", Collected, []int{7, 9}, nil, "agent"},
		{"gone", Collected, []int{}, nil, ""},
	}
	for _, step := range steps {
		if step.change != nil {
			step.change()
		}
		got := workload(step.outcome, step.pids...)
		want := Workload{Command: step.command}
		if len(step.pids) > 0 {
			want.ContainerID = container
		}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", step.name, got, want)
		}
	}
}

// TestAssignWorkloadOfPod checks that the container of a pod is that of the process with most sockets: not that of
// the first process, which only holds the network namespace.
func TestAssignWorkloadOfPod(t *testing.T) {
	const pod = "3f8e1c2a-5b6d-4e7f-8a9b-0c1d2e3f4a5b"
	pause, app, helper := strings.Repeat("a1", 32), strings.Repeat("b2", 32), strings.Repeat("c3", 32)
	proc := t.TempDir()
	for pid, p := range map[int]fakeProcess{7: {"pause", pause, 0}, 8: {"nginx", app, 30}, 9: {"envoy", helper, 40}, 10: {"nsenter", "", 50}} {
		writeProcess(t, proc, pid, p)
		path := "0::/kubepods/besteffort/pod" + pod + "/" + p.container + "\n"
		if p.container == "" {
			path = "0::/user.slice\n"
		}
		if err := os.WriteFile(filepath.Join(proc, strconv.Itoa(pid), "cgroup"), []byte(path), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := newScanner(t, testConfig())
	s.cfg.Proc = proc
	known := s.recall(1, 4026532000)
	for _, step := range []struct {
		name    string
		outcome Outcome
		pids    []int
		want    Workload
	}{
		{"idle", Idle, []int{7, 8}, Workload{}},
		{"busy", Collected, []int{7, 8}, Workload{Command: "nginx", Workload: cgroup.Workload{ContainerID: app}}},
		{"a busier one beside it", Collected, []int{7, 8, 9}, Workload{Command: "nginx", Workload: cgroup.Workload{ContainerID: app}}},
		{"ended", Idle, []int{7, 9}, Workload{}},
		{"busy again", Collected, []int{7, 9}, Workload{Command: "envoy", Workload: cgroup.Workload{ContainerID: helper}}},
		{"of no container", Collected, []int{7, 10}, Workload{Command: "nsenter"}},
	} {
		candidates := []candidate{{known: known}}
		candidates[0].TCP.Outcome, candidates[0].found.PIDs = step.outcome, step.pids
		s.assignWorkloads(candidates)
		s.assignCommands(candidates, time.Now().Add(time.Minute))
		step.want.PodUID = pod
		if got := candidates[0].Workload; got != step.want {
			t.Errorf("%s: got %+v, want %+v", step.name, got, step.want)
		}
	}
}

// TestAssignCommandsBound gives few namespaces a command in one scan, and none after the deadline.
func TestAssignCommandsBound(t *testing.T) {
	proc := t.TempDir()
	writeProcess(t, proc, 7, fakeProcess{"nginx", "", 5})
	s := newScanner(t, testConfig())
	s.cfg.Proc = proc
	candidates := make([]candidate, 10)
	for i := range candidates {
		candidates[i].known = s.recall(uint64(i), 0)
		candidates[i].TCP.Outcome, candidates[i].found.PIDs = Collected, []int{7}
	}
	commands := func() int {
		n := 0
		for _, c := range candidates {
			if c.Workload.Command == "nginx" {
				n++
			}
		}
		return n
	}
	s.assignCommands(candidates, time.Now().Add(-time.Second))
	if n := commands(); n != 0 || !candidates[0].TCP.CutShort {
		t.Errorf("%d commands after the deadline, cut short: %v", n, candidates[0].TCP.CutShort)
	}
	candidates[0].TCP.CutShort = false
	for _, want := range []int{maxCommands, 2 * maxCommands, 10} {
		s.assignCommands(candidates, time.Now().Add(time.Minute))
		if n := commands(); n != want || candidates[0].TCP.CutShort {
			t.Errorf("%d commands, want %d, cut short: %v", n, want, candidates[0].TCP.CutShort)
		}
	}
}

// TestBusiestProcess examines real processes.
func TestBusiestProcess(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 3 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
	}
	self := os.Getpid()
	if pid, command := busiestProcess("/proc", []int{cmd.Process.Pid, self, 1 << 30}); pid != self || command == "" {
		t.Errorf("got %d, %q, want this process, %d", pid, command, self)
	}
	if pid, command := busiestProcess("/proc", []int{cmd.Process.Pid}); pid != 0 || command != "" {
		t.Errorf("a process without sockets: got %d, %q", pid, command)
	}
}

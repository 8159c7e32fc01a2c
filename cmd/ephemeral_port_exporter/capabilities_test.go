//go:build linux

package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ephemeral_port_exporter/collector/netns/netnstest"
)

// threadStatus returns the values of a field of /proc/PID/task/*/status, each once.
func threadStatus(t *testing.T, pid int, field string) []string {
	t.Helper()
	threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/status"))
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		_, rest, _ := strings.Cut(string(b), "\n"+field+":")
		value, _, _ := strings.Cut(rest, "\n")
		if value = strings.TrimSpace(value); !slices.Contains(values, value) {
			values = append(values, value)
		}
	}
	return values
}

// capabilitySet returns a set of capabilities in the form of /proc/PID/status.
func capabilitySet(capabilities ...uintptr) string {
	var set uint64
	for _, c := range capabilities {
		set |= 1 << c
	}
	return fmt.Sprintf("%016x", set)
}

// TestDropCapabilities checks that all threads of the process keep what the scans of a mode use, and
// nothing else, whatever it was started with. Each mode works after that.
func TestDropCapabilities(t *testing.T) {
	const (
		admin, ptrace, search = unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH
		bpf, perfmon, bind    = unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_BIND_SERVICE
		netAdmin              = unix.CAP_NET_ADMIN
	)
	trackFlows(t)
	dir := openTempDir(t)
	netnstest.Mount(t, filepath.Join(dir, "mounted"), nil)
	self := []string{`ephemeral_port_collect_success{netns="self"} 1`}
	mounted := append(self, `ephemeral_port_collect_success{netns="mounted"} 1`)
	ofProcess := append(mounted, startSleep(t))
	flows := []string{self[0], snatCollected}

	tests := []struct {
		name    string
		args    []string
		granted []uintptr // to uid 65534; nil for root with all
		kept    []uintptr
		want    []string
	}{
		{"self, root", nil, nil, nil, self},
		{"self", nil, []uintptr{admin, ptrace, search, bpf, perfmon, bind, netAdmin}, nil, self},
		{"named, root", []string{"--namespaces=named", "--namespaces.dir=" + dir}, nil, []uintptr{admin, search}, mounted},
		{"named", []string{"--namespaces=named", "--namespaces.dir=" + dir}, []uintptr{admin, ptrace, bind}, []uintptr{admin}, mounted},
		{"all, root", []string{"--namespaces=all", "--namespaces.dir=" + dir}, nil, []uintptr{admin, ptrace, search}, ofProcess},
		{"all", []string{"--namespaces=all", "--namespaces.dir=" + dir}, []uintptr{admin, ptrace, bind}, []uintptr{admin, ptrace}, ofProcess},
		{"snat, all, root", []string{"--snat", "--namespaces=all", "--namespaces.dir=" + dir}, nil, []uintptr{admin, ptrace, search, netAdmin}, ofProcess},
		{"exact, root", []string{"--exact"}, nil, []uintptr{bpf}, self},
		{"exact", []string{"--exact"}, []uintptr{bpf, perfmon, bind}, []uintptr{bpf}, self},
		{"exact, all, root", []string{"--exact", "--namespaces=all", "--namespaces.dir=" + dir}, nil, []uintptr{admin, ptrace, search, bpf}, ofProcess},
		{"connect failures, root", []string{"--trace"}, nil, []uintptr{bpf}, self},
		{"connect failures", []string{"--trace"}, []uintptr{bpf, perfmon}, []uintptr{bpf}, self},
		{"both, root", []string{"--namespaces=all", "--trace"}, nil, []uintptr{admin, ptrace, search, bpf}, self},
		{"both", []string{"--namespaces=all", "--trace"}, []uintptr{admin, ptrace, bpf, perfmon, search}, []uintptr{admin, ptrace, search, bpf}, self},
		{"snat, root", []string{"--snat"}, nil, []uintptr{netAdmin}, flows},
		{"snat", []string{"--snat"}, []uintptr{admin, netAdmin, bpf, bind}, []uintptr{netAdmin}, flows},
		{"snat, all", []string{"--snat", "--namespaces=all", "--namespaces.dir=" + dir}, []uintptr{admin, ptrace, netAdmin, bind}, []uintptr{admin, ptrace, netAdmin}, append(ofProcess, snatCollected)},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			counts := slices.Contains(tt.args, "--trace")
			if counts {
				netnstest.LockTraces(t)
			}
			if slices.Contains(tt.args, "--exact") {
				netnstest.HostRoot(t)
			}
			// A port below 1024, for which the start needs a capability.
			address := "127.0.0.1:" + strconv.Itoa(900+i)
			if tt.granted != nil && !slices.Contains(tt.granted, bind) {
				address = "127.0.0.1:" + strconv.Itoa(10240+i)
			}
			cmd := command(t, append(tt.args, "--web.listen-address="+address)...)
			if tt.granted != nil {
				unprivileged(t, cmd, tt.granted...)
			}
			e := start(t, cmd, "http://"+address)
			// Several connections at once, for some threads.
			checkStatuses(t, scrapeAtOnce(t, e.url+"/metrics", 20, self[0]), 20, http.StatusOK)
			if counts {
				failToConnect(t, "192.0.2.1:7130", 3)
			}
			_, metrics := e.get(t, "/metrics")
			if got := failuresTo(t, metrics, "192.0.2.1:7130"); counts && got != 3 {
				t.Errorf("counted %v failures, want 3", got)
			}
			for _, want := range tt.want {
				if !strings.Contains(metrics, want) {
					t.Errorf("no %s in\n%s", want, metrics)
				}
			}

			kept := []string{capabilitySet(tt.kept...)}
			for _, set := range []string{"CapPrm", "CapEff"} {
				if got := threadStatus(t, cmd.Process.Pid, set); !slices.Equal(got, kept) {
					t.Errorf("%s of the threads: %v, want %v", set, got, kept)
				}
			}
			if tt.granted == nil {
				// Only root may change these.
				if got := threadStatus(t, cmd.Process.Pid, "CapBnd"); !slices.Equal(got, []string{capabilitySet()}) {
					t.Errorf("CapBnd of the threads: %v, want none", got)
				}
			} else if got := threadStatus(t, cmd.Process.Pid, "CapAmb"); cmd.SysProcAttr != nil && !slices.Equal(got, kept) {
				t.Errorf("CapAmb of the threads: %v, want %v", got, kept)
			}
			if got := threadStatus(t, cmd.Process.Pid, "NoNewPrivs"); !slices.Equal(got, []string{"1"}) {
				t.Errorf("NoNewPrivs of the threads: %v, want 1", got)
			}
			if strings.Contains(e.log.String(), "capabilities") {
				t.Errorf("warning:\n%s", e.log)
			}
		})
	}
}

// TestDropCapabilitiesConfig checks that root without capabilities fails at the start, not at the
// first scrape, if it may not read a file of --web.config.file.
func TestDropCapabilitiesConfig(t *testing.T) {
	config := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(config, nil, 0o200); err != nil {
		t.Fatal(err)
	}
	out, err := command(t, "--web.listen-address=127.0.0.1:10159", "--web.config.file="+config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), config+": permission denied") {
		t.Errorf("ended with %v:\n%s", err, out)
	}
}

// cgoProgram returns the path of the exporter, built with cgo. Every user may run it.
func cgoProgram(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("no gcc: install the package gcc")
		}
		t.Fatal(err)
	}
	path := filepath.Join(openTempDir(t), name)
	build := exec.Command("go", "build", "-buildvcs=false", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return path
}

// TestDropCapabilitiesCgo checks that a program with cgo says that it keeps its capabilities, if it
// has any, and works.
func TestDropCapabilitiesCgo(t *testing.T) {
	program := cgoProgram(t)
	for i, privileged := range []bool{true, false} {
		address := "127.0.0.1:" + strconv.Itoa(10250+i)
		cmd := command(t, "--web.listen-address="+address)
		cmd.Path = program
		if !privileged {
			unprivileged(t, cmd)
		}
		e := start(t, cmd, "http://"+address)
		e.get(t, "/metrics")
		if got := strings.Count(e.log.String(), "build it with CGO_ENABLED=0"); got != 1 && privileged || got != 0 && !privileged {
			t.Errorf("root %v: %d warnings:\n%s", privileged, got, e.log)
		}
	}
}
